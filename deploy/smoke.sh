#!/usr/bin/env bash
# Brings docker-compose.yml up under a project name of its own, walks a key
# through its life with the command line, takes parts away one by one, and
# removes everything again. Exits non-zero at the first thing that is not as it
# should be. Needs docker-compose (1.29 or the plugin) and the images: `make
# image`, and either the vendors' images or deploy/standin/build.sh.
#
#   deploy/smoke.sh          some two minutes; every wait is bounded
set -euo pipefail
cd "$(dirname "$0")/.."

if docker compose version >/dev/null 2>&1; then compose=(docker compose); else compose=(docker-compose); fi
project="keytrail-smoke-$$"
work=$(mktemp -d)
deploy/env.sh >"$work/env"
cat >>"$work/env" <<'END'
CONTROL_PORT=17070
VERIFIER_1_PORT=17071
VERIFIER_2_PORT=17072
AUDITOR_PORT=17073
NATS_PORT=14222
MAX_STORE=1073741824
END
dc() { timeout 300 "${compose[@]}" -p "$project" --env-file "$work/env" "$@"; }

finish() {
	local code=$?
	if [ "$code" != 0 ]; then
		echo "FAILED after ${SECONDS}s; the last lines of the parts:"
		dc logs --no-color --tail=6 2>&1
	fi
	dc --profile cli down -v --timeout 10 >/dev/null 2>&1 || dc down -v
	rm -rf "$work"
	exit "$code"
}
trap finish EXIT

say() { printf '%4ss  %s\n' "$SECONDS" "$*"; }
fail() { echo "      $*"; exit 1; }

# within SECONDS COMMAND...: until it succeeds.
within() {
	local end=$((SECONDS + $1)) out
	shift
	until out=$("$@" 2>&1); do
		[ "$SECONDS" -lt "$end" ] || fail "not in time: $*: $out"
	done
}
member() { sed -n "s/.*\"$1\": *\"\([^\"]*\)\".*/\1/p" | head -n 1; }
# as_root CURL-ARGUMENTS...: with the root key, which no process shows among its arguments.
as_root() { printf 'Authorization: Bearer %s' "$(cat "$work/root.key")" | curl -s -m 5 -H @- "$@"; }
status() { as_root -o /dev/null -w '%{http_code}' "$@" || true; }
answers() { # answers STATUS CURL-ARGUMENTS...
	local want=$1 got
	shift
	got=$(status "$@")
	[ "$got" = "$want" ] || { echo "HTTP $got"; return 1; }
}

# kt is the image's own binary, on this host, with the root key of init.
kt() { timeout 60 "$work/keytrail" "$@"; }
# verify PORT REASON: ask the verifier there about $secret, at $position or later.
verify() {
	local got
	got=$(KEYTRAIL_VERIFY_URL="http://127.0.0.1:$1" KEYTRAIL_SECRET=$secret kt --json verify \
		--keyspace scribe-sight --scope read --min-position "$position") || [ $? = 3 ] || return 1
	[ "$(member reason <<<"$got")" = "$2" ] || { echo "verifier at $1 says: $got"; return 1; }
}
both() { verify 17071 "$1" && verify 17072 "$1"; }
create() { # create NAME: sets id, secret and position
	local made
	made=$(kt --json key create --keyspace scribe-sight --tenant acme --name "$1") || return 1
	id=$(member id <<<"$made") secret=$(member key <<<"$made") position=$(member position <<<"$made")
	secrets+=("$secret")
}
create_and_verify() { create "$1" && both ok; }
trail_has() { kt audit events --key "$1" | grep -q "$2"; }
ledger_has() { [ "$(kt audit uses --key "$1" | grep -c "$2")" -ge "$3" ]; }
secrets=()

say "images"
for i in keytrail:dev nats:2.15.2 clickhouse/clickhouse-server:26.7; do
	what=$(docker image inspect -f '{{.Id}} {{json .Config.Labels}}' "$i") || fail "there is no image $i"
	case $what in *keytrail.standin*) what="a STAND-IN, not the vendor's image" ;; esac
	printf '      %-34s %s\n' "$i" "${what% null}"
done
dc config -q
box=$(docker create keytrail:dev)
docker cp "$box:/keytrail" "$work/keytrail" >/dev/null
docker rm "$box" >/dev/null

say "up"
dc up -d >"$work/up" 2>&1 || { cat "$work/up"; fail "up failed"; }
for port in 17070 17071 17072 17073; do within 60 curl -fs -m 2 -o /dev/null "http://127.0.0.1:$port/readyz"; done
docker cp "$(dc ps -a -q init):/data/root.key" "$work/root.key" >/dev/null
export KEYTRAIL_URL=http://127.0.0.1:17070 KEYTRAIL_AUDIT_URL=http://127.0.0.1:17073 KEYTRAIL_KEY_FILE="$work/root.key"
say "ready: control, two verifiers, auditor"

