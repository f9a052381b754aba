#!/usr/bin/env bash
# Creates .venv-models if needed, with the versions of constraints-models.txt: libraries of models, the torch for which this
# torchvision was built, and other packages for tests and benchmarks. This torch differs from the torch of .venv.
#
#   bash scripts/models_venv.sh [PYTHON]     the Python to use; default: .venv/bin/python
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
pins=$root/constraints-models.txt
venv=$root/.venv-models
python=$venv/bin/python
stamp=$venv/.trainyard-installed    # written last: what was installed

if [[ -r $stamp && $(<"$stamp") == "$(<"$pins")" ]]; then
  exit
fi
printf 'models: creating .venv-models\n' >&2
rm -rf "$venv"
"${1:-$root/.venv/bin/python}" -m venv "$venv"
"$python" -m pip --disable-pip-version-check install --quiet -r "$pins" >&2
own=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
printf '%s\n' "$root/src" >"$own/trainyard.pth"
cat "$pins" >"$stamp"
