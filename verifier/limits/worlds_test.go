package limits

import (
	"flag"
	"math/rand/v2"
	"testing"
	"time"
)

var (
	seedFlag   = flag.Uint64("limits-seed", 0, "of the first simulated deployment; 0 = 1")
	worldsFlag = flag.Int("limits-worlds", 0, "how many deployments are simulated; 0 = 60, with -short 6")
)

func worlds(t *testing.T) (first uint64, n int) {
	first, n = max(*seedFlag, 1), *worldsFlag
	if n == 0 {
		if n = 60; testing.Short() {
			n = 6
		}
	}
	return first, n
}

// troubled runs a deployment under everything that can go wrong.
func troubled(t *testing.T, seed uint64, m mutant) float64 {
	r := rand.New(rand.NewPCG(seed, 9))
	n := sizes[r.IntN(len(sizes))]
	nodes := 2 + r.IntN(8)
	d := newDeployment(seed, nodes, n, m)
	d.trouble = true
	perStep := float64(n.PerMinute) / 60_000
	weights := make([]float64, nodes)
	quiet := false
	for step := range 20_000 {
		if step%500 == 0 {
			for i := range weights {
				weights[i] = []float64{0, 0, .2, 1, 3}[r.IntN(5)]
			}
			quiet = r.IntN(4) == 0
		}
		demand := make([]int, nodes)
		for i := range demand {
			x := 10 * perStep / float64(nodes) * weights[i]
			switch {
			case quiet && step%500 > 480: // a flood after a calm
				x = float64(n.Burst) / 4
			case quiet:
				x = perStep / 50
			}
			demand[i] = int(x + r.Float64())
		}
		d.step(t, demand)
	}
	return d.excess()
}

// ambushed runs a deployment in rounds: one node is warm and holds tokens, then it is cut
// off or paused, or the allocator is replaced. The others are calm until the bucket is
// full as the allocator sees it, and then all are flooded at once.
func ambushed(t *testing.T, seed uint64, m mutant) float64 {
	r := rand.New(rand.NewPCG(seed, 11))
	n := sizes[r.IntN(len(sizes))]
	nodes := 2 + r.IntN(3)
	d := newDeployment(seed, nodes, n, m)
	perStep := float64(n.PerMinute) / 60_000
	for range 6 {
		warm, trickle := r.IntN(nodes), 20+r.IntN(200)
		event := 300 + r.IntN(30)
		flood := event + 100 + r.IntN(1500)
		pause := false
		for step := range 6000 {
			demand := make([]int, nodes)
			switch {
			case step < 300:
				demand[warm] = int(0.8*perStep + r.Float64())
			case step >= flood && step < flood+10:
				for i := range demand {
					demand[i] = int(n.Burst)/4 + 1
				}
			case step%trickle == 0:
				demand[warm] = 1
			}
			if node := d.nodes[warm]; step == event {
				switch r.IntN(5) {
				case 4:
					node.cutTo = d.now + 2*time.Second
					d.handOver()
				case 0:
					node.cutTo = d.now + 2*time.Second
				case 1:
					pause = true
				case 2:
					node.cutTo = d.now + 2*time.Second
					d.appoint()
				case 3:
					d.serving[len(d.serving)-1].until = d.now
					d.appoint()
				}
			}
			d.step(t, demand)
			if pause && d.nodes[warm].flight != nil { // it has asked, and the answer waits for it
				pause = false
				d.nodes[warm].pausedTo = d.now + time.Duration(flood-step)*time.Millisecond // and comes with the flood
			}
		}
	}
	return d.excess()
}

// replaced runs a deployment whose allocators follow soon upon each other, in order and
// not, while more is asked for than the limit allows.
func replaced(t *testing.T, seed uint64, m mutant) float64 {
	r := rand.New(rand.NewPCG(seed, 12))
	n := sizes[r.IntN(len(sizes))]
	nodes := 2 + r.IntN(3)
	d := newDeployment(seed, nodes, n, m)
	perStep := float64(n.PerMinute) / 60_000
	next, calm := 500, false
	for step := range 15_000 {
		if step == next {
			switch r.IntN(3) {
			case 0: // the one before goes on for a while
				d.appoint()
			case 1:
				d.serving[len(d.serving)-1].until = d.now
				d.appoint()
			case 2:
				d.handOver()
			}
			next += r.IntN(1 + []int{200, 2000, 5000}[r.IntN(3)])
			calm = r.IntN(3) == 0
		}
		demand := make([]int, nodes)
		for i := range demand {
			switch {
			case !calm:
				demand[i] = int(2*perStep + r.Float64())
			case next-step < 20: // until it is full
				demand[i] = int(n.Burst) / 4
			}
		}
		d.step(t, demand)
	}
	return d.excess()
}