kt keyspace apply -f deploy/regimes/scribe-sight.yaml >/dev/null
create tour
both ok
say "created $id; both verifiers allow it at its own position"
position=$(kt --json key disable "$id" --reason "pipeline paused" | member position); both key_disabled
position=$(kt --json key enable "$id" | member position); both ok
position=$(kt --json key scopes "$id" --scope write | member position); both scope_missing
position=$(kt --json key revoke "$id" --reason "smoke" | member position); both key_revoked
say "disabled, enabled, another scope, revoked: both verifiers say so at once"

for type in key.created key.disabled key.enabled key.scopes_assigned key.revoked; do within 20 trail_has "$id" "$type"; done
for node in verifier-1/ verifier-2/; do within 20 ledger_has "$id" "$node" 5; done
kt audit export --kind events --format csv --tenant acme -o "$work/events.csv" 2>"$work/err" || fail "$(cat "$work/err")"
kt audit export --kind uses --format jsonl --tenant acme -o "$work/uses.jsonl" 2>"$work/err" || fail "$(cat "$work/err")"
[ "$(wc -l <"$work/uses.jsonl")" -ge 10 ] || fail "the export has too few uses"
say "trail and ledger have all of it; exports: $(wc -l <"$work/events.csv") lines CSV, $(wc -l <"$work/uses.jsonl") lines JSON"

doctor() { dc run --rm cli doctor --deep >"$work/doctor" 2>&1; }
within 30 doctor
say "the doctor, in a container: $(grep -c '^ok' "$work/doctor") checks, none failed"
sed -n 's/^/      /p' "$work/doctor" | grep ' ok '

for n in 1 2 3; do
	if [ "$n" = 2 ]; then how=stop; else how=kill; fi # in order, and as a crash
	dc "$how" "nats-$n" >/dev/null 2>&1
	from=$SECONDS
	within 40 create_and_verify "without-nats-$n"
	say "nats-$n gone ($how): a new key works on both verifiers within $((SECONDS - from))s"
	dc start "nats-$n" >/dev/null 2>&1
	within 60 create_and_verify "with-nats-$n-again"
done

dc kill nats-1 nats-2 >/dev/null 2>&1
url=$KEYTRAIL_URL/v1/keyspaces/scribe-sight/keys
within 40 answers 503 -X POST -H 'Content-Type: application/json' -d '{"tenant":"acme","name":"no-quorum"}' "$url"
within 40 both verifier_stale
say "two of three gone: control refuses with 503, the verifiers say that they are stale"
dc start nats-1 nats-2 >/dev/null 2>&1
within 60 create_and_verify "quorum-again"
say "back: a new key works on both verifiers"

dc stop -t 15 verifier-2 >/dev/null 2>&1
create "without-verifier-2"
verify 17071 ok
say "verifier-2 stopped: verifier-1 answers"
dc start verifier-2 >/dev/null 2>&1
within 30 verify 17072 ok
say "verifier-2 is back and knows the key made meanwhile"

dc stop -t 15 clickhouse >/dev/null 2>&1
within 30 answers 503 "$KEYTRAIL_AUDIT_URL/v1/audit/events?limit=1"
as_root -D - -o /dev/null "$KEYTRAIL_AUDIT_URL/v1/audit/events?limit=1" |
	grep -qi '^Retry-After:' || fail "the 503 has no Retry-After"
create_and_verify "without-clickhouse"
say "ClickHouse stopped: audit answers 503 with Retry-After; creating and verifying go on"
dc start clickhouse >/dev/null 2>&1
within 60 trail_has "$id" key.created
within 30 ledger_has "$id" verifier- 2
within 30 doctor
say "ClickHouse is back: the copy has caught up, and the doctor finds it equal to the log"

curl -fs -m 5 http://127.0.0.1:1707{0,1,2,3}/metrics >"$work/metrics"
for metric in $(grep -o 'keytrail_[a-z_]*' deploy/prometheus/alerts.yml | sort -u); do
	grep -q "^$metric" "$work/metrics" || fail "alerts.yml waits for $metric, which no role exports"
done
say "every metric of the alert rules is exported"

dc logs >"$work/logs" 2>&1
{ printf '%s\n' "${secrets[@]}" && cat "$work/root.key" && sed -n 's/.*_PASSWORD=//p' "$work/env"; } | grep . >"$work/secrets"
! grep -qFf "$work/secrets" "$work/logs" || fail "a secret is in the logs of the parts"
grep -E 'critical write error|[Cc]orrupt' "$work/logs" && fail "a NATS server has trouble with its store"
say "no secret, no password in $(wc -l <"$work/logs") lines of log"
say "done"
