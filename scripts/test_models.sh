#!/usr/bin/env bash
# Tests models of other libraries (tests/zoo, and the tests that need those libraries), in .venv-models: an environment of its
# own, with the versions of constraints-models.txt. Makes it where needed; torchvision needs the torch it was built for, so
# this torch is another than that of .venv.
#
#   bash scripts/test_models.sh              all, and writes what it saw to docs/works-with.md
#   bash scripts/test_models.sh tests/zoo -k timm    some of it; arguments are pytest's
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
pins=$root/constraints-models.txt
venv=$root/.venv-models
python=$venv/bin/python
stamp=$venv/.trainyard-installed    # written last: what was installed

bash "$root/scripts/setup.sh" --extra test
if [[ ! -r $stamp || $(<"$stamp") != "$(<"$pins")" ]]; then
  printf 'models: making .venv-models\n' >&2
  rm -rf "$venv"
  "$root/.venv/bin/python" -m venv "$venv"
  "$python" -m pip --disable-pip-version-check install --quiet -r "$pins" >&2
  own=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  printf '%s\n' "$root/src" >"$own/trainyard.pth"
  cat "$pins" >"$stamp"
fi

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
