package projections

import (
	"bytes"
	"fmt"
	"testing"
)

// Many keys share each shard of the table, in the order in which they came. An export has
// them in one order, whether its view was loaded, and grew, before or after them (P10).
func TestExportOfManyKeys(t *testing.T) {
	w, v := newWorld(t), NewKeys()
	w.define("ks", definition())
	for i := range 16 * shardCount {
		w.create("ks", "acme", fmt.Sprint(i), nil)
		if i == 8*shardCount {
			apply(t, v, w)
			v = reload(t, v, LoadKeys)
		}
	}
	apply(t, v, w)
	whole := NewKeys()
	apply(t, whole, w)
	if !bytes.Equal(export(t, v), export(t, whole)) {
		t.Error("two exports of one position differ")
	}
	if d := Difference(v, whole); d != "" {
		t.Error(d)
	}
}
