#!/usr/bin/env bash
# Tests models of other libraries (tests/zoo, and the tests that need those libraries), in .venv-models: an environment of its
# own, which scripts/models_venv.sh makes.
#
#   bash scripts/test_models.sh              all, and writes what it saw to docs/works-with.md
#   bash scripts/test_models.sh tests/zoo -k timm    some of it; arguments are pytest's
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
