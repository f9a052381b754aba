#!/usr/bin/env bash
# Runs tests with Hydra 1.4 and OmegaConf 2.4. The environment is .venv-hydra14, which has these two packages
# (constraints-hydra14.txt) and the other packages of .venv. Missing environments are created.
#
#   bash scripts/hydra14.sh                  the tests that CI runs: configs, composition, launcher and application
#   bash scripts/hydra14.sh tests/sweep -x   arguments are passed to pytest
#
# A deprecation warning of Hydra is an error here.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
name=hydra14
source "$root/scripts/over_venv.sh"

if ((!$#)); then    # the tests that depend most on the version; all: `bash scripts/hydra14.sh tests/config tests/sweep tests/app`
  set -- tests/config tests/sweep/compose tests/sweep/test_launcher_suite.py tests/app/test_hook_options.py \
    tests/app/test_no_deprecations.py
fi
source "$root/scripts/parallel.sh"

cd "$root"
export HYDRA_DEPRECATION_WARNINGS_AS_ERRORS=1 PYTHONWARNINGS="error:Implicit conversion:FutureWarning"
exec "$python" -m pytest -p no:cacheprovider -W "error:Implicit conversion:FutureWarning" \
  ${parallel[@]+"${parallel[@]}"} "$@"
