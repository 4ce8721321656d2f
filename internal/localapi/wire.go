package localapi

import "livepatch"

// The routes of the socket, in the form net/http.ServeMux takes. GET is for
// everybody; the others are for root (peer uid 0).
const (
	RouteStatus  = "GET /v1/status"   // Status; 409 not-enabled when not enabled
	RouteDoctor  = "GET /v1/doctor"   // Doctor; also when not enabled
	RouteConfig  = "GET /v1/config"   // Config; also when not enabled
	RouteSet     = "PATCH /v1/config" // body SetConfig, answer Config
	RouteEnable  = "PUT /v1/enable"   // body EnableRequest, answer EnableResponse
	RouteDisable = "PUT /v1/disable"  // DisableResponse; 200 when not enabled
	RouteRefresh = "POST /v1/refresh" // body RefreshRequest or none, answer RefreshResponse
	RouteUnload  = "POST /v1/unload"  // UnloadResponse
)

// DisableResponse is the answer of PUT /v1/disable.
type DisableResponse struct {
	// WasEnabled is false when there was nothing to disable.
	WasEnabled bool `json:"was_enabled"`
	// Loaded are the modules that stay in the kernel until unloaded or reboot.
	Loaded []string `json:"loaded,omitempty"`
	// Note is a sentence for people, for example that the server could not be
	// told; empty when there is nothing to add.
	Note string `json:"note,omitempty"`
}

// UnloadResponse is the answer of POST /v1/unload.
type UnloadResponse struct {
	// Unloaded are the modules that were disabled and removed; empty when none
	// was loaded.
	Unloaded []string `json:"unloaded"`
	// Note is a sentence for people, for example when it is loaded again; may be
	// empty.
	Note string `json:"note,omitempty"`
}

// Config is the answer of GET and PATCH /v1/config: every setting, in the order
// in which they are shown.
type Config struct {
	Settings []Setting `json:"settings"`
}

// Setting is one configuration value.
type Setting struct {
	Key string `json:"key"`
	// Value is the value in text, "" for an unset string.
	Value string      `json:"value"`
	Kind  SettingKind `json:"kind"`
	// Unit is what a number counts, "minutes"; empty for the others.
	Unit string `json:"unit,omitempty"`
}

// SettingKind is the type of a setting's value.
type SettingKind string

// The kinds.
const (
	KindString  SettingKind = "string"
	KindInteger SettingKind = "integer"
	KindBoolean SettingKind = "boolean"
)

// SetConfig is the body of PATCH /v1/config. All of it is set or nothing. An
// empty value puts a key back to its default.
type SetConfig struct {
	Values map[string]string `json:"values"`
}

// Failure is an error on the socket, in the form of RFC 9457 problem details
// (application/problem+json).
type Failure struct {
	// Status repeats the HTTP status.
	Status int `json:"status"`
	// Detail is the sentence for people.
	Detail string         `json:"detail"`
	Code   livepatch.Code `json:"code"`
}
