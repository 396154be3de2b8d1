package main

import (
	"crypto/rand"
	"fmt"
	"regexp"

	"github.com/spf13/cobra"
	"golang.org/x/crypto/bcrypt"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/eventlog/server"
	"github.com/keytrail/keytrail/events/input"
	"github.com/keytrail/keytrail/internal/files"
)

func (a *app) logCredentialCmd() *cobra.Command {
	var file, variable string
	c := &cobra.Command{Use: "credential NODE", Short: "Make the credential of a verifier node", Args: exactly("NODE"),
		Long: `Make the credential of a verifier node: a password of its own, in a new file, and
the account that lets it in, which is printed. The account has a hash of the
password, and lets the node read the log and append to its own record.

Append what is printed to nodes.conf on every server of the log. 'keytrail log'
reads the file when it changes, nats-server at SIGHUP. Give the password's file to
the verifier as KEYTRAIL_NODE_PASSWORD_FILE. To revoke the credential, remove the
account from nodes.conf: the servers close its connections.`,
		Example: `  keytrail log credential verifier-3 >> nodes.conf
  KEYTRAIL_NODE_PASSWORD_FILE=verifier-3.password keytrail verifier --name verifier-3`,
		RunE: func(_ *cobra.Command, args []string) error {
			node := events.NodeID(args[0])
			if variable != "" {
				if !variableName.MatchString(variable) {
					return usageError{fmt.Errorf("--variable %s: want the name of a variable, as KEYTRAIL_VERIFIER_3_PASSWORD", input.Echo(variable))}
				}
				text, err := server.NodeConf(node, "$"+variable)
				if err != nil {
					return usageError{err}
				}
				fmt.Fprint(a.out, text)
				return nil
			}
			// A password of 130 random bits needs no slow hash: nobody can try them all.
			password := "p" + rand.Text()
			hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
			if err != nil {
				return err
			}
			text, err := server.NodeConf(node, string(hash))
			if err != nil {
				return usageError{err}
			}
			if file == "" {
				file = args[0] + ".password"
			}
			out, err := files.Create(file, false)
			if err != nil {
				return err
			}
			defer out.Close()
			if _, err := out.Write([]byte(password + "\n")); err != nil {
				return err
			}
			if err := out.Commit(); err != nil {
				return err
			}
			fmt.Fprint(a.out, text)
			return nil
		}}
	c.Flags().StringVar(&file, "out", "", "new file for the password, mode 0600 (default: NODE.password)")
	c.Flags().StringVar(&variable, "variable", "", "make no password: the servers find it in this variable of their environment")
	return c
}

var variableName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
