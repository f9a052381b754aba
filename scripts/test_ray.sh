#!/usr/bin/env bash
# Runs sweeps on a real Ray cluster of three nodes on this machine. The environment is .venv-ray, which has Ray
# (constraints-ray.txt) and the packages of .venv. Missing environments are created.
#
#   bash scripts/test_ray.sh -x -k bits    arguments are passed to pytest
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
name=ray
source "$root/scripts/over_venv.sh"

cd "$root"
exec "$python" -m pytest -p no:cacheprovider tests/cluster/test_ray*.py "$@"
