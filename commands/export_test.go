package commands

// SetMost bounds how many timers are set at once.
func (x *Expirer) SetMost(n int) { x.most = n }
