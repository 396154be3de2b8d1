.DEFAULT_GOAL := help
.PHONY: help up test race lint bench fuzz faults soak gen image containers smoke traefik

help: ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

up: ## run everything on this machine
	go run ./cmd/keytrail up

test: ## the whole suite
	go test ./...

race: ## the suite under the race detector
	go test -race -short ./...

lint: ## vet and staticcheck
	go vet ./... && go run honnef.co/go/tools/cmd/staticcheck@v0.8.2 ./...

bench: ## every benchmark once; compare ratios within one run
	go test -run '^$$' -bench . -benchtime 1s ./...

fuzz: ## each fuzzer for 20 s
	@for p in $$(go list ./...); do for f in $$(go test -list '^Fuzz' $$p | grep ^Fuzz); do go test -run '^$$' -fuzz "^$$f$$" -fuzztime 20s $$p || exit 1; done; done

faults: ## the fault matrix, ROUNDS rounds in each cell: what was tried, with which seed, and how much was wrong
	cmd/faults.sh $(ROUNDS)

soak: ## load, changes and faults on a whole deployment for SOAK, 30m: ends in a check of everything
	go test ./cmd/keytrail -run '^TestSoak$$' -count=1 -v -timeout 4h -args -soak $(SOAK)

gen: ## what is generated: the digests of the published shapes
	go generate ./...

containers: ## the contract tests on NATS and ClickHouse in containers (stand-ins)
	deploy/standin/test.sh

smoke: ## the compose deployment brought up, broken and mended
	deploy/smoke.sh

traefik: ## the Traefik of the gateways' tests, from Go modules, to bin/traefik: about 7 minutes of CPU
	deploy/gateways/traefik/build.sh bin/traefik

image: ## the release image: static, non-root, without the local engine
	install -d -m 700 bin/image/data
	CGO_ENABLED=0 go build -trimpath -tags noengine -ldflags "-s -w -X github.com/keytrail/keytrail/cmd/internal/ops.release=$(RELEASE)" -o bin/image/keytrail ./cmd/keytrail
	docker build -t $(IMAGE) -f deploy/Dockerfile bin/image

IMAGE ?= keytrail:dev
ROUNDS ?= 200
SOAK ?= 30m
RELEASE ?=
