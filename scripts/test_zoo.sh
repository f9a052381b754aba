#!/usr/bin/env bash
# Tests models of those libraries that work with the torch of .venv (constraints-zoo.txt), in .venv-zoo: a small environment
# with them, and with all else from .venv. Makes both where needed. scripts/test_models.sh tests all of them.
#
#   bash scripts/test_zoo.sh                 what CI runs
#   bash scripts/test_zoo.sh tests/zoo -k bert    some of it; arguments are pytest's
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
name=zoo
source "$root/scripts/over_venv.sh"

if [[ " $*" != *" tests/"* ]]; then
  set -- tests/zoo tests/models/test_lightning.py tests/models/test_libraries.py tests/schedules/test_libraries.py \
    tests/data/test_hf.py tests/reinforcement tests/app/test_whole_commands.py "$@"
fi
source "$root/scripts/parallel.sh"

cd "$root"
export OMP_NUM_THREADS=1
exec "$python" -m pytest -p no:cacheprovider ${parallel[@]+"${parallel[@]}"} "$@"
