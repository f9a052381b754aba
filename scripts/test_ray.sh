#!/usr/bin/env bash
# Runs sweeps on a real Ray cluster of three nodes on this machine (constraints-ray.txt), in .venv-ray: a small environment
# with Ray, and with all else from .venv. Makes both where needed.
#
#   bash scripts/test_ray.sh -x -k bits    arguments are pytest's
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
name=ray
source "$root/scripts/over_venv.sh"

cd "$root"
exec "$python" -m pytest -p no:cacheprovider tests/cluster/test_ray*.py "$@"
