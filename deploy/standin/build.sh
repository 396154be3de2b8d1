#!/usr/bin/env bash
# Builds STAND-INS for the vendors' images, for machines that cannot pull images:
#
#   nats:2.15.2                         the server of the version in go.mod, on scratch
#   clickhouse/clickhouse-server:26.7   Keytrail's local engine behind the same ports
#
# They are tagged like the vendors' images, so that docker-compose.yml and the
# tests run unchanged. THEY ARE NOT THE VENDORS' IMAGES: where those can be
# pulled, pull them, and do not run this. The NATS server is the real one, built
# here. The ClickHouse engine is the real one too, but its server shell is not:
# no Keeper, no replicas, no users made by SQL, no configuration files.
#
#   deploy/standin/build.sh            builds what is missing
#   deploy/standin/build.sh --force    builds both again
set -euo pipefail
cd "$(dirname "$0")/../.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# taken TAG: is there an image that needs no building? A vendor's image is never
# replaced.
taken() {
	local labels
	labels=$(docker image inspect -f '{{json .Config.Labels}}' "$1" 2>/dev/null) || return 1
	if [[ "$labels" != *'"keytrail.standin":"true"'* ]]; then
		echo "$1 is here and is not a stand-in: kept"
	elif [ "${force:-}" != 1 ]; then
		echo "$1 is here already, as a stand-in"
	else
		return 1
	fi
}
[ "${1:-}" = --force ] && force=1

if ! taken nats:2.15.2; then
	mkdir -p "$work/nats/tmp"
	CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o "$work/nats/nats-server" github.com/nats-io/nats-server/v2
	"$work/nats/nats-server" --version | grep -q 'v2\.15\.2$' || { echo "go.mod has another NATS server than 2.15.2"; exit 1; }
	chmod 1777 "$work/nats/tmp"
	cat >"$work/nats/Dockerfile" <<-'END'
		FROM scratch
		LABEL keytrail.standin=true
		COPY . /
		ENV PATH=/
		EXPOSE 4222 6222 8222
		ENTRYPOINT ["/nats-server"]
	END
	docker build -q -t nats:2.15.2 "$work/nats"
	echo "built a STAND-IN for nats:2.15.2; it is not the vendor's image"
fi

if ! taken clickhouse/clickhouse-server:26.7; then
	root="$work/clickhouse"
	mkdir -p "$root"/{usr/bin,lib64,lib,usr/share,var/lib/clickhouse,tmp}
	chmod 1777 "$root/tmp"
	CGO_ENABLED=0 go build -trimpath -o "$root/usr/bin/standin" ./deploy/standin/clickhouse
	ln -s standin "$root/usr/bin/wget"
	lib=$("$root/usr/bin/standin" locate)
	ln "$lib" "$root/lib/libchdb.so" 2>/dev/null || cp "$lib" "$root/lib/libchdb.so"
	# What the library and the binary link to: glibc, nothing else.
	ldd "$lib" "$root/usr/bin/standin" | grep -o '/[^ ]*' | grep -v ':$' | sort -u | while read -r so; do
		mkdir -p "$root$(dirname "$so")"
		cp -L "$so" "$root$so"
	done
	cp -rL /usr/share/zoneinfo "$root/usr/share/zoneinfo"
	cat >"$root/Dockerfile" <<-'END'
		FROM scratch
		LABEL keytrail.standin=true
		COPY . /
		ENV KEYTRAIL_CHDB_LIB=/lib/libchdb.so PATH=/usr/bin TZ=UTC
		VOLUME /var/lib/clickhouse
		EXPOSE 8123 9000
		ENTRYPOINT ["/usr/bin/standin"]
	END
	docker build -q -t clickhouse/clickhouse-server:26.7 "$root"
	echo "built a STAND-IN for clickhouse/clickhouse-server:26.7; it is not the vendor's image"
fi
