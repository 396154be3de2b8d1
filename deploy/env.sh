#!/bin/sh
# Prints an .env for docker-compose.yml with new passwords. Keep the file:
# existing volumes need these passwords.
#
#   deploy/env.sh > .env && chmod 600 .env
#
# Other settings that docker-compose.yml reads, with their defaults:
#   KEYTRAIL_IMAGE=keytrail:dev    NATS_IMAGE=nats:2.15.2
#   CLICKHOUSE_IMAGE=clickhouse/clickhouse-server:26.7
#   CONTROL_PORT=7170  VERIFIER_1_PORT=7171  VERIFIER_2_PORT=7172
#   AUDITOR_PORT=7173  NATS_PORT=4322        (all on 127.0.0.1)
#   MAX_STORE=17179869184          bytes of all streams on each NATS server,
#                                  below its disk; set it before the first start
#   KEYTRAIL_LOG_LEVEL=info
set -eu
for name in KEYTRAIL_ADMIN KEYTRAIL_CTRL KEYTRAIL_SYS KEYTRAIL_ROUTE KEYTRAIL_VERIFIER_1 KEYTRAIL_VERIFIER_2 CLICKHOUSE; do
	# A letter first: NATS would take a password that reads as a number for one.
	echo "${name}_PASSWORD=p$(head -c 24 /dev/urandom | od -An -tx1 | tr -d ' \n')"
done
