package main

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// visible writes text to where a terminal may be. Names, reasons and messages are
// other people's text: what a terminal would obey (escape sequences, C0 and C1
// controls) and what cannot be seen (zero-width and direction characters) is
// written as \uXXXX, which in a JSON string means the same as before. Only line
// ends, tabs and the carriage returns of progress pass. Everything that the command
// line prints goes through one, but the bytes of an export, whose digest is told.
type visible struct {
	w io.Writer

	mu   sync.Mutex
	rest []byte // guarded by mu: the beginning of a character whose end is still to come
}

func (v *visible) Write(b []byte) (int, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	text := append(v.rest, b...)
	v.rest = nil
	var out []byte
	for i := 0; i < len(text); {
		if !utf8.FullRune(text[i:]) {
			v.rest = append([]byte(nil), text[i:]...)
			break
		}
		r, n := utf8.DecodeRune(text[i:])
		if canBeSeen(r) && (r != utf8.RuneError || n > 1) {
			out = append(out, text[i:i+n]...)
		} else {
			out = appendEscaped(out, r)
		}
		i += n
	}
	if _, err := v.w.Write(out); err != nil {
		return 0, err
	}
	return len(b), nil
}

func canBeSeen(r rune) bool { return unicode.IsGraphic(r) || r == '\n' || r == '\t' || r == '\r' }

func appendEscaped(out []byte, r rune) []byte {
	for _, u := range utf16.AppendRune(nil, r) {
		out = fmt.Appendf(out, `\u%04x`, u)
	}
	return out
}

// line returns s as part of one line: what would end the line or move in it is
// escaped too.
func line(s string) string {
	if strings.IndexFunc(s, moves) < 0 {
		return s
	}
	var out []byte
	for _, r := range s {
		if moves(r) {
			out = appendEscaped(out, r)
		} else {
			out = utf8.AppendRune(out, r)
		}
	}
	return string(out)
}

func moves(r rune) bool { return r == '\t' || !canBeSeen(r) || r == '\n' || r == '\r' }

// cells returns one line of a table.
func cells(texts ...string) string {
	lines := make([]string, len(texts))
	for i, s := range texts {
		lines[i] = line(s)
	}
	return strings.Join(lines, "\t")
}
