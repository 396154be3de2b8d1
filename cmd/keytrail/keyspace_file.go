package main

import (
	"errors"
	"io"
	"io/fs"
	"os"

	"github.com/keytrail/keytrail/cmd/client"
	"github.com/keytrail/keytrail/cmd/internal/regimes"
	"github.com/keytrail/keytrail/events/input"
)

// readKeyspace reads a document and checks it. The error lists its faults, as
// regimes.Faults.
func (a *app) readKeyspace(file string) (*regimes.Document, error) {
	in := a.in
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, unreadable(file, err)
		}
		defer f.Close()
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, regimes.MaxBytes+1))
	if err != nil {
		return nil, unreadable(file, err)
	}
	doc, err := regimes.Read(shown(file), b)
	if err != nil {
		return nil, err
	}
	return doc, doc.Check().OrNil()
}

func unreadable(file string, err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		err = p.Err // the name is in the fault
	}
	return regimes.Faults{{File: shown(file), Message: "cannot be read: " + err.Error(), Source: "file"}}
}

// shown is how a message names a file.
func shown(file string) string {
	if file == "-" {
		return "stdin"
	}
	return file
}

// onLines tells the bad fields of a server's answer on the lines of the document.
// The reason is not from there.
func onLines(doc *regimes.Document, err error) error {
	var p *client.Problem
	if !errors.As(err, &p) || len(p.Errors) == 0 {
		return err
	}
	var fields, others input.FieldErrors
	for _, e := range p.Errors {
		if e.Field == "reason" {
			e.Field = "--reason"
			others = append(others, e)
		} else {
			fields = append(fields, e)
		}
	}
	rest := *p
	rest.Errors = others
	return errors.Join(doc.Locate("server", fields).OrNil(), &rest)
}
