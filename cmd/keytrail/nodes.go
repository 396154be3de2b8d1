package main

import (
	"fmt"
	"net/url"
	"time"

	"github.com/spf13/cobra"
)

// nodeView is one run of a node as control shows it; null members stay nil.
type nodeView struct {
	Node        string  `json:"node"`
	Instance    string  `json:"instance"`
	State       string  `json:"state"`
	Applied     *uint64 `json:"applied"`
	RecordAgeMS *int64  `json:"record_age_ms"`
	LifeMS      *int64  `json:"life_ms"`
	Epoch       *int64  `json:"epoch"`
	Decisions   *uint64 `json:"decisions"`
	Release     string  `json:"release"`
}

func (a *app) nodesCmd() *cobra.Command {
	var wide bool
	c := &cobra.Command{Use: "nodes", Short: "Show the nodes: who is live, up to where, and how old its record is", Args: none,
		Long: `Show every run of every node that has a record in the log of leases. The age of a
record is how long this control has seen no newer one, by its own clock. A node is
live while its record is younger than its life, ended when it has said so, and
lapsed when it has not been heard of for its life: it answers no more. RELEASE is
the release whose events it reads: newer events are written once every node reads them.`,
		RunE: func(c *cobra.Command, _ []string) error {
			head := "NODE\tSTATE\tAPPLIED\tRECORD\tLIFE\tEPOCH\tDECISIONS\tRELEASE"
			if wide {
				head += "\tINSTANCE"
			}
			return table(c.Context(), a, "", "/v1/nodes", url.Values{}, false, head, func(n *nodeView) string {
				row := cells(n.Node, n.State, number(n.Applied), millis(n.RecordAgeMS), millis(n.LifeMS), number(n.Epoch), number(n.Decisions), dash(n.Release))
				if wide {
					row += "\t" + cells(dash(n.Instance))
				}
				return row
			})
		}}
	c.Flags().BoolVar(&wide, "wide", false, "show the id of each run too")
	return c
}

// number prints a number that may be null.
func number[N int64 | uint64](n *N) string {
	if n == nil {
		return "-"
	}
	return fmt.Sprint(*n)
}

// millis prints a time of so many milliseconds, in seconds where it is longer.
func millis(n *int64) string {
	if n == nil {
		return "-"
	}
	d := time.Duration(*n) * time.Millisecond
	if d >= 10*time.Second {
		d = d.Round(time.Second)
	}
	return d.String()
}
