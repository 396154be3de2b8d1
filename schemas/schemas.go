// Package schemas holds every shape that Keytrail publishes, embedded: the JSON
// Schema of each event type and version, the protobuf message of the use batch,
// the JSON Schema of a keyspace document, the test vectors of the Merkle tree over a
// log, and the OpenAPI description of the HTTP endpoints. The ClickHouse tables are in
// schemas/clickhouse. It imports nothing of Keytrail, so that anyone can import it.
//
// Invariants:
//
//	S1  Every event type and version has one schema, and it describes the form
//	    that the log holds: a schema stands alone, refuses unknown members, and
//	    agrees with the codec of package events.
//	S2  A published file never changes (frozen.sum). A change of shape is a new
//	    file with the next version.
package schemas

import (
	"embed"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

//go:generate go run ./internal/freeze

// FS holds the published files under the names they have in the repository.
//
//go:embed events/*.json tree/*.json proto/*.proto openapi/openapi.v1.json keyspace.v1.json frozen.sum
var FS embed.FS

// Event returns the JSON Schema (2020-12) of the document of an event type, as
// "key.created" in version 1; ok is false when there is none.
func Event(eventType string, version int) (schema []byte, ok bool) {
	b, err := FS.ReadFile(fmt.Sprintf("events/%s.v%d.json", eventType, version))
	return b, err == nil
}

// Keyspace returns the JSON Schema of the document that keytrail keyspace apply
// reads.
func Keyspace() []byte { return read("keyspace.v1.json") }

// TreeVectors returns the test vectors of the Merkle tree over a log, as JSON:
// entries, leaf hashes, roots, proofs, a signed checkpoint and tiles.
func TreeVectors() []byte { return read("tree/vectors.v1.json") }

// OpenAPI returns the OpenAPI 3.1 description of the HTTP endpoints, as JSON.
func OpenAPI() []byte { return read("openapi/openapi.v1.json") }

// read returns an embedded file. The name is a constant of this package and the
// file is named in the embed directive, so it cannot be missing.
func read(name string) []byte {
	b, err := FS.ReadFile(name)
	if err != nil {
		panic(err)
	}
	return b
}

// AnyMethod marks a path item of the OpenAPI document whose operation answers
// every method alike.
const AnyMethod = "x-keytrail-any-method"

// Routes lists the operations of the OpenAPI document as "METHOD /path", sorted;
// "ANY /path" stands for all methods.
func Routes() []string {
	var doc struct {
		Paths map[string]map[string]json.RawMessage `json:"paths"`
	}
	if err := json.Unmarshal(OpenAPI(), &doc); err != nil {
		panic(err) // the document is a constant, and a test reads it
	}
	var out []string
	for path, item := range doc.Paths {
		if _, ok := item[AnyMethod]; ok {
			out = append(out, "ANY "+path)
			continue
		}
		for _, method := range []string{"get", "put", "post", "patch", "delete"} {
			if _, ok := item[method]; ok {
				out = append(out, strings.ToUpper(method)+" "+path)
			}
		}
	}
	slices.Sort(out)
	return out
}
