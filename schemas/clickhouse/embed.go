// Package clickhouse holds the tables of the audit copy as goose migrations, one
// file a step. A step that has been released is never edited; the next one
// changes what it made.
package clickhouse

import "embed"

// Migrations holds NNNNN_name.sql at its root.
//
//go:embed *.sql
var Migrations embed.FS
