package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
)

// layout brings JSON into lines that do not depend on how it was indented;
// every other character counts, and so does the order of members. Of text that
// is not JSON it takes the lines, with columns two spaces apart.
func layout(text string) ([]string, error) {
	text = strings.TrimSpace(text)
	if text == "" {
		return nil, nil
	}
	if text[0] != '{' && text[0] != '[' {
		lines := strings.Split(text, "\n")
		for i, line := range lines {
			lines[i] = regexp.MustCompile(` {2,}`).ReplaceAllString(strings.TrimRight(line, " "), "  ")
		}
		return lines, nil
	}
	in := bufio.NewReader(strings.NewReader(text))
	n, err := readNode(in)
	if err != nil {
		return nil, err
	}
	if _, err := skipSpace(in); err != io.EOF {
		return nil, errors.New("something follows the JSON")
	}
	var lines []string
	n.lines(&lines, "", "", "")
	return lines, nil
}

// jsonNode is a JSON value whose scalars may be placeholders.
type jsonNode struct {
	open    byte   // '{', '[', or 0 for a scalar
	scalar  string // as it stands, with its quotes
	members []member
}

type member struct {
	name  string // with its quotes; "" in arrays
	value *jsonNode
}

func (n *jsonNode) flat() string {
	if n.open == 0 {
		return n.scalar
	}
	parts := make([]string, len(n.members))
	for i, m := range n.members {
		if parts[i] = m.value.flat(); n.open == '{' {
			parts[i] = m.name + ": " + parts[i]
		}
	}
	return string(n.open) + strings.Join(parts, ", ") + string(n.open+2)
}

// lines writes the value after the text before. Lists of scalars, and objects
// of no more than two, stand on one line.
func (n *jsonNode) lines(out *[]string, indent, before, after string) {
	simple := n.open != '{' || len(n.members) <= 2
	for _, m := range n.members {
		simple = simple && m.value.open == 0
	}
	if simple || len(n.members) == 0 {
		*out = append(*out, indent+before+n.flat()+after)
		return
	}
	*out = append(*out, indent+before+string(n.open))
	for i, m := range n.members {
		comma, name := ",", ""
		if i == len(n.members)-1 {
			comma = ""
		}
		if n.open == '{' {
			name = m.name + ": "
		}
		m.value.lines(out, indent+"  ", name, comma)
	}
	*out = append(*out, indent+string(n.open+2)+after) // '{'+2 is '}', '['+2 is ']'
}

func skipSpace(in *bufio.Reader) (byte, error) {
	for {
		c, err := in.ReadByte()
		if err != nil {
			return 0, err
		}
		if c != ' ' && c != '\n' && c != '\t' && c != '\r' {
			return c, nil
		}
	}
}

func readNode(in *bufio.Reader) (*jsonNode, error) {
	c, err := skipSpace(in)
	if err != nil {
		return nil, err
	}
	if c != '{' && c != '[' {
		in.UnreadByte()
		s, err := readScalar(in)
		return &jsonNode{scalar: s}, err
	}
	n := &jsonNode{open: c}
	for {
		d, err := skipSpace(in)
		switch {
		case err != nil:
			return nil, err
		case d == c+2 && len(n.members) == 0:
			return n, nil
		}
		in.UnreadByte()
		var m member
		if c == '{' {
			if m.name, err = readScalar(in); err != nil {
				return nil, err
			}
			if d, err := skipSpace(in); err != nil || d != ':' {
				return nil, fmt.Errorf("want ':' after %s", m.name)
			}
		}
		if m.value, err = readNode(in); err != nil {
			return nil, err
		}
		n.members = append(n.members, m)
		switch d, err = skipSpace(in); {
		case err != nil:
			return nil, err
		case d == c+2:
			return n, nil
		case d != ',':
			return nil, fmt.Errorf("want ',' or the end after %s", m.value.flat())
		}
	}
}

// readScalar reads a string with its quotes, or what stands up to the next
// delimiter.
func readScalar(in *bufio.Reader) (string, error) {
	var b []byte
	quoted := false
	for {
		c, err := in.ReadByte()
		if err != nil {
			return "", err
		}
		switch {
		case quoted && c == '\\':
			d, err := in.ReadByte()
			if err != nil {
				return "", err
			}
			b = append(b, c, d)
			continue
		case c == '"' && (quoted || len(b) == 0):
			b = append(b, c)
			if quoted {
				return string(b), nil
			}
			quoted = true
			continue
		case !quoted && strings.IndexByte(" \n\t\r,:]}", c) >= 0 && !bytes.ContainsRune(b, '<'),
			!quoted && strings.IndexByte(" \n\t\r,]}", c) >= 0:
			in.UnreadByte()
			if len(b) == 0 {
				return "", fmt.Errorf("want a value before %q", c)
			}
			return string(b), nil
		}
		b = append(b, c)
	}
}
