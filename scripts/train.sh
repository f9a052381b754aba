#!/usr/bin/env bash
# Runs `python train.py model=mlp optim=adam`. Creates .venv if needed.
# Additional overrides take precedence: bash scripts/train.sh optim.lr=3e-4 model=cnn
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
bash "$root/scripts/setup.sh"
exec "$root/.venv/bin/python" "$root/train.py" model=mlp optim=adam "$@"
