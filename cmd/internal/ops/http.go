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

	"github.com/keytrail/keytrail/schemas"
	"github.com/keytrail/keytrail/schemas/api"
)

// Server is the one port of a process: its doors beside the probes.
type Server struct {
	Mux      *http.ServeMux
	Registry *prometheus.Registry
	ln       net.Listener
	logger   *slog.Logger
	checks   []check
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
	s := &Server{Mux: http.NewServeMux(), Registry: prometheus.NewRegistry(), ln: ln, logger: logger}
	s.Registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), buildInfo())
	s.Mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) {
		api.WriteJSON(w, r, http.StatusOK, map[string]string{"status": "ok"})
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

// Fallback makes mux answer what it has no door for with a problem document: 405
// with Allow where the path is a door for other methods, else 404.
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
			api.Write(w, r, api.Errorf(http.StatusMethodNotAllowed, "method_not_allowed", "this door takes %s", strings.Join(allow, ", ")))
			return
		}
		api.Write(w, r, api.Errorf(http.StatusNotFound, "not_found", "no such door here; /openapi.json lists them"))
	})
}

// URL returns where the server can be reached.
func (s *Server) URL() string { return "http://" + s.ln.Addr().String() }

// Check adds a condition of readiness.
func (s *Server) Check(name string, fn func() error) { s.checks = append(s.checks, check{name, fn}) }

// Ready returns the first condition of readiness that does not hold.
func (s *Server) Ready() error {
	for _, c := range s.checks {
		if err := c.fn(); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
	}
	return nil
}

func (s *Server) ready(w http.ResponseWriter, r *http.Request) {
	if err := s.Ready(); err != nil {
		api.Write(w, r, api.Unavailable(1, "not ready: %s", err))
		return
	}
	api.WriteJSON(w, r, http.StatusOK, map[string]string{"status": "ready"})
}

// Run serves until ctx ends, then lets running requests finish for 5 s. Beside
// HTTP/1 it speaks HTTP/2 without TLS, which gRPC needs (verifier/extauthz).
func (s *Server) Run(ctx context.Context) error {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	srv := &http.Server{
		Protocols:         &protocols,
		Handler:           api.WithRequestID(s.Mux),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       30 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(s.logger.Handler(), slog.LevelDebug),
	}
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(s.ln) }() // ends with Shutdown or Close below
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	err := srv.Shutdown(grace)
	if errors.Is(err, context.DeadlineExceeded) {
		err = srv.Close()
	}
	<-failed
	return err
}
