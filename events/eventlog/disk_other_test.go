//go:build !linux

package eventlog

import "errors"

func mountTmpfs(string, int64) error { return errors.ErrUnsupported }
func unmount(string) error           { return nil }
func diskFree(string) (int64, error) { return 0, errors.ErrUnsupported }
