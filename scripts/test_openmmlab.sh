#!/usr/bin/env bash
# Compares with OpenMMLab's MMEngine (constraints-openmmlab.txt), in .venv-openmmlab: a small environment with MMEngine, and
# with all else from .venv. Makes both where needed.
#
#   bash scripts/test_openmmlab.sh -x                             all of tests/openmmlab, and its metrics; arguments are pytest's
#   bash scripts/test_openmmlab.sh tests/openmmlab/test_ema.py    some of it
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
pins=$root/constraints-openmmlab.txt
venv=$root/.venv-openmmlab
python=$venv/bin/python
stamp=$venv/.trainyard-installed    # written last: the Python, the places and what was installed

bash "$root/scripts/setup.sh" --extra test
places=$("$root/.venv/bin/python" -c 'import sys; print(*(path for path in sys.path if path.endswith("-packages")), sep="\n")')

wanted() { printf '%s\n' "$places" "$("$root/.venv/bin/python" -V)"; cat "$pins"; }
if [[ ! -r $stamp || $(<"$stamp") != "$(wanted)" ]]; then
  printf 'openmmlab: making .venv-openmmlab\n' >&2
  rm -rf "$venv"
  "$root/.venv/bin/python" -m venv --without-pip "$venv"
  "$root/.venv/bin/python" -m pip --python "$python" --disable-pip-version-check install --quiet --no-deps -r "$pins" >&2
  # Paths of a .pth file come after the environment's own packages; a .pth file in them is not read.
  own=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  printf '%s\n' "$places" "$root/src" >"$own/trainyard.pth"
  wanted >"$stamp"
fi

if [[ " $*" != *" tests/"* ]]; then
  set -- tests/openmmlab tests/metrics/test_mmengine.py "$@"
fi
source "$root/scripts/parallel.sh"

cd "$root"
exec "$python" -m pytest -p no:cacheprovider ${parallel[@]+"${parallel[@]}"} "$@"
