package main

import (
	"strings"
	"testing"
)

func TestReportCountsAndShowsFailures(t *testing.T) {
	t.Parallel()
	const events = `{"Action":"output","Package":"livepatch/a","Test":"TestGood","Output":"says a passing test\n"}
{"Action":"pass","Package":"livepatch/a","Test":"TestGood","Elapsed":0.1}
{"Action":"pass","Package":"livepatch/a","Elapsed":0.2}
{"Action":"output","Package":"livepatch/b","Test":"TestBad","Output":"what went wrong\n"}
{"Action":"fail","Package":"livepatch/b","Test":"TestBad","Elapsed":0.1}
{"Action":"fail","Package":"livepatch/b","Elapsed":0.2}
{"ImportPath":"livepatch/c","Action":"build-output","Output":"c.go:1: undefined: x\n"}
{"ImportPath":"livepatch/c","Action":"build-fail"}
{"Action":"fail","Package":"livepatch/c","Elapsed":0}
`
	var out strings.Builder
	r := &report{out: &out}
	r.read(strings.NewReader(events), false)
	code := r.summary()
	if code != 1 {
		t.Errorf("exit code %d with failures", code)
	}
	if !strings.HasSuffix(out.String(), "\n1 passed, 2 failed\n") {
		t.Errorf("closing line is not the count:\n%s", out.String())
	}
	for _, want := range []string{"what went wrong", "c.go:1: undefined: x", "failed: b TestBad", "failed: c\n"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in\n%s", want, out.String())
		}
	}
	if strings.Contains(out.String(), "says a passing test") {
		t.Errorf("output of a passing test is shown:\n%s", out.String())
	}
}

func TestReportFailsWhenNothingRan(t *testing.T) {
	t.Parallel()
	r := &report{out: &strings.Builder{}}
	if r.summary() == 0 {
		t.Error("exit code 0 though no test ran")
	}
}
