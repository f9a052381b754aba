#!/usr/bin/env bash
# Checks the project on a machine that has a CUDA build of PyTorch and perhaps no network: the tests marked gpu, a
# training on the digits, the benchmarks of the step and of the captured step. Prints one table last; takes less than
# eight minutes. See docs/gpu.md.
#
#   bash scripts/gpu_check.sh [WHEELS_DIR]
#
# WHEELS_DIR holds wheels of the packages that the machine lacks; nothing is installed outside a temporary folder.
# TRAINYARD_PYTHON names the Python (default: python3). TRAINYARD_CHECK_DEVICE=cpu runs the same steps on the CPU, to try
# the script itself. Exit status: 0 all passed, 1 something failed, 2 the machine cannot run the check.
set -uo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
python=${TRAINYARD_PYTHON:-python3}
device=${TRAINYARD_CHECK_DEVICE:-cuda}

stop() { printf 'gpu_check: %s\n' "$*" >&2; exit 2; }

wheels=()
if (($#)); then
  [[ -d $1 ]] || stop "no folder '$1'; usage: bash scripts/gpu_check.sh [WHEELS_DIR]"
  for wheel in "$1"/*.whl; do [[ -e $wheel ]] && wheels+=("$(realpath "$wheel")"); done
  ((${#wheels[@]})) || stop "no wheels in '$1'; docs/gpu.md says how to gather them"
fi

cd "$root" || exit 2
work=$(mktemp -d) || exit 2
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
export PYTHONPATH=$root/src PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1

if ((${#wheels[@]})); then
  "$python" -m pip --disable-pip-version-check install --quiet --no-index --no-deps --no-compile --target "$work/site" \
    "${wheels[@]}" || stop "the wheels do not install: see above"
  PYTHONPATH+=:$work/site
fi

# The machine: Python, PyTorch, a device, and the packages that the steps need.
begin=$SECONDS
"$python" - "$device" >"$work/machine" <<'PYTHON'
import sys
from importlib.util import find_spec

if sys.version_info < (3, 11):
    sys.exit("Python 3.11 or newer is needed; this is " + sys.version.split()[0])
needed = {
    "torch": "torch", "numpy": "numpy", "hydra": "hydra-core", "omegaconf": "omegaconf", "rich": "rich",
    "antlr4": "antlr4-python3-runtime", "yaml": "pyyaml", "sklearn": "scikit-learn", "pytest": "pytest",
}
missing = [package for module, package in needed.items() if find_spec(module) is None]
if missing:
    sys.exit(f"missing here: {', '.join(missing)}; docs/gpu.md says how to bring them as wheels")

import torch

device = sys.argv[1]
if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 11):
    sys.exit(f"torch 2.11 or newer is needed; this is {torch.__version__}")
if device != "cpu" and not torch.cuda.is_available():
    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    sys.exit(f"no CUDA device: torch {torch.__version__} ({built}) sees none")
name = "CPU" if device == "cpu" else torch.cuda.get_device_name(device)
print(f"{name}, torch {torch.__version__}, Python {sys.version.split()[0]}")
PYTHON
status=$?
((status == 0)) || stop "this machine cannot run the check (see the line above)"

rows=()
failed=0
row() { rows+=("$(printf '%-16s %-9s %7d  %s' "$1" "$2" "$3" "$4")"); }    # name, result, seconds, detail
row machine ok $((SECONDS - begin)) "$(<"$work/machine")"

# check NAME LIMIT DETAIL COMMAND...: runs the command for LIMIT seconds at most; DETAIL is a function of its log.
check() {
  local name=$1 limit=$2 detail=$3 log=$work/log begin=$SECONDS result=ok said
  shift 3
  printf '\n== %s: %s\n' "$name" "$*"
  timeout -k 10 "$limit" "$@" </dev/null >"$log" 2>&1    # a file: a pipe would wait for whatever the command leaves behind
  local status=$?
  cat "$log"
  said=$("$detail" "$log")
  case $status in
    0) ;;
    124 | 137) result=FAILED said="not done in $limit seconds" ;;
    *) result=FAILED said="exit status $status${said:+; $said}" ;;
  esac
  if [[ $detail == tests_detail && $result == ok && $said != *passed* ]]; then
    if [[ $device == cpu ]]; then result=skipped; else result=FAILED; fi
  fi
  [[ $result != FAILED ]] || failed=1
  row "$name" "$result" $((SECONDS - begin)) "$said"
}

# shellcheck disable=SC2317  # check() calls these by name
tests_detail() { tail -n 1 "$1" | sed -E 's/^=+ | =+$//g; s/ in [0-9.]+s.*$//'; }
# shellcheck disable=SC2317
training_detail() { grep -o 'Best .*' "$1" | tail -n 1; }
# shellcheck disable=SC2317
benchmark_detail() {
  "$python" - "$work/step.json" 2>/dev/null <<'PYTHON'
import json, sys
from statistics import median
values = json.load(open(sys.argv[1]))["cases"]["step"]["tables"][0]["values"]
plain = values["plain PyTorch"]
ratios = {name: median(own / base for own, base in zip(them, plain)) for name, them in values.items()}
print("; ".join(f"{name} {median(them):.0f} us ({ratios[name]:.2f})" for name, them in values.items()))
PYTHON
}

# shellcheck disable=SC2317
captured_detail() {
  "$python" - "$work/captured.json" 2>/dev/null <<'PYTHON'
import json, sys
from statistics import median
for table in json.load(open(sys.argv[1]))["cases"]["captured"]["tables"]:
    sides = [f"{name} {median(them):.4g} us" for name, them in table["values"].items()]
    sides += [f"{name} failed" for name in table["failed"]]
    print(f"{table['title']}: {', '.join(sides)}; ", end="")
PYTHON
}

# Only the files that hold such tests: others may import what is not here, MLflow for one.
tests=()
while IFS= read -r file; do tests+=("$file"); done < <(grep -rl --include='test_*.py' 'mark\.gpu' tests | sort)
if ((${#tests[@]})); then
  check "tests" 170 tests_detail "$python" -m pytest -m gpu -p no:cacheprovider "${tests[@]}"
else
  row "tests" FAILED 0 "no tests are marked gpu"
  failed=1
fi
check "training" 60 training_detail "$python" train.py data=digits model=mlp optim=adam "device=$device" tracker=none \
  loop.max_epochs=20 "hydra.run.dir='$work/run'"
check "step benchmark" 110 benchmark_detail "$python" scripts/bench/run.py --here --only step --device "$device" --rounds 2 \
  --json "$work/step.json"
quick=()
[[ $device != cpu ]] || quick=(--quick)    # there is nothing to capture: only to see that it runs
check "captured" 130 captured_detail "$python" scripts/bench/run.py --here --only captured --device "$device" --rounds 1 \
  --json "$work/captured.json" "${quick[@]}"

printf '\n%-16s %-9s %7s  %s\n' check result seconds detail
printf '%s\n' "${rows[@]}"
exit "$failed"
