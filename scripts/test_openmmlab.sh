#!/usr/bin/env bash
# Compares with OpenMMLab's MMEngine (constraints-openmmlab.txt), in .venv-openmmlab: a small environment with MMEngine, and
# with all else from .venv. Makes both where needed.
#
#   bash scripts/test_openmmlab.sh -x                             all of tests/openmmlab, and its metrics; arguments are pytest's
#   bash scripts/test_openmmlab.sh tests/openmmlab/test_ema.py    some of it
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
name=openmmlab
source "$root/scripts/over_venv.sh"

if [[ " $*" != *" tests/"* ]]; then
  set -- tests/openmmlab tests/metrics/test_mmengine.py "$@"
fi
source "$root/scripts/parallel.sh"

cd "$root"
exec "$python" -m pytest -p no:cacheprovider ${parallel[@]+"${parallel[@]}"} "$@"
