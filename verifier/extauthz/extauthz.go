// Package extauthz is Envoy's endpoint: envoy.service.auth.v3.Authorization/Check,
// gRPC on the port of all other endpoints, with the answers of /v1/authorize.
//
//	Envoy ─> Check ─> verifier.Node.Answer ─> OkHttpResponse | DeniedHttpResponse
//
// What is asked for stands in the route's context_extensions: keyspace, and
// where needed scope, resource (kind/id, or kind/{n} for segment n of the path) and
// min_position_header. Nothing else that a client sends can change it. The client's part is its credential, the position in the
// header that min_position_header names, and, where the peer of Envoy is a trusted
// proxy, what that proxy says in X-Forwarded-For and X-Forwarded-Proto.
//
// # Fail closed
//
//	no keyspace, a fault or an unknown name in context_extensions  denied with 503, and a line in the log
//	not from the HTTP filter                                       the same
//	a name that is not defined, node not ready                     denied, as at /v1/authorize
//	the credential twice, or joined by a comma                     denied, key_malformed
//	identity that the client forged                                overwritten, or removed where there is none
//	a web page's preflight                                         denied with 204 and what the definition says of CORS
//
// A fault in the configuration is an answer and not a failed call, because Envoy's
// failure_mode_allow lets failed calls through.
package extauthz

import (
	"context"
	"log/slog"
	"maps"
	"mime"
	"net/http"
	"net/netip"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/keytrail/keytrail/events/input"
	"github.com/keytrail/keytrail/internal/api"
	"github.com/keytrail/keytrail/verifier"
)

// Path is where Envoy calls.
const Path = authv3.Authorization_Check_FullMethodName

// Routes adds the endpoint. The server must speak HTTP/2, without TLS if Envoy does.
func Routes(mux *http.ServeMux, node *verifier.Node, logger *slog.Logger) {
	s := grpc.NewServer(grpc.MaxRecvMsgSize(api.MaxBody))
	authv3.RegisterAuthorizationServer(s, &endpoint{node: node, logger: logger})
	mux.HandleFunc("POST "+Path, func(w http.ResponseWriter, r *http.Request) {
		// The gRPC server would refuse these too, in words of its own.
		if t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || t != "application/grpc" && t != "application/grpc+proto" {
			api.Write(w, r, api.Errorf(http.StatusUnsupportedMediaType, "unsupported_media_type", "this endpoint is Envoy's and speaks gRPC; for HTTP there is /v1/authorize/{keyspace}"))
			return
		}
		if r.ProtoMajor != 2 {
			api.Write(w, r, api.Errorf(http.StatusBadRequest, "http2_required", "gRPC needs HTTP/2: give Envoy's cluster http2_protocol_options"))
			return
		}
		// The gRPC server takes in what a call sends, as fast as it comes, and keeps it
		// until the message is whole; anybody may open any number of calls.
		release, err := api.HoldBody(r)
		defer release()
		if err != nil {
			h := w.Header() // a gRPC answer of its status alone
			h.Set("Content-Type", "application/grpc")
			h.Set("Grpc-Status", strconv.Itoa(int(codes.ResourceExhausted)))
			h.Set("Grpc-Message", err.Error())
			return
		}
		s.ServeHTTP(w, r)
	})
}

type endpoint struct {
	authv3.UnimplementedAuthorizationServer
	node   *verifier.Node
	logger *slog.Logger
}

// Check answers one request that Envoy holds.
func (d *endpoint) Check(ctx context.Context, req *authv3.CheckRequest) (resp *authv3.CheckResponse, err error) {
	id := requestID(ctx)
	defer func() { // gRPC would let a panic end the process
		if p := recover(); p != nil {
			d.logger.ErrorContext(ctx, "envoy's request failed", "request_id", id, "panic", p, "stack", string(debug.Stack()))
			resp, err = nil, status.Error(codes.Internal, "an internal error; request "+id)
		}
	}()
	ask, faults := question(req.GetAttributes())
	ask.RequestID = id
	if len(faults) > 0 {
		return response(d.node.Malformed(ctx, ask, faults)), nil
	}
	if verifier.IsPreflight(req.GetAttributes().GetRequest().GetHttp().GetMethod(), ask.Header) {
		return response(d.node.Preflight(ctx, ask)), nil
	}
	return response(d.node.Answer(ctx, ask)), nil
}

// requestID returns the id that the server's middleware gave to the call.
func requestID(ctx context.Context) string {
	if ids := metadata.ValueFromIncomingContext(ctx, api.RequestIDHeader); len(ids) > 0 {
		return ids[0]
	}
	return ""
}

