#!/usr/bin/env bash
# Checks the project on a machine that has a CUDA build of PyTorch and perhaps no network: tests, sweeps, and
# measurements, in less than eight minutes. The parts are in scripts/gpu/; see docs/gpu.md.
#
#   bash scripts/gpu_check.sh [--json FILE] [--only PART,PART] [--quick] [WHEELS_DIR]
#
# WHEELS_DIR contains wheels of the packages that the machine lacks; nothing is installed outside a temporary folder.
# The results are written to FILE during the check (default: outputs/gpu_check.json). With --only, FILE keeps the results
# of the other parts. TRAINYARD_PYTHON is the Python to use (default: python3). TRAINYARD_CHECK_DEVICE=cpu runs the same
# parts on the CPU with the smallest sizes, to test this script. Exit status: 0 if all parts are done, 1 if a part is not
# done, 2 if the machine cannot run the check.
set -uo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
python=${TRAINYARD_PYTHON:-python3}
device=${TRAINYARD_CHECK_DEVICE:-cuda}

stop() { printf 'gpu_check: %s\n' "$*" >&2; exit 2; }

json=$root/outputs/gpu_check.json
folder=
options=()
while (($#)); do
  case $1 in
    --json | --only) (($# > 1)) || stop "$1 needs a value" ;;&
    --json) json=$2; shift ;;
    --only) options+=(--only "$2"); shift ;;
    --quick) options+=(--quick) ;;
    -*) stop "unknown option $1; usage: bash scripts/gpu_check.sh [--json FILE] [--only PART,PART] [--quick] [WHEELS_DIR]" ;;
    *) folder=$1 ;;
  esac
  shift
done
wheels=()
if [[ $folder ]]; then
  [[ -d $folder ]] || stop "the folder '$folder' of wheels does not exist"
  for wheel in "$folder"/*.whl; do [[ -e $wheel ]] && wheels+=("$(realpath "$wheel")"); done
  ((${#wheels[@]})) || stop "no wheels in '$folder'; docs/gpu.md describes how to download them"
fi
mkdir -p "$(dirname "$json")" && json=$(realpath "$json") || stop "cannot create the folder of '$json'"

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || stop "$python is not Python 3.11 or newer"

cd "$root" || exit 2
work=$(mktemp -d) || exit 2
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
mkdir "$work/parts"
path=$root/src:$root/scripts/gpu:$root/scripts/bench
if ((${#wheels[@]})); then
  "$python" -m pip --disable-pip-version-check install --quiet --no-index --no-deps --target "$work/site" \
    "${wheels[@]}" || stop "the wheels cannot be installed (see the error of pip above)"
  path+=:$work/site
fi
export PYTHONPATH=$path${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
export TMPDIR=$work TORCHINDUCTOR_CACHE_DIR=$work/inductor TRITON_CACHE_DIR=$work/triton CUDA_CACHE_PATH=$work/cuda

[[ ${options[*]-} == *--only* ]] || rm -f "$json"
"$python" scripts/gpu/machine.py "$device" "$json" || stop "this machine cannot run the check (see the line above)"
"$python" scripts/gpu/check.py --json "$json" --device "$device" --folder "$work/parts" --spent $SECONDS \
  ${options[@]+"${options[@]}"}
