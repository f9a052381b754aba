#!/usr/bin/env bash
# Runs tests under Hydra 1.4 and OmegaConf 2.4 (constraints-hydra14.txt), in .venv-hydra14: a small environment with these
# two, and with all else from .venv. Makes both where needed.
#
#   bash scripts/hydra14.sh                  what CI runs: configs, composition, launcher and application
#   bash scripts/hydra14.sh tests/sweep -x   arguments are pytest's
#
# What Hydra warns of as deprecated is an error here.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
pins=$root/constraints-hydra14.txt
venv=$root/.venv-hydra14
python=$venv/bin/python
stamp=$venv/.trainyard-installed    # written last: the Python, the place and what was installed

bash "$root/scripts/setup.sh" --extra test
first=$("$root/.venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')

wanted() { printf '%s\n' "$first" "$("$root/.venv/bin/python" -V)"; cat "$pins"; }
if [[ ! -r $stamp || $(<"$stamp") != "$(wanted)" ]]; then
  printf 'hydra14: making .venv-hydra14\n' >&2
  rm -rf "$venv"
  "$root/.venv/bin/python" -m venv --without-pip "$venv"
  "$root/.venv/bin/python" -m pip --python "$python" --disable-pip-version-check install --quiet --no-deps -r "$pins" >&2
  # Paths of a .pth file come after the environment's own packages; a .pth file in them is not read.
  second=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  printf '%s\n' "$first" "$root/src" >"$second/trainyard.pth"
  wanted >"$stamp"
fi

if ((!$#)); then    # what depends on the version most; `bash scripts/hydra14.sh tests/config tests/sweep tests/app` is all
  set -- tests/config tests/sweep/compose tests/sweep/test_launcher_suite.py tests/app/test_hook_options.py \
    tests/app/test_no_deprecations.py
fi
source "$root/scripts/parallel.sh"

cd "$root"
export HYDRA_DEPRECATION_WARNINGS_AS_ERRORS=1 PYTHONWARNINGS="error:Implicit conversion:FutureWarning"
exec "$python" -m pytest -p no:cacheprovider -W "error:Implicit conversion:FutureWarning" \
  ${parallel[@]+"${parallel[@]}"} "$@"