// question reads what Envoy asks for. With faults, only the endpoint is told.
func question(at *authv3.AttributeContext) (*verifier.Ask, input.FieldErrors) {
	ask := &verifier.Ask{Endpoint: "envoy"}
	var f input.FieldErrors
	ext := at.GetContextExtensions()
	for name, v := range ext {
		switch {
		case name != "keyspace" && name != "scope" && name != "resource" && name != "min_position_header":
			f.Add("context_extensions", "unknown_field", "want keyspace, scope, resource and min_position_header only")
		case v == "": // asks for less than was meant
			f.Add("context_extensions."+name, "invalid", "want a value, or leave it out")
		}
	}
	if len(f) > 0 {
		return ask, f
	}
	r := at.GetRequest().GetHttp()
	if r == nil {
		f.Add("request.http", "required", "want a request of Envoy's HTTP filter")
		return ask, f
	}
	ask.Header, ask.Peer, ask.Path = values(r), address(at.GetSource()), r.GetPath()
	var bad input.FieldErrors
	ask.Demand(ext["keyspace"], ext["scope"], ext["resource"], ext["min_position_header"], &bad)
	f.Merge("context_extensions", bad)
	// An HTTP/2 client may write any :scheme, and Envoy passes it on. What Envoy
	// itself says of the connection is in X-Forwarded-Proto; both must agree.
	protos := ask.Header("X-Forwarded-Proto")
	ask.Secure = strings.EqualFold(r.GetScheme(), "https") && (len(protos) == 0 || verifier.HTTPS(protos))
	return ask, f
}

// values looks up a header of the client's request. With encode_raw_headers
// Envoy sends each value apart; without, it joins them with commas, and a value
// that holds one counts as several: a key presented twice is then seen, and none
// of ours has a comma.
func values(r *authv3.AttributeContext_HttpRequest) func(name string) []string {
	return func(name string) (out []string) {
		for _, h := range r.GetHeaderMap().GetHeaders() {
			if strings.EqualFold(h.GetKey(), name) {
				if raw := h.GetRawValue(); len(raw) > 0 {
					out = append(out, string(raw))
				} else {
					out = append(out, h.GetValue())
				}
			}
		}
		for key, v := range r.GetHeaders() {
			if strings.EqualFold(key, name) {
				out = append(out, strings.Split(v, ",")...)
			}
		}
		return out
	}
}

// address returns the address of Envoy's peer; invalid when it has none, as a
// pipe.
func address(p *authv3.AttributeContext_Peer) netip.Addr {
	a, err := netip.ParseAddr(p.GetAddress().GetSocketAddress().GetAddress())
	if err != nil {
		return netip.Addr{}
	}
	return a.Unmap().WithZone("")
}

// response writes the answer in Envoy's words.
func response(ans *verifier.Answer) *authv3.CheckResponse {
	if !ans.Allowed() {
		return &authv3.CheckResponse{
			Status: &statuspb.Status{Code: int32(codes.PermissionDenied)},
			HttpResponse: &authv3.CheckResponse_DeniedResponse{DeniedResponse: &authv3.DeniedHttpResponse{
				Status:  httpStatus(ans.Status),
				Headers: headers(ans.Header),
				Body:    string(ans.Body),
			}},
		}
	}
	ok := &authv3.OkHttpResponse{ResponseHeadersToAdd: headers(ans.Header)}
	for _, f := range ans.Identity {
		if f.Value == "" { // Envoy does not set an empty value
			ok.HeadersToRemove = append(ok.HeadersToRemove, f.Name)
		} else {
			ok.Headers = append(ok.Headers, set(f.Name, f.Value))
		}
	}
	for _, h := range ok.ResponseHeadersToAdd {
		if h.Header.Key == api.RequestIDHeader { // the upstream's own is worth more
			h.AppendAction = corev3.HeaderValueOption_ADD_IF_ABSENT
		}
	}
	return &authv3.CheckResponse{
		Status:       &statuspb.Status{Code: int32(codes.OK)},
		HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: ok},
	}
}

// httpStatus returns the status of a refusal. Envoy knows those of its own list
// only, and takes another for a failed call.
func httpStatus(code int) *typev3.HttpStatus {
	if _, known := typev3.StatusCode_name[int32(code)]; !known || code == 0 {
		code = http.StatusForbidden
	}
	return &typev3.HttpStatus{Code: typev3.StatusCode(code)}
}

// headers returns h in order.
func headers(h http.Header) (out []*corev3.HeaderValueOption) {
	for _, name := range slices.Sorted(maps.Keys(h)) {
		out = append(out, set(name, strings.Join(h[name], ", ")))
	}
	return out
}

// set overwrites what stands under the name.
func set(name, value string) *corev3.HeaderValueOption {
	return &corev3.HeaderValueOption{
		Header:       &corev3.HeaderValue{Key: name, Value: value},
		AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
	}
}
