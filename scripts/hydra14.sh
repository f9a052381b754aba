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
name=hydra14
source "$root/scripts/over_venv.sh"

if ((!$#)); then    # what depends on the version most; `bash scripts/hydra14.sh tests/config tests/sweep tests/app` is all
  set -- tests/config tests/sweep/compose tests/sweep/test_launcher_suite.py tests/app/test_hook_options.py \
    tests/app/test_no_deprecations.py
fi
source "$root/scripts/parallel.sh"

cd "$root"
export HYDRA_DEPRECATION_WARNINGS_AS_ERRORS=1 PYTHONWARNINGS="error:Implicit conversion:FutureWarning"
exec "$python" -m pytest -p no:cacheprovider -W "error:Implicit conversion:FutureWarning" \
  ${parallel[@]+"${parallel[@]}"} "$@"
