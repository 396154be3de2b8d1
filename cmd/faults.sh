#!/usr/bin/env bash
# faults.sh [ROUNDS [TEST]]: runs the fault matrix and prints a table of its cells. With
# TEST only the tests whose names match it. Exits 1 if an answer was wrong, a test failed
# or a cell is missing. The output of each test is kept and named where it failed.
set -euo pipefail
cd "$(dirname "$0")/.."
rounds=${1:-200} only=${2:-.}
out=$(mktemp -d)
failed=0

# try PACKAGE TEST CELLS [FLAG…]: the test logs so many cells
try() {
	[[ $2 =~ $only ]] || return 0
	local file="$out/${2%%/*}"
	go test "$1" -run "^${2//\//\$/^}\$" -count=1 -timeout 120m -v -args "${@:4}" >"$file" 2>&1 || { failed=1; echo "$2 failed: see $file" >&2; }
	local seen
	seen=$(grep -c 'fault cell |' "$file" || true)
	[[ $seen == "$3" ]] || { failed=1; echo "$2 has $seen of $3 cells: see $file" >&2; }
	sed -n 's/.*fault cell |//p' "$file" | awk -F'|' '{ printf "%-64s %7d  %-20s %5d\n", $1, $2, $3 == 0 ? "-" : $3, $4 } $4 > 0 { wrong = 1 } END { exit wrong }' || failed=1
}

printf '%-64s %7s  %-20s %5s\n' cell rounds seed wrong
try ./verifier TestNoAllowanceOutlivesItsBound 12
try ./commands/receipts TestNoAllowanceAfterAReceipt 1 -worlds "$rounds"
try ./verifier TestTwinsUnderFaults 1 -twin-rounds "$rounds"
try ./events/eventlog TestCluster/leases 1 -lease-rounds "$rounds"
try ./events/eventlog TestDeposedLeader 2
try ./cmd/keytrail TestReceiptsHold 1 -receipt-rounds "$rounds" -receipt-nodes 16
try ./cmd/keytrail TestRecordSurvivesKills 1 -kill-rounds "$rounds"
exit $failed
