package keyspace

import "slices"

// Compiled is one version of a definition, made ready for use: what is asked of it
// for each request is worked out once, when the definition is folded. It is
// immutable, and may be shared. Its zero value stands for a keyspace that is not
// known: the defaults, which deny.
type Compiled struct {
	Definition
	Retired   []Plan    // plans that earlier versions had, with their last numbers
	Order     []Check   // the order of checks
	Usual     bool      // Order is that of DefaultChecks
	Envelope  *Envelope // of refusals; nil = problem details
	Checksums bool      // a key type has a checksum: only then can WrongChecksum say anything

	scopes   catalogue
	ceilings map[string]map[string]bool // of the key types that have one, with all that it implies
	answers  map[string]*answer         // by reason
	forms    []form                     // of all key types, in their order
}

// answer is an ErrorAnswer whose message is read.
type answer struct {
	*ErrorAnswer
	message template
}

// Compile makes d ready for use. retired are the plans that earlier versions had.
// A part of d that is not valid is taken as left out; Validate says which those are.
func Compile(d Definition, retired []Plan) *Compiled {
	c := &Compiled{
		Definition: d, Retired: retired, Order: d.Order(), scopes: d.catalogue(),
		ceilings: map[string]map[string]bool{}, answers: map[string]*answer{},
	}
	c.Usual = slices.Equal(c.Order, DefaultChecks())
	if d.Errors.Envelope != nil {
		c.Envelope, _ = CompileEnvelope(d.Errors.Envelope)
	}
	for i := range d.KeyTypes {
		t := &d.KeyTypes[i]
		c.Checksums = c.Checksums || t.Checksum != ""
		c.forms = append(c.forms, t.forms()...)
		if _, again := c.ceilings[t.Name]; t.Ceiling == nil || again {
			continue
		}
		ceiling := map[string]bool{}
		for _, s := range c.scopes.expand(t.Ceiling) {
			ceiling[s] = true
		}
		c.ceilings[t.Name] = ceiling
	}
	for i := range d.Errors.Answers {
		a := &answer{ErrorAnswer: &d.Errors.Answers[i]}
		a.message, _ = parseTemplate(a.Message)
		for _, r := range a.Reasons {
			if c.answers[r] == nil {
				c.answers[r] = a
			}
		}
	}
	return c
}

// Expand is Definition.Expand.
func (c *Compiled) Expand(scopes []string) []string { return c.scopes.expand(scopes) }

// HasScope is Definition.HasScope.
func (c *Compiled) HasScope(s string) bool { return c.scopes[s] != nil }

// ScopeLevel is Definition.ScopeLevel.
func (c *Compiled) ScopeLevel(scope string) string {
	if s := c.scopes[scope]; s != nil {
		return s.level()
	}
	return ""
}

// Effective returns what a key of the type named keyType may do when it is
// granted scopes (its own and those of its roles): they and all that they imply,
// within the type's ceiling and within the catalogue, sorted. It is always asked
// of the current definition, so a scope that leaves the catalogue or rises above
// the ceiling leaves every key at once, whether it came directly or by a role.
// A type that is no longer defined may do nothing.
func (c *Compiled) Effective(keyType string, scopes []string) []string {
	if _, ok := c.Type(keyType); !ok || keyType == "" {
		return nil
	}
	ceiling, bounded := c.ceilings[keyType]
	return slices.DeleteFunc(c.Expand(scopes), func(s string) bool {
		return !c.HasScope(s) || bounded && !ceiling[s]
	})
}

// Resolve is Definition.Resolve, with the retired plans.
func (c *Compiled) Resolve(l *Limit) (perMinute, burst int64, ok bool) {
	return c.Definition.Resolve(l, c.Retired)
}

// Status returns the HTTP status that the keyspace itself gives the reason, 0 when
// it gives none.
func (c *Compiled) Status(reason string) int {
	if a := c.answers[reason]; a != nil {
		return a.ErrorAnswer.Status
	}
	return 0
}

// Answer replaces status, code and message of f where the keyspace has its own for
// the reason. The caller sets Title to that of the status afterwards.
func (c *Compiled) Answer(f *Failure) {
	a := c.answers[f.Reason]
	if a == nil {
		return
	}
	if a.Status != 0 {
		f.Status = a.Status
	}
	if a.Code != "" {
		f.Code = a.Code
	}
	if a.Message != "" {
		f.Message = string(a.message.fill(nil, f, nil))
	}
}

// TypeOf returns the key type whose form secret has, and the environment that
// its prefix names. It does not allocate.
func (c *Compiled) TypeOf(secret string) (t *KeyType, environment string, ok bool) {
	for i := range c.forms {
		if f := &c.forms[i]; f.match(secret) {
			return f.of, f.environment, true
		}
	}
	return nil, "", false
}

// WrongChecksum reports whether secret has the prefix and the length of a type with
// a checksum, and not its checksum: no key that this definition issues has it, so it
// can be refused without a look-up. A key that was imported, or issued before its
// type had the checksum, may have it. It does not allocate.
func (c *Compiled) WrongChecksum(secret string) bool {
	wrong := false
	for i := range c.forms {
		f := &c.forms[i]
		rest, ok := f.cut(secret)
		if !ok {
			continue
		}
		if f.of.Checksum.fits(rest) {
			return false
		}
		wrong = true
	}
	return wrong
}

// Find returns where what has the form of one of the key types begins and ends in
// text, in bytes: the first of the first type that is there. It does not allocate.
func (c *Compiled) Find(text string) (start, end int, ok bool) {
	for i := range c.forms {
		if start, end, ok = c.forms[i].find(text); ok {
			return start, end, true
		}
	}
	return 0, 0, false
}
