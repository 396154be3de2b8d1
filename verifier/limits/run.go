package limits

import (
	"context"
	"log/slog"
	"time"

	"github.com/keytrail/keytrail/events"
)

// Run asks for the node, and takes the answers, until ctx ends; then it gives back what the
// node holds. now is the time since the node's start, never less than what has passed. It
// returns ctx's error, or why it cannot hear. The process must stop serving before it ends
// ctx.
func (c *Client) Run(ctx context.Context, node events.NodeID, mail events.LimitMail, now func() time.Duration) error {
	hearing, stop := context.WithCancel(ctx)
	defer stop()
	answers := make(chan answer, 16)
	deaf := make(chan error, 1)
	go func() {
		deaf <- mail.HearLimits(hearing, node, func(body []byte) {
			if a, err := decodeAnswer(body); err == nil {
				select {
				case answers <- a:
				case <-hearing.Done():
				}
			}
		})
	}()
	defer func() { stop(); <-deaf }()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		q := c.ask(now())
		if q != nil {
			_ = mail.AskLimits(node, encode(q)) // who hears no answer asks again
			timer.Reset(AnswerWait)
		} else {
			timer.Reset(c.pause())
		}
		for waits := true; waits; {
			select {
			case <-ctx.Done():
				if q := c.giveBack(now()); q != nil {
					_ = mail.AskLimits(node, encode(q))
				}
				return ctx.Err()
			case err := <-deaf:
				deaf <- err
				if ctx.Err() != nil {
					return ctx.Err()
				}
				return err
			case a := <-answers:
				waits = !c.heard(&a, now()) // late, or of another run of the node
			case <-c.kicked(q):
				waits = false
			case <-timer.C:
				if waits = false; q != nil {
					c.lost()
				}
			}
		}
	}
}

// kicked is where a request says that an ask is due; not while one is in flight.
func (c *Client) kicked(inFlight *ask) <-chan struct{} {
	if inFlight != nil {
		return nil
	}
	return c.kick
}

// pause is how long nothing may be due, but for what a request says.
func (c *Client) pause() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.urgent) > 0 {
		return pace
	}
	if len(c.active) > 0 || c.away.Load() {
		return sweepEvery
	}
	return forget
}

// giveBack returns the ask that gives everything back, nil if there is nothing.
func (c *Client) giveBack(now time.Duration) *ask {
	c.away.Store(true)
	c.tellAll()
	c.number++
	q := &ask{Instance: c.instance, Number: c.number}
	for _, l := range c.active {
		l.mu.Lock()
		if now < l.ends && l.tokens > 0 && len(q.Buckets) < maxBuckets {
			q.Buckets = append(q.Buckets, askBucket{ID: l.id, Of: l.of, Back: l.tokens})
		}
		l.tokens, l.ends = 0, 0
		l.mu.Unlock()
	}
	if len(q.Buckets) == 0 {
		return nil
	}
	return q
}

// ServiceConfig is what a Service needs; all but Logger is required.
type ServiceConfig struct {
	Node         events.NodeID
	Instance     events.InstanceID // of this run, and of nothing else: no Client has it
	Dir          Directory
	Wanted       func() bool // whether a keyspace has exact limits: else nobody is appointed
	Appointments events.Appointments
	// Confirm proves a floor that is not older than the call, as verifier.Node does.
	Confirm func(context.Context) (events.Floor, error)
	Mail    events.LimitMail
	// Steady is a clock that nobody can set; it may stand still while the machine is
	// suspended. Passed never shows less than what has passed.
	Steady, Passed func() time.Duration

	// Save keeps the account of an allocator that stops in order, Load returns what Save
	// has kept last, also in an earlier process; nil if there is nothing. Whatever happens
	// to it, no limit is exceeded: an account is of use to the next appointed allocator
	// alone. nil = buckets start empty after each start.
	Save func([]byte) error
	Load func() ([]byte, error)

	Logger *slog.Logger // default slog.Default()
}

// Service is a process that may lease the tokens of limits. Any number of them may run; one
// is appointed, and another when it does not answer any more.
type Service struct {
	cfg   ServiceConfig
	nudge chan struct{} // a proof is wanted now

	term    atomicTerm
	counts  serviceCounts
	probing uint64
	probed  chan struct{}

	// Of Run.
	handed *handover // by the process before this one; nil = nothing
	swept  time.Duration
}

// NewService returns a service that does not run yet.
func NewService(cfg ServiceConfig) *Service {
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	return &Service{cfg: cfg, nudge: make(chan struct{}, 1), probed: make(chan struct{}, 1)}
}

// term is one appointment. It is immutable, but for its allocator.
type term struct {
	*allocator
	from  time.Duration // by Steady: it answers nothing before
	until time.Duration // by Passed: or after
}

// proveEvery is how often a service proves that it is appointed: a quarter of its
// authority.
const proveEvery = Authority / 4

// sweepBuckets is how often the buckets are forgotten that nobody uses.
const sweepBuckets = 5 * time.Second

