#!/usr/bin/env bash
# Runs the contract suites on containers, on a machine that cannot pull images:
# the images are stand-ins where they are not there (see build.sh).
set -euo pipefail
cd "$(dirname "$0")/../.."
deploy/standin/build.sh
export KEYTRAIL_TEST_CONTAINERS=1
# The reaper is an image too; without it the tests remove their containers themselves.
export TESTCONTAINERS_RYUK_DISABLED=true
# In a container testcontainers would dial the gateway; published ports are on loopback.
if [ -e /.dockerenv ] && [ -z "${DOCKER_HOST:-}" ]; then export TESTCONTAINERS_HOST_OVERRIDE=127.0.0.1; fi
go test -count=1 -run 'Contract$' ./events/eventlog/
go test -count=1 -skip TestCrash ./audit/ ./audit/engine/enginetest/
