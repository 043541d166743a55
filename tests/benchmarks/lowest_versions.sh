#!/usr/bin/env bash
# Tests with the lowest versions that pyproject.toml allows: `bash tests/benchmarks/lowest_versions.sh [pytest arguments]`.
# VENV=folder keeps the environment for the next time.
set -euo pipefail
cd "$(dirname "$0")/../.."

if [ -z "${VENV:-}" ]; then
    VENV=$(mktemp -d)/venv
    trap 'rm -rf "$(dirname "$VENV")"' EXIT
fi
[ -d "$VENV" ] || python3.11 -m venv "$VENV"
"$VENV/bin/python" -m pip install --quiet --constraint tests/benchmarks/lowest_versions.txt '.[test]'
"$VENV/bin/python" -m pip list 2>/dev/null | grep -i -E '^(gammapy|numpy|astropy|regions|pydantic|scipy|iminuit|matplotlib|click|python) '
# not what was installed, but this checkout
exec "$VENV/bin/python" -m pytest "$@"
