package ops

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/keytrail/keytrail/events/input"
	"github.com/keytrail/keytrail/internal/api"
	"github.com/keytrail/keytrail/internal/parts"
	"github.com/keytrail/keytrail/schemas"
)

// Server is the one port of a process: its endpoints beside the probes.
type Server struct {
	Role     string // what the probes say that it is: up, control, verifier or auditor
	Mux      *http.ServeMux
	Registry *prometheus.Registry
	ln       *conns
	logger   *slog.Logger
	checks   []check
	warnings []check
}

type check struct {
	name string
	fn   func() error
}

// Listen opens addr ("127.0.0.1:7070"; port 0 lets the system choose).
func Listen(addr string, logger *slog.Logger) (*Server, error) {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w; choose another address with --listen", addr, err)
	}
	registry := prometheus.NewRegistry()
	s := &Server{Mux: http.NewServeMux(), Registry: registry, ln: limitConns(ln, registry), logger: logger}
	s.Registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), buildInfo())
	s.Mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) {
		api.WriteJSON(w, r, http.StatusOK, health{Status: "ok", Role: s.Role})
	})
	s.Mux.HandleFunc("GET /readyz", s.ready)
	s.Mux.Handle("GET /metrics", promhttp.HandlerFor(s.Registry, promhttp.HandlerOpts{}))
	s.Mux.HandleFunc("GET /openapi.json", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Write(schemas.OpenAPI())
	})
	Fallback(s.Mux)
	return s, nil
}

// Fallback makes mux answer what it has no endpoint for with a problem document: 405
// with Allow where the path is an endpoint for other methods, else 404.
func Fallback(mux *http.ServeMux) {
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		var allow []string
		for _, method := range []string{http.MethodDelete, http.MethodGet, http.MethodHead, http.MethodPatch, http.MethodPost, http.MethodPut} {
			other := *r
			other.Method = method
			if _, pattern := mux.Handler(&other); pattern != "/" {
				allow = append(allow, method)
			}
		}
		if len(allow) > 0 {
			w.Header().Set("Allow", strings.Join(allow, ", "))
			api.Write(w, r, api.Errorf(http.StatusMethodNotAllowed, "method_not_allowed", "this endpoint takes %s", strings.Join(allow, ", ")))
			return
		}
		api.Write(w, r, api.Errorf(http.StatusNotFound, "not_found", "no such endpoint; /openapi.json lists them"))
	})
}

// URL returns where the server can be reached.
func (s *Server) URL() string { return "http://" + s.ln.Addr().String() }

// Check adds a condition of readiness.
func (s *Server) Check(name string, fn func() error) { s.checks = append(s.checks, check{name, fn}) }

// Warn adds a condition that the role works without, though not wholly: while it
// does not hold /readyz says degraded, and why.
func (s *Server) Warn(name string, fn func() error) {
	s.warnings = append(s.warnings, check{name, fn})
}

// Ready returns every condition of readiness that does not hold, nil when all do.
func (s *Server) Ready() error { return failing(s.checks, "not_ready").OrNil() }

// failing names each part whose condition does not hold, and says why.
func failing(checks []check, code string) (out input.FieldErrors) {
	for _, c := range checks {
		if err := c.fn(); err != nil {
			out = append(out, input.FieldError{Field: c.name, Code: code, Message: err.Error()})
		}
	}
	return out
}

// health is the answer of /healthz and /readyz.
type health struct {
	Status   string            `json:"status"` // ok, ready or degraded
	Role     string            `json:"role"`
	Warnings input.FieldErrors `json:"warnings,omitempty"`
}

func (s *Server) ready(w http.ResponseWriter, r *http.Request) {
	if parts := failing(s.checks, "not_ready"); len(parts) > 0 {
		p := api.Unavailable(1, "the %s is not ready: %v", s.Role, parts)
		p.Errors = parts
		api.Write(w, r, p)
		return
	}
	h := health{Status: "ready", Role: s.Role, Warnings: failing(s.warnings, "degraded")}
	if len(h.Warnings) > 0 {
		h.Status = "degraded"
	}
	api.WriteJSON(w, r, http.StatusOK, h)
}

// drain is how long running requests may go on when the server stops, at most.
const drain = 2500 * time.Millisecond

// Run serves until ctx ends, then lets running requests finish for 2.5 s, or for the
// most of what its parts.Group leaves it. Connections on which no request has begun are
// closed after a fifth of that: clients open some in advance. Beside
// HTTP/1 it speaks HTTP/2 without TLS, which gRPC needs (verifier/extauthz).
func (s *Server) Run(ctx context.Context) error {
	srv := s.server()
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(s.ln) }() // ends with Shutdown or Close below
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	left := time.Until(parts.StopBy(ctx, drain)) * 4 / 5
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), left)
	defer cancel()
	unused := time.AfterFunc(left/4, s.ln.closeSilent)
	defer unused.Stop()
	err := srv.Shutdown(grace)
	if errors.Is(err, context.DeadlineExceeded) {
		err = srv.Close()
	}
	<-failed
	return err
}

// server bounds how long a client may take for each part of an exchange.
func (s *Server) server() *http.Server {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Server{
		Protocols:         &protocols,
		Handler:           api.Handler(s.ln.limit(s.Mux)),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       15 * time.Second, // of a whole request: a megabyte at 70 kB/s
		WriteTimeout:      time.Minute,      // exports, which may take longer, move it on while their reader reads
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ConnState:         s.ln.state,
		ErrorLog:          slog.NewLogLogger(s.logger.Handler(), slog.LevelDebug),
	}
}
