package main

import (
	"path/filepath"

	"github.com/keytrail/keytrail/internal/files"
	"github.com/keytrail/keytrail/verifier/limits"
)

// accountFile holds the account of exact limits of a control that was stopped in order, as
// package limits writes it. It is of use to the next allocator alone, and says of the one
// that is appointed whose account it is: an old one, or a copy, admits nothing.
const (
	accountFile = "limits"
	maxAccount  = 128 << 20
)

// keepAccount has the account kept in dir; without one there is none.
func keepAccount(c *limits.ServiceConfig, dir string) {
	if dir == "" {
		return
	}
	file := filepath.Join(dir, accountFile)
	c.Save = func(data []byte) error { return files.Write(file, data) }
	c.Load = func() ([]byte, error) { return files.ReadOwnData(file, maxAccount) }
}
