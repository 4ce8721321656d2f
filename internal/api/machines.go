package api

import (
	"context"
	"net/http"
	"net/url"
)

// MachineFilter narrows a list of machines; its zero value is all.
type MachineFilter struct {
	// Account is an account's id or name.
	Account string
	// Kernel is a kernel release.
	Kernel string
}

// Machines lists enrolled machines, oldest enrolment first. Operator credential.
func (c *Client) Machines(ctx context.Context, f MachineFilter) ([]Machine, error) {
	q := url.Values{}
	if f.Account != "" {
		q.Set("account", f.Account)
	}
	if f.Kernel != "" {
		q.Set("kernel", f.Kernel)
	}
	return all[Machine](ctx, c, "/v1/machines", q)
}

// Machine returns one machine with its latest reports. id is the server's name
// of it, or the machine's own machine id or host name where that is unambiguous.
// Operator credential.
func (c *Client) Machine(ctx context.Context, id string) (Machine, error) {
	return call[Machine](ctx, c, http.MethodGet, "/v1/machines/"+url.PathEscape(id), nil)
}

// RemoveMachine takes a machine's place and credential away. What is loaded on it
// stays. id as in Machine. Operator credential.
func (c *Client) RemoveMachine(ctx context.Context, id string) error {
	_, err := call[none](ctx, c, http.MethodDelete, "/v1/machines/"+url.PathEscape(id), nil)
	return err
}
