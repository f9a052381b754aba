#!/usr/bin/env bash
# Runs the tests with pytest from the root of the project. Creates .venv with the test extra if needed.
# Arguments are passed to pytest: bash scripts/test.sh tests/data -k order
# The default is three processes for two cores.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
bash "$root/scripts/setup.sh" --extra test

source "$root/scripts/parallel.sh"

cd "$root"
unset PYTHONDONTWRITEBYTECODE # without compiled modules, each process that a test starts compiles them anew
exec .venv/bin/python -m pytest ${parallel[@]+"${parallel[@]}"} "$@"
