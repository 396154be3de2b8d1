package projections

import (
	"syscall"
	"unsafe"
)

const hugePage = 2 << 20

// adviseHuge asks the kernel for large pages behind the memory and up to their borders,
// which are in the same 64 MB of the heap. A look-up at random misses the cache of
// addresses else as often as that of data. It is advice, to be given before the memory is
// touched: without it everything works, slower.
func adviseHuge(at unsafe.Pointer, bytes uintptr) {
	before := uintptr(at) % hugePage
	size := (before + bytes + hugePage - 1) / hugePage * hugePage
	const madvHugepage = 14
	_, _, _ = syscall.Syscall(syscall.SYS_MADVISE, uintptr(at)-before, size, madvHugepage)
}
