#!/usr/bin/env bash
# Compares Trainyard with OpenMMLab's MMEngine. The environment is .venv-openmmlab, which has MMEngine
# (constraints-openmmlab.txt) and the packages of .venv. Missing environments are created.
#
#   bash scripts/test_openmmlab.sh -x                             runs tests/openmmlab and the tests of MMEngine's metrics
#   bash scripts/test_openmmlab.sh tests/openmmlab/test_ema.py    arguments are passed to pytest
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
