// Package ops is daemon plumbing: starting and stopping parts in order, one
// HTTP port with its probes, the directory of `keytrail up`, and build
// information. It knows nothing of keys.
package ops
