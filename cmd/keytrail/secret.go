package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/internal/files"
)

// secretFlag says where a command reads a secret: never from its arguments, which
// every user of the machine can read.
type secretFlag struct{ file string }

func (s *secretFlag) register(c *cobra.Command) {
	c.Flags().StringVar(&s.file, "secret-file", "", "file that holds the key's secret; - is standard input (default: KEYTRAIL_SECRET)")
	c.Args = func(c *cobra.Command, args []string) error {
		if len(args) == 0 {
			return nil
		}
		return usageError{fmt.Errorf("want no arguments: a secret comes from --secret-file or KEYTRAIL_SECRET. "+
			"Every user of the machine can read arguments: if this was one, rotate its key; see '%s --help'", c.CommandPath())}
	}
}

// maxSecretFile bounds what is read of a file that should hold a secret, in bytes.
const maxSecretFile = 4 << 10

// read returns the secret, zero when there is none.
func (s *secretFlag) read(in io.Reader) (events.Secret, error) {
	if s.file == "" {
		return events.NewSecret(os.Getenv("KEYTRAIL_SECRET")), nil
	}
	var text string
	var err error
	if s.file == "-" {
		var b []byte
		b, err = io.ReadAll(io.LimitReader(in, maxSecretFile+1))
		text = string(b)
	} else {
		text, err = files.ReadSecret(s.file)
	}
	if err != nil {
		return events.Secret{}, fmt.Errorf("read the secret: %w", err)
	}
	if len(text) > maxSecretFile {
		return events.Secret{}, fmt.Errorf("--secret-file holds more than %d bytes: want one secret", maxSecretFile)
	}
	text = strings.TrimSpace(text)
	if text == "" {
		return events.Secret{}, errors.New("--secret-file holds nothing: want one secret")
	}
	return events.NewSecret(text), nil
}

// keyPath returns the path of the key's endpoint. What is no id does not leave this
// process: on its way a path is written into the logs of proxies.
func keyPath(id string) (string, error) {
	if _, err := events.ParseKeyID(id); err != nil {
		return "", usageError{errors.New("KEY: want the id of a key, key_ and 26 characters, as `keytrail key list` prints it. " +
			"What was given is not repeated: it may be a secret. Every user of the machine can read arguments: if it was one, rotate its key")}
	}
	return "/v1/keys/" + id, nil
}

// noPassword refuses a flag whose value is an address with a password in it.
func noPassword(c *cobra.Command) (err error) {
	c.Flags().Visit(func(f *pflag.Flag) {
		if passwordIn.MatchString(f.Value.String()) && err == nil {
			err = usageError{fmt.Errorf("--%s holds a password, and every user of the machine can read arguments: give it by the environment; see '%s --help'", f.Name, c.CommandPath())}
		}
	})
	return err
}

var passwordIn = regexp.MustCompile(`://[^/?#]*:[^/?#]+@`)

// withoutArguments takes from an error what it repeats of the command line and
// could be a secret. An error about the command line itself repeats no long word of
// it, but for names of root's flags; another one may name files and addresses.
func withoutArguments(msg string, root *cobra.Command, args []string, usage bool) string {
	for _, arg := range args {
		name, value, _ := strings.Cut(arg, "=")
		if flag := strings.TrimLeft(name, "-"); flag != name {
			if name = flag; hasFlag(root, flag) {
				name = ""
			}
		}
		for _, text := range []string{name, value} {
			for _, word := range strings.FieldsFunc(text, func(r rune) bool { return r == '=' || r == ',' || r == ' ' }) {
				if couldBeSecret(word, usage) {
					msg = strings.ReplaceAll(msg, word, "[not repeated]")
				}
			}
		}
	}
	return msg
}

// hasFlag reports whether the command or one below it has a flag of this name.
func hasFlag(c *cobra.Command, name string) bool {
	return c.Flags().Lookup(name) != nil || c.PersistentFlags().Lookup(name) != nil ||
		slices.ContainsFunc(c.Commands(), func(sub *cobra.Command) bool { return hasFlag(sub, name) })
}

// couldBeSecret reports whether a word of the command line is long enough for a
// secret and no id of ours, and, unless usage, no path, address or name in words.
func couldBeSecret(word string, usage bool) bool {
	if len(word) < events.MinSecret || !usage && (strings.ContainsAny(word, "/.:") || !strings.ContainsAny(word, "0123456789")) {
		return false
	}
	_, err := events.ParseKeyID(word)
	return err != nil
}
