#!/usr/bin/env bash
# Tests models of the libraries that work with the torch of .venv; scripts/test_models.sh tests all libraries. The environment
# is .venv-zoo, which has these libraries (constraints-zoo.txt) and the packages of .venv. Missing environments are created.
#
#   bash scripts/test_zoo.sh                      the tests that CI runs
#   bash scripts/test_zoo.sh tests/zoo -k bert    arguments are passed to pytest
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
