// Package ops is daemon plumbing: one HTTP port with its probes, the signals that
// stop a process, the directory of `keytrail up`, and build information. It knows nothing of keys.
package ops