// excessOf runs the deployment of the seed.
func excessOf(t *testing.T, seed uint64, m mutant) float64 {
	switch seed % 3 {
	case 0:
		return ambushed(t, seed, m)
	case 1:
		return troubled(t, seed, m)
	}
	return replaced(t, seed, m)
}

func TestNeverAboveTheLimit(t *testing.T) {
	first, n := worlds(t)
	for i := range n {
		seed := first + uint64(i)
		if x := excessOf(t, seed, sound); x > 0 {
			t.Errorf("seed %d: %.2f tokens beyond burst + rate × t", seed, x)
		}
	}
}

// steady runs a deployment in which nothing fails at a demand of so many times the limit,
// skewed over the nodes.
func steady(t *testing.T, seed uint64, n Numbers, nodes int, times float64, m mutant) *deployment {
	d := newDeployment(seed, nodes, n, m)
	r := rand.New(rand.NewPCG(seed, 10))
	perStep := float64(n.PerMinute) / 60_000
	weights, sum := make([]float64, nodes), 0.0
	for i := range weights {
		weights[i] = r.ExpFloat64()
		sum += weights[i]
	}
	owed := make([]float64, nodes)
	for range 20_000 {
		demand := make([]int, nodes)
		for i := range demand {
			owed[i] += times * perStep * weights[i] / sum * 2 * r.Float64()
			demand[i] = int(owed[i])
			owed[i] -= float64(demand[i])
		}
		d.step(t, demand)
	}
	return d
}

func TestSteadyDemandGetsWhatOneBucketGives(t *testing.T) {
	seed, _ := worlds(t)
	list := sizes
	if testing.Short() {
		list = sizes[:3]
	}
	for _, n := range list {
		for _, times := range []float64{0.5, 0.95, 1.1, 10} {
			for _, nodes := range []int{1, 4, 16} {
				d := steady(t, seed, n, nodes, times, sound)
				if x := d.excess(); x > 0 {
					t.Errorf("seed %d: %+v, %d nodes, %.2f times the limit: %.2f tokens beyond it", seed, n, nodes, times, x)
				}
				got := d.from(0)
				t.Logf("seed %d: %+v, %d nodes, %.2f times the limit: %.4f", seed, n, nodes, times, got)
				if got < 0.99 {
					t.Errorf("seed %d: %+v, %d nodes, %.2f times the limit: %.4f of what one bucket admits", seed, n, nodes, times, got)
				}
			}
		}
	}
}

// TestTheSimulationFindsBrokenRules: each rule that the argument needs is broken once. The
// seed that shows it first is tried first.
func TestTheSimulationFindsBrokenRules(t *testing.T) {
	first, _ := worlds(t)
	for m, shows := range map[mutant]uint64{refillsPast: 3, shortLife: 6, startsFull: 1, startsAtOnce: 33, forgetsToTell: 7, longLife: 24, creditsLate: 19,
		resumesAtOnce: 6, forgetsLeased: 6} {
		t.Run(string(m), func(t *testing.T) {
			for i := range uint64(90) {
				seed := first + i
				if i == 0 {
					seed = shows
				}
				if x := excessOf(t, seed, m); x > 0 {
					t.Logf("seed %d: %.2f tokens beyond burst + rate × t", seed, x)
					return
				}
			}
			t.Errorf("seeds %d to %d show nothing", first, first+89)
		})
	}
	t.Run(string(hoarder), func(t *testing.T) {
		if got := steady(t, first, Numbers{60_000, 400}, 16, 1.1, hoarder).from(0); got > 0.98 {
			t.Errorf("seed %d: nodes that hoard get %.4f of what one bucket admits", first, got)
		} else {
			t.Logf("seed %d: %.4f of what one bucket admits", first, got)
		}
	})
}
