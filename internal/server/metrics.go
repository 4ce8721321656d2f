package server

import (
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"livepatch"
	"livepatch/internal/rollout"
)

// metrics is what the server counts.
type metrics struct {
	handler      http.Handler
	requests     *prometheus.CounterVec
	seconds      *prometheus.HistogramVec
	enrolments   *prometheus.CounterVec
	checkIns     *prometheus.CounterVec
	publications prometheus.Counter
	renewed      prometheus.Gauge
	rollouts     *prometheus.GaugeVec
	changes      *prometheus.CounterVec
}

func newMetrics(streams func() float64) *metrics {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "livepatch_http_requests_total", Help: "Requests answered, by route and status."}, []string{"route", "status"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "livepatch_http_request_seconds", Help: "Time to answer, by route.", Buckets: []float64{.001, .005, .02, .1, .5, 2, 10}}, []string{"route"}),
		enrolments: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "livepatch_enrolments_total", Help: "Enrolments, by result: ok or the error's code."}, []string{"result"}),
		checkIns: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "livepatch_check_ins_total", Help: "Check-ins, by what was granted: none, apply or unload."}, []string{"granted"}),
		publications: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "livepatch_publications_total", Help: "Changes of the stream that became public."}),
		renewed: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "livepatch_stream_renewed_timestamp_seconds", Help: "When the stream was last found fresh or renewed, Unix time."}),
	}
	m.rollouts = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "livepatch_rollouts", Help: "Rollouts, by state."}, []string{"state"})
	m.changes = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "livepatch_rollout_changes_total", Help: "Changes of rollouts, by what was done and by whom: judge or operator. Alert on action=\"halt\"."}, []string{"action", "by"})
	r := prometheus.NewRegistry()
	r.MustRegister(m.requests, m.seconds, m.enrolments, m.checkIns, m.publications, m.renewed, m.rollouts, m.changes,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "livepatch_event_streams", Help: "Machines that hold an event stream."}, streams),
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	m.handler = promhttp.HandlerFor(r, promhttp.HandlerOpts{})
	return m
}

func (m *metrics) request(route string, status int, took time.Duration) {
	m.requests.WithLabelValues(route, strconv.Itoa(status)).Inc()
	m.seconds.WithLabelValues(route).Observe(took.Seconds())
}

func (m *metrics) enrolled(code livepatch.Code) {
	result := string(code)
	if result == "" {
		result = "ok"
	}
	m.enrolments.WithLabelValues(result).Inc()
}

func (m *metrics) checkedIn(g *livepatch.Grant) {
	granted := "none"
	if g != nil {
		granted = string(g.Action)
	}
	m.checkIns.WithLabelValues(granted).Inc()
}

func (m *metrics) rolloutStates(states map[rollout.State]int) {
	for _, state := range []rollout.State{rollout.Staged, rollout.Canary, rollout.Early, rollout.General, rollout.Halted, rollout.Withdrawn} {
		m.rollouts.WithLabelValues(string(state)).Set(float64(states[state]))
	}
}

func (s *Server) showMetrics(w http.ResponseWriter, r *http.Request, _ caller) error {
	s.metrics.handler.ServeHTTP(w, r)
	return nil
}
