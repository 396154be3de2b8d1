package extauthz

import (
	"encoding/binary"
	"mime"
	"net/http"
	"strconv"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/keytrail/keytrail/internal/api"
)

// prefixLen is what stands before a message: whether it is compressed, and its length.
const prefixLen = 5

// Headers of answers: shared, so that an answer allocates none.
var (
	grpcContent = []string{"application/grpc"}
	grpcOK      = []string{strconv.Itoa(int(codes.OK))}
)

// serve answers one call: gRPC over HTTP/2 with one message each way. A gRPC server on an
// http.Handler would run each call on goroutines of its own and flush the answer in
// pieces, which costs more than the decision. A deadline in grpc-timeout is not read: its
// client ends the stream when it has passed, and with it the request's context.
func (d *endpoint) serve(w http.ResponseWriter, r *http.Request) {
	if types := r.Header["Content-Type"]; len(types) != 1 || types[0] != grpcContent[0] {
		if t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || t != "application/grpc" && t != "application/grpc+proto" {
			api.Write(w, r, api.Errorf(http.StatusUnsupportedMediaType, "unsupported_media_type", "this endpoint is Envoy's and speaks gRPC; for HTTP there is /v1/authorize/{keyspace}"))
			return
		}
	}
	if r.ProtoMajor != 2 {
		api.Write(w, r, api.Errorf(http.StatusBadRequest, "http2_required", "gRPC needs HTTP/2: give Envoy's cluster http2_protocol_options"))
		return
	}
	h := w.Header()
	h["Content-Type"] = grpcContent
	answer, err := d.answer(r)
	if err != nil { // an answer of its status alone
		h.Set("Grpc-Status", strconv.Itoa(int(status.Code(err))))
		h.Set("Grpc-Message", status.Convert(err).Message())
		if status.Code(err) == codes.Unimplemented {
			h.Set("Grpc-Accept-Encoding", "identity")
		}
		return
	}
	w.Write(answer)
	h[http.TrailerPrefix+"Grpc-Status"] = grpcOK
}

// answer reads the call's message and returns the answer's, with its prefix. The error
// has a gRPC status, and a message in ASCII.
func (d *endpoint) answer(r *http.Request) ([]byte, error) {
	body, release, err := api.ReadBody(r)
	defer release()
	if err != nil {
		return nil, status.Error(codes.ResourceExhausted, err.Error())
	}
	message, err := unframe(body)
	if err != nil {
		return nil, err
	}
	var req authv3.CheckRequest
	if err := proto.Unmarshal(message, &req); err != nil { // it may repeat a part of the message
		return nil, status.Error(codes.Internal, "want an envoy.service.auth.v3.CheckRequest")
	}
	resp, err := d.check(r.Context(), api.RequestID(r), &req)
	if err != nil {
		return nil, err
	}
	answer, err := proto.MarshalOptions{}.MarshalAppend(make([]byte, prefixLen, 1024), resp)
	if err != nil {
		return nil, status.Error(codes.Internal, "the answer cannot be encoded")
	}
	binary.BigEndian.PutUint32(answer[1:], uint32(len(answer)-prefixLen))
	return answer, nil
}

// unframe returns the one message of a body.
func unframe(body []byte) ([]byte, error) {
	switch {
	case len(body) < prefixLen || int64(binary.BigEndian.Uint32(body[1:])) != int64(len(body)-prefixLen):
		return nil, status.Error(codes.Internal, "want one whole message")
	case body[0] == 1:
		return nil, status.Error(codes.Unimplemented, "want a message that is not compressed")
	case body[0] != 0:
		return nil, status.Error(codes.Internal, "want 0 or 1 as the first byte of a message")
	}
	return body[prefixLen:], nil
}
