package engine

import (
	"fmt"
	"strconv"
	"strings"
)

// MinVersion is the oldest ClickHouse that runs as a local engine: SYSTEM START
// LISTEN came with it (ClickHouse #101143).
const MinVersion = "26.6"

// checkVersion refuses a version() older than MinVersion, with ErrVersion.
func checkVersion(version string) error {
	major, minor, ok := parseVersion(version)
	if !ok {
		return fmt.Errorf("%w: cannot read the version %q, %s or newer is needed", ErrVersion, version, MinVersion)
	}
	minMajor, minMinor, _ := parseVersion(MinVersion)
	if major < minMajor || major == minMajor && minor < minMinor {
		return fmt.Errorf("%w: it is %s, %s or newer is needed", ErrVersion, version, MinVersion)
	}
	return nil
}

func parseVersion(s string) (major, minor int, ok bool) {
	parts := strings.SplitN(s, ".", 3)
	if len(parts) < 2 {
		return 0, 0, false
	}
	major, errMajor := strconv.Atoi(parts[0])
	minor, errMinor := strconv.Atoi(parts[1])
	return major, minor, errMajor == nil && errMinor == nil
}
