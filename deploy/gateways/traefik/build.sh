#!/bin/sh
# Builds the whole of Traefik from Go modules, for the tests of the gateways:
#
#   deploy/gateways/traefik/build.sh bin/traefik
#   KEYTRAIL_TEST_TRAEFIK=$PWD/bin/traefik go test -run Gateway ./cmd/keytrail
#
# What is left out are the DNS providers of its ACME client, some two hundred, which are
# most of what Traefik depends on. It takes about 7 minutes of CPU.
set -eu
out=$1
version=v3.7.13
case $out in /*) ;; *) out=$PWD/$out ;; esac
mkdir -p "$(dirname "$out")"
dir=$(mktemp -d)
trap 'chmod -R u+w "$dir"; rm -rf "$dir"' EXIT
cd "$dir"
export GOFLAGS=-mod=mod GOWORK=off

printf 'module build\n\ngo 1.26\n' >go.mod
source=$(go mod download -json "github.com/traefik/traefik/v3@$version" | sed -n 's/.*"Dir": "\(.*\)".*/\1/p')
# Its own list of modules, without the replacements, which do not hold for others.
sed -e 's/^module .*/module build/' -e '/^replace/,$d' "$source/go.mod" >go.mod
cat "$source/go.sum" >go.sum
lego=$(sed -n 's/^.*go-acme\/lego\/v5 \(v[^ ]*\).*/\1/p' go.mod)
lego=$(go mod download -json "github.com/go-acme/lego/v5@$lego" | sed -n 's/.*"Dir": "\(.*\)".*/\1/p')
cp -R "$lego" lego
chmod -R u+w lego
rm -r lego/providers/dns
mkdir lego/providers/dns
cat >lego/providers/dns/dns.go <<'GO'
package dns

import (
	"fmt"

	"github.com/go-acme/lego/v5/challenge"
)

func NewDNSChallengeProviderByName(name string) (challenge.Provider, error) {
	return nil, fmt.Errorf("built without the DNS provider %s", name)
}
GO
# Three empty types that Traefik keeps in a module of their own, which is not published.
mkdir ext
printf 'module github.com/traefik/traefik/dynamic/ext\n\ngo 1.25\n' >ext/go.mod
cat >ext/ext.go <<'GO'
package ext

type HTTP struct{}

type Router struct{}

type RouterIng struct{}

func (RouterIng) ToRouter() Router { return Router{} }
GO
go mod edit -require "github.com/traefik/traefik/v3@$version" \
	-exclude github.com/tencentcloud/tencentcloud-sdk-go@v3.0.83+incompatible \
	-replace github.com/traefik/traefik/dynamic/ext=./ext \
	-replace github.com/go-acme/lego/v5=./lego \
	-replace github.com/abbot/go-http-auth=github.com/containous/go-http-auth@v0.4.1-0.20200324110947-a37a7636d23e \
	-replace github.com/gorilla/mux=github.com/containous/mux@v0.0.0-20250523120546-41b6ec3aed59
go build -ldflags "-s -w -X github.com/traefik/traefik/v3/pkg/version.Version=$version" -o "$out" github.com/traefik/traefik/v3/cmd/traefik
"$out" version
