package events

// Ancestor is a log that another was restored from. The restored log holds the
// ancestor's first Size events, its first Reads events of who read the record, and the
// messages of its use stream up to the sequence Uses, under the same sequences. What the ancestor took after that is not
// in it.
type Ancestor struct {
	Log   LogID `json:"log"`
	Size  Seq   `json:"size"`
	Reads Seq   `json:"reads"`
	Uses  Seq   `json:"uses"`
}

// Lineage is the identity of a log, and of those that it was restored from.
type Lineage struct {
	Log      LogID
	Restored []Ancestor // the newest first
}

// LineageOf returns the lineage of a log that an events.Log knows of.
func LineageOf(log Log) Lineage {
	l := Lineage{Log: log.ID()}
	if r, ok := log.(interface{ Restored() []Ancestor }); ok {
		l.Restored = r.Restored()
	}
	return l
}

// Holds reports whether a batch of uses that names log belongs at message seq of the
// use stream: it is of this log, or was restored with it.
func (l *Lineage) Holds(log LogID, seq Seq) bool {
	if log == l.Log {
		return true
	}
	for _, a := range l.Restored {
		if log == a.Log && seq <= a.Uses {
			return true
		}
	}
	return false
}
