package verifier

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
)

// The headers of a gRPC answer that has no message (Trailers-Only).
const (
	headerGRPCStatus  = "Grpc-Status"
	headerGRPCMessage = "Grpc-Message"
	grpcType          = "application/grpc"
)

// isGRPC reports whether the client speaks gRPC. Clients of grpc-web read the HTTP
// status, as browsers do.
func (a *Ask) isGRPC() bool {
	if a.Header == nil {
		return false
	}
	values := a.Header("Content-Type")
	if len(values) != 1 {
		return false
	}
	rest, ok := strings.CutPrefix(strings.ToLower(values[0]), grpcType)
	return ok && (rest == "" || rest[0] == '+' || rest[0] == ';')
}

// grpc adds to a refusal what a gRPC client reads, and takes the body away. The
// HTTP status stays a refusal's, because gateways let a 2xx pass; the gateway
// answers its client with 200 and these headers.
func (a *Answer) grpc() {
	a.Header.Set(headerGRPCStatus, strconv.Itoa(grpcStatus(a.Status)))
	a.Header.Set(headerGRPCMessage, grpcEncode(a.message))
	a.Header.Set("Content-Type", grpcType)
	if a.Header.Get(headerRefusalStatus) != "" {
		a.Header.Set(headerRefusalStatus, "200")
	}
	a.Body = nil
}

// The statuses of gRPC that a refusal may have.
const (
	grpcInvalidArgument   = 3
	grpcDeadlineExceeded  = 4
	grpcNotFound          = 5
	grpcPermissionDenied  = 7
	grpcResourceExhausted = 8
	grpcAborted           = 10
	grpcUnimplemented     = 12
	grpcInternal          = 13
	grpcUnavailable       = 14
	grpcUnauthenticated   = 16
)

// grpcStatus returns the gRPC status of an HTTP status, as google.rpc.Code pairs
// them.
func grpcStatus(status int) int {
	switch status {
	case http.StatusBadRequest, http.StatusUnprocessableEntity:
		return grpcInvalidArgument
	case http.StatusUnauthorized:
		return grpcUnauthenticated
	case http.StatusNotFound:
		return grpcNotFound
	case http.StatusConflict:
		return grpcAborted
	case http.StatusTooManyRequests:
		return grpcResourceExhausted
	case http.StatusNotImplemented:
		return grpcUnimplemented
	case http.StatusGatewayTimeout:
		return grpcDeadlineExceeded
	}
	switch {
	case status == http.StatusInternalServerError:
		return grpcInternal
	case status > http.StatusInternalServerError:
		return grpcUnavailable
	}
	return grpcPermissionDenied
}

// grpcEncode encodes s as Grpc-Message wants it: visible ASCII, the rest in percents.
func grpcEncode(s string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		if c < ' ' || c > '~' || c == '%' {
			fmt.Fprintf(&b, "%%%02X", c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}
