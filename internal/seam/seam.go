//go:build !race && !seam

// Package seam lets a test stop code between two of its steps. Only programs built with
// the race detector, or with -tags seam, have seams: in all others At is nothing.
package seam

// At is a seam, where a test may come between.
func At() {}
