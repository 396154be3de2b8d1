//go:build !linux

package projections

import "unsafe"

// adviseHuge is nothing here.
func adviseHuge(unsafe.Pointer, uintptr) {}
