package loadtest

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
)

// HTTP returns a play for Main whose messages are requests of HTTP/1.1 as they stand on the
// wire. Each must be answered with 200.
func HTTP() func(*Load) error {
	open := map[string][]*Conn{}
	return func(l *Load) error {
		for len(open[l.Address]) < l.Conns {
			c, err := Dial(l.Address)
			if err != nil {
				return err
			}
			open[l.Address] = append(open[l.Address], c)
		}
		var next atomic.Int64
		var g errgroup.Group
		for i := range l.Conns {
			g.Go(func() error {
				for {
					n := int(next.Add(1)) - 1
					if n >= len(l.Messages) {
						return nil
					}
					c := open[l.Address][i]
					answer, body, err := c.Ask(l.Messages[n])
					if err != nil {
						return err
					}
					if answer.StatusCode != http.StatusOK {
						return fmt.Errorf("%s: %s", answer.Status, body)
					}
					if answer.Close { // some servers bound the requests of a connection
						c.Close()
						if open[l.Address][i], err = Dial(l.Address); err != nil {
							return err
						}
					}
				}
			})
		}
		return g.Wait()
	}
}

// Conn is a client that writes bytes and reads one answer. It costs next to nothing.
type Conn struct {
	net.Conn
	r *bufio.Reader
}

// Dial connects to host and port.
func Dial(address string) (*Conn, error) {
	c, err := net.Dial("tcp", address)
	if err != nil {
		return nil, err
	}
	return &Conn{c, bufio.NewReaderSize(c, 64<<10)}, nil
}

// Ask sends one request and returns the answer and its body.
func (c *Conn) Ask(request []byte) (*http.Response, []byte, error) {
	if _, err := c.Write(request); err != nil {
		return nil, nil, err
	}
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		return nil, nil, err
	}
	body, err := io.ReadAll(resp.Body)
	return resp, body, err
}
