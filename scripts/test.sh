#!/usr/bin/env bash
# Runs the tests: sets up .venv with the test extra where needed, then pytest, from the project's root.
# Arguments are pytest's: bash scripts/test.sh tests/data -k order
# Three processes for two cores, unless the arguments say otherwise.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
bash "$root/scripts/setup.sh" --extra test

source "$root/scripts/parallel.sh"

cd "$root"
unset PYTHONDONTWRITEBYTECODE # without compiled modules, each process that a test starts compiles them anew
exec .venv/bin/python -m pytest ${parallel[@]+"${parallel[@]}"} "$@"
