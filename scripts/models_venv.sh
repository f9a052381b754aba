#!/usr/bin/env bash
# Makes .venv-models where needed: models of other libraries, the torch that this torchvision was built for, and what the
# tests and benchmarks need beside them, with the versions of constraints-models.txt. Another torch than that of .venv.
#
#   bash scripts/models_venv.sh [PYTHON]     made of this interpreter; default: .venv/bin/python
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
pins=$root/constraints-models.txt
venv=$root/.venv-models
python=$venv/bin/python
stamp=$venv/.trainyard-installed    # written last: what was installed

if [[ -r $stamp && $(<"$stamp") == "$(<"$pins")" ]]; then
  exit
fi
printf 'models: making .venv-models\n' >&2
rm -rf "$venv"
"${1:-$root/.venv/bin/python}" -m venv "$venv"
"$python" -m pip --disable-pip-version-check install --quiet -r "$pins" >&2
own=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
printf '%s\n' "$root/src" >"$own/trainyard.pth"
cat "$pins" >"$stamp"
