// Package backup defines the file that a whole log is kept in, and checks one: a
// file, or the streams themselves. It does no I/O but on the reader or writer that
// it is given.
//
//	format.go  the frames, the header and the manifest
//	write.go   Writer: streams and messages, then the manifest
//	read.go    Reader: the strict inverse, which names the first sequence that is wrong
//	check.go   Checker: what one stream's messages must be, whoever hands them in
//	compare.go the comparison with another copy
//	verify.go  Verify and Verification: a whole backup, or a whole log
//
// # The file
//
// It begins with the line "keytrail-backup/v1". Frames follow:
//
//	length   4 bytes, big endian: of the body
//	body     its first byte is its kind
//	checksum 4 bytes, big endian: CRC-32C of length and body
//
// The kinds, in their order in the file:
//
//	'h'  the header, once: a JSON object (Header)
//	's'  a stream begins: 8 bytes, its first sequence, and its name. KT_LIFE, KT_READ
//	     and KT_USE, each once, in this order
//	'm'  a message: 8 bytes sequence, 8 bytes time at which it was stored (nanoseconds
//	     since the Unix epoch), 2 bytes length of the subject, the subject, the
//	     document as it is stored
//	'e'  the manifest, once and last: a JSON object (Manifest)
//
// Numbers are big endian. Nothing follows the manifest.
//
// The file is not compressed: a damaged byte then damages one message, whose
// sequence can be named. zstd makes a copy for the archive about five times smaller.
//
// # What shows what
//
//	B1  A flipped byte fails the checksum of its frame.
//	B2  A message that is gone leaves a hole in the sequences, and a file that was cut
//	    has no manifest.
//	B3  An event that does not decode, or does not follow the event before it in its
//	    history, is named by its sequence.
//	B4  An event that was rewritten together with all that follows in its history is
//	    shown by the root: the manifest's, unless that was rewritten too, and a signed
//	    checkpoint's. A root names no sequence; another copy does.
//
// The reader and the checker share with the writers of the log nothing but the
// decoder of events: the chain and the tree are computed here by other code.
package backup
