#!/usr/bin/env bash
# Runs sweeps on a real Ray cluster of three nodes on this machine (constraints-ray.txt), in .venv-ray: a small environment
# with Ray, and with all else from .venv. Makes both where needed.
#
#   bash scripts/test_ray.sh -x -k bits    arguments are pytest's
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
pins=$root/constraints-ray.txt
venv=$root/.venv-ray
python=$venv/bin/python
stamp=$venv/.trainyard-installed    # written last: the Python, the places and what was installed

bash "$root/scripts/setup.sh" --extra test
places=$("$root/.venv/bin/python" -c 'import sys; print(*(path for path in sys.path if path.endswith("-packages")), sep="\n")')

wanted() { printf '%s\n' "$places" "$("$root/.venv/bin/python" -V)"; cat "$pins"; }
if [[ ! -r $stamp || $(<"$stamp") != "$(wanted)" ]]; then
  printf 'ray: making .venv-ray\n' >&2
  rm -rf "$venv"
  "$root/.venv/bin/python" -m venv --without-pip "$venv"
  "$root/.venv/bin/python" -m pip --python "$python" --disable-pip-version-check install --quiet --no-deps -r "$pins" >&2
  # Paths of a .pth file come after the environment's own packages; a .pth file in them is not read.
  own=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  printf '%s\n' "$places" "$root/src" >"$own/trainyard.pth"
  wanted >"$stamp"
fi

cd "$root"
exec "$python" -m pytest -p no:cacheprovider tests/cluster/test_ray.py "$@"
