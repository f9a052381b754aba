#!/usr/bin/env bash
# Tests with those libraries that work with the torch of .venv (constraints-zoo.txt), in .venv-zoo: a small environment
# with them, and with all else from .venv. Makes both where needed. scripts/test_models.sh has all of them.
#
#   bash scripts/test_zoo.sh                 what CI runs
#   bash scripts/test_zoo.sh tests/zoo -k bert    some of it; arguments are pytest's
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
name=zoo
source "$root/scripts/over_venv.sh"

if [[ " $*" != *" tests/"* ]]; then
  source "$root/scripts/library_tests.sh"
  set -- "${library_tests[@]}" "$@"
fi
source "$root/scripts/parallel.sh"

cd "$root"
export OMP_NUM_THREADS=1
exec "$python" -m pytest -p no:cacheprovider ${parallel[@]+"${parallel[@]}"} "$@"
