#!/usr/bin/env bash
# Tests models of other libraries: tests/zoo, and the tests that need these libraries. The environment is .venv-models, which
# scripts/models_venv.sh creates.
#
#   bash scripts/test_models.sh                      runs all tests, and writes the results to docs/works-with.md
#   bash scripts/test_models.sh tests/zoo -k timm    arguments are passed to pytest
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
python=$root/.venv-models/bin/python

bash "$root/scripts/setup.sh" --extra test
bash "$root/scripts/models_venv.sh"

cd "$root"
export OMP_NUM_THREADS=1
if (($#)); then
  exec "$python" -m pytest -p no:cacheprovider "$@"
fi
results=$(mktemp)
trap 'rm -f "$results"' EXIT
status=0
source "$root/scripts/library_tests.sh"
ZOO_RESULTS=$results "$python" -m pytest -p no:cacheprovider "${library_tests[@]}" || status=$?
"$python" scripts/models_page.py "$results" docs/works-with.md
exit "$status"
