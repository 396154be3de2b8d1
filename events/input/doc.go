// Package input says what may come in, and how its faults are told: every fault at
// once, each with the path of its field; text that can be seen; names by their
// grammar; and what of a caller's text an error may repeat.
//
// It is a leaf: it knows nothing of keys.
package input
