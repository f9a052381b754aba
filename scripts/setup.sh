#!/usr/bin/env bash
# Creates .venv and installs the project in it, in editable mode, with the tested versions (constraints.txt).
#
#   bash scripts/setup.sh                 packages for training
#   bash scripts/setup.sh --extra test    also packages for the tests
#
# Does nothing if .venv already matches pyproject.toml and constraints.txt. TRAINYARD_PYTHON is the Python for a new .venv;
# otherwise, the first Python 3.11 or newer on the PATH is used. Messages are written to stderr. Exit status: 2 if there is
# no such Python or the arguments are invalid, otherwise the exit status of pip.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=$root/.venv
python=$venv/bin/python
stamp=$venv/.trainyard-installed    # written last: root, Python, extras, then the two files that were installed from
unfinished=$venv/.trainyard-unfinished

say() { printf 'setup: %s\n' "$*" >&2; }

extras=""
while (($#)); do
  case $1 in
    --extra) [[ ${2:-} =~ ^[a-z]+$ ]] || { say "--extra must be followed by the name of an extra in pyproject.toml"; exit 2; }
      extras+=" $2"; shift 2 ;;
    *) say "unknown argument '$1'; usage: bash scripts/setup.sh [--extra NAME]..."; exit 2 ;;
  esac
done

wanted() { cat "$root/pyproject.toml" "$root/constraints.txt"; }
version() { "$1" -ISc 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }

# Reads the stamp into at, with, installed and from. Fails if there is no stamp.
read_stamp() {
  at="" with="" installed="" from=""
  [[ -r $stamp ]] || return 1
  { IFS= read -r at && IFS= read -r with && IFS= read -r installed && from=$(cat); } <"$stamp"
}

up_to_date() {
  local extra
  [[ ! -e $unfinished ]] && read_stamp || return 1
  [[ $at == "$root" && $with == "$(version "$python")" && $from == "$(wanted)" ]] || return 1
  for extra in $extras; do [[ " $installed " == *" $extra "* ]] || return 1; done
}

if up_to_date; then exit 0; fi

# The Python for .venv: it has venv and is new enough. A shim that only prints an error is skipped.
find_python() {
  local candidate found tried=""
  local candidates=(python3.12 python3.11 python3 python python3.13)
  [[ -z ${TRAINYARD_PYTHON:-} ]] || candidates=("$TRAINYARD_PYTHON")
  for candidate in "${candidates[@]}"; do
    found=$(version "$candidate") || continue
    if [[ ${found%%.*} -ne 3 || ${found#*.} -lt 11 ]]; then
      tried+=" $candidate is $found;"
    elif ! "$candidate" -Ic 'import ensurepip, venv' 2>/dev/null; then
      tried+=" $candidate ($found) comes without venv (Debian and Ubuntu: apt install python$found-venv);"
    else
      base=$candidate
      return
    fi
  done
  [[ -n $tried ]] && tried="Found:${tried%;}." || tried="None of these runs: ${candidates[*]}."
  say "Trainyard needs Python 3.11 or newer, with venv. $tried"
  say "Install one, or set its path: TRAINYARD_PYTHON=/path/to/python bash scripts/setup.sh"
  exit 2
}

# A .venv is kept if it has not been moved, its Python runs, it has pip, and no earlier call was interrupted while changing it.
usable() {
  [[ ! -e $unfinished ]] || return 1
  if read_stamp && [[ $at != "$root" || $with != "$(version "$python")" ]]; then return 1; fi
  "$python" -Ic 'import sys, importlib.util as u; sys.exit(sys.version_info < (3, 11) or not u.find_spec("pip"))' 2>/dev/null
}

base=$python
usable || find_python

# One call at a time; the lock is on this file, and is released when this process ends.
exec 9<"${BASH_SOURCE[0]}"
"$base" -Ic 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX)' 2>/dev/null || true
if up_to_date; then exit 0; fi

read_stamp || true
keep=$installed    # installed extras are kept, with the new versions
if ! usable; then
  find_python
  say "creating .venv with Python $(version "$base")"
  rm -rf "${venv:?}/bin"    # first, so that an interrupted removal leaves no .venv that looks complete
  rm -rf "$venv"
  mkdir "$venv"
  : >"$unfinished"
  "$base" -m venv "$venv"
fi

all=$(tr ' ' '\n' <<<"$keep $extras" | sort -u | xargs)
list=${all// /,}
quiet=()
[[ -t 2 ]] || quiet=(--quiet)

# If pip fails (no network, conflicting versions), the previous packages remain. An interrupted installation may leave an
# incomplete package; the mark makes the next call start with an empty .venv.
say "installing into .venv${all:+ with $all} (takes minutes the first time, because torch and MLflow are large)"
trap 'exit 130' INT
: >"$unfinished"
cd "$root"
status=0
"$python" -m pip --disable-pip-version-check install ${quiet[@]+"${quiet[@]}"} -c constraints.txt -e ".${list:+[$list]}" >&2 ||
  status=$?
if ((status)); then
  ((status > 128)) || rm -f "$unfinished"
  say "pip failed (exit status $status), so .venv is not up to date. Run this command again after fixing the error above."
  exit "$status"
fi
{ printf '%s\n%s\n%s\n' "$root" "$(version "$python")" "$all"; wanted; } >"$stamp.new"
mv "$stamp.new" "$stamp"
rm -f "$unfinished"
say "done"