// Run takes part until ctx ends. It returns ctx's error, or why it cannot hear. It runs
// once: what it has handed over is another's.
func (s *Service) Run(ctx context.Context) error {
	running, stop := context.WithCancel(ctx)
	defer stop()
	s.handed = s.handedOver(ctx)
	deaf := make(chan error, 2)
	asks, served := newInbox(), make(chan struct{})
	go func() { deaf <- s.cfg.Mail.ServeLimits(running, asks.put) }()
	go func() { deaf <- s.cfg.Mail.HearLimits(running, s.cfg.Node, s.hear) }()
	go func() { defer close(served); asks.run(running, s.serve) }()
	defer func() {
		stop()
		<-deaf
		<-deaf
		<-served
		s.handOver(ctx)
	}()
	tick := time.NewTicker(proveEvery)
	defer tick.Stop()
	for {
		if s.cfg.Wanted() {
			s.prove(ctx)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-deaf:
			deaf <- err
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return err
		case <-tick.C:
		case <-s.nudge:
		}
		if now, t := s.cfg.Steady(), s.term.Load(); t != nil && now >= t.from {
			t.expire(now)
			if now >= s.swept+sweepBuckets {
				s.swept = now
				t.sweep(now)
			}
		}
	}
}

// prove finds out who is appointed. The clock is read before anything is asked.
func (s *Service) prove(ctx context.Context) {
	asked := s.cfg.Passed()
	floor, err := s.cfg.Confirm(ctx)
	if err != nil || floor.Seq == 0 { // without a record of the lease nothing is proved
		return
	}
	t := s.term.Load()
	switch {
	case floor.Allocator == s.cfg.Instance:
		if t == nil { // the outcome of the appointment was not known
			t = s.afresh(floor.Size)
		}
		t.proved(floor.Size)
		s.term.Store(&term{t.allocator, t.from, asked + Authority})
	case t != nil:
		s.say(ctx, slog.LevelWarn, "another process leases the tokens of limits now", floor.Allocator)
		s.term.Store(nil)
	case floor.Allocator == (events.InstanceID{}): // nobody has ever leased a token: every bucket is full
		s.appoint(ctx, floor.Allocator, func(events.Seq) *term { return s.begin(newAllocator(s.cfg.Dir, s.cfg.Steady(), 0), s.cfg.Steady()) })
	case s.handed != nil && floor.Allocator == s.handed.Allocator:
		s.appoint(ctx, floor.Allocator, func(events.Seq) *term { return s.begin(resume(s.cfg.Dir, s.handed, s.cfg.Steady()), s.cfg.Steady()) })
	case !s.answers(ctx):
		s.appoint(ctx, floor.Allocator, s.afresh)
	}
}

// appoint appoints this process in the place of was; begin returns its term.
func (s *Service) appoint(ctx context.Context, was events.InstanceID, begin func(size events.Seq) *term) {
	named, err := s.cfg.Appointments.Appoint(ctx, was, s.cfg.Instance)
	if err != nil {
		s.cfg.Logger.LogAttrs(ctx, slog.LevelDebug, "not appointed to lease the tokens of limits", slog.Any("err", err))
		return
	}
	s.say(ctx, slog.LevelInfo, "this process leases the tokens of limits from now on", s.cfg.Instance)
	s.term.Store(begin(named.Size))
	s.handed = nil
	s.prove(ctx)
}

func (s *Service) say(ctx context.Context, level slog.Level, message string, who events.InstanceID) {
	s.cfg.Logger.LogAttrs(ctx, level, message, slog.String("allocator", who.String()))
}

// afresh returns the term of an appointment that is known of now, by the floor that has so
// many events: of an allocator that knows nothing of the one before it.
func (s *Service) afresh(size events.Seq) *term {
	from := s.cfg.Steady() + takeover
	return s.begin(newAllocator(s.cfg.Dir, from, size), from)
}

// begin returns the term of the allocator. Its authority is still to be proved.
func (s *Service) begin(a *allocator, from time.Duration) *term {
	s.counts.appointed.Add(1)
	return &term{a, from, 0}
}

// proveSoon has Run prove the appointment without waiting for its time.
func (s *Service) proveSoon() {
	select {
	case s.nudge <- struct{}{}:
	default:
	}
}

// serve answers an ask, if this process may.
func (s *Service) serve(node events.NodeID, body []byte) {
	t := s.term.Load()
	if t == nil {
		return
	}
	q, err := decodeAsk(body)
	now := s.cfg.Steady()
	if err != nil || s.cfg.Passed() >= t.until {
		return
	}
	if now < t.from { // nobody must take it for gone
		_ = s.cfg.Mail.AnswerLimits(node, encode(&answer{Instance: q.Instance, Number: q.Number, Waits: true}))
		return
	}
	a, ok, unproved := t.serve(node, &q, now)
	if unproved {
		s.proveSoon()
	}
	if ok {
		s.counts.asks.Add(1)
		_ = s.cfg.Mail.AnswerLimits(node, encode(&a)) // else the node asks again
	}
}

// probes is how often an allocator is asked before it counts as gone.
const probes = 3

// answers reports whether an allocator answers.
func (s *Service) answers(ctx context.Context) bool {
	select {
	case <-s.probed: // an earlier one
	default:
	}
	for range probes {
		s.probing++
		_ = s.cfg.Mail.AskLimits(s.cfg.Node, encode(&ask{Instance: s.cfg.Instance, Number: s.probing}))
		wait := time.NewTimer(AnswerWait)
		select {
		case <-s.probed:
			wait.Stop()
			return true
		case <-wait.C:
		case <-ctx.Done():
			wait.Stop()
			return true // it is not for a process that stops to take over
		}
	}
	return false
}

func (s *Service) hear(body []byte) {
	if a, err := decodeAnswer(body); err == nil && a.Instance == s.cfg.Instance {
		select {
		case s.probed <- struct{}{}:
		default:
		}
	}
}
