#!/usr/bin/env bash
# Makes .venv and installs the project in it, editable, at the versions that are tested (constraints.txt).
#
#   bash scripts/setup.sh                 what training needs
#   bash scripts/setup.sh --extra test    and what the tests need
#
# Does nothing when .venv is already what pyproject.toml and constraints.txt ask for. TRAINYARD_PYTHON names the Python
# that a new .venv is made with; otherwise it is the first 3.11 or newer of those on the PATH.
# Says what it does on stderr. Exit status: 2 where there is no such Python or the arguments are wrong, else pip's.
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
    --extra) [[ ${2:-} =~ ^[a-z]+$ ]] || { say "--extra takes the name of an extra of pyproject.toml"; exit 2; }
      extras+=" $2"; shift 2 ;;
    *) say "unknown argument '$1'; usage: bash scripts/setup.sh [--extra NAME]..."; exit 2 ;;
  esac
done

wanted() { cat "$root/pyproject.toml" "$root/constraints.txt"; }
version() { "$1" -ISc 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }

# Reads the stamp into at, with, installed and from. Fails where there is none.
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

# The Python to make .venv with: one that can, and is new enough. A shim that only prints an error is passed over.
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
  say "Install one, or name it: TRAINYARD_PYTHON=/path/to/python bash scripts/setup.sh"
  exit 2
}

# A .venv is kept when it is in its place, runs, has pip, and no earlier call was cut off while it worked on it.
usable() {
  [[ ! -e $unfinished ]] || return 1
  if read_stamp && [[ $at != "$root" || $with != "$(version "$python")" ]]; then return 1; fi
  "$python" -Ic 'import sys, importlib.util as u; sys.exit(sys.version_info < (3, 11) or not u.find_spec("pip"))' 2>/dev/null
}

base=$python
usable || find_python

# One call at a time; the lock is on this very file, and goes with this process.
exec 9<"${BASH_SOURCE[0]}"
"$base" -Ic 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX)' 2>/dev/null || true
if up_to_date; then exit 0; fi

read_stamp || true
keep=$installed    # the extras that are there stay there, at the new versions
if ! usable; then
  find_python
  say "making .venv with Python $(version "$base")"
  rm -rf "${venv:?}/bin"    # first, so that nobody takes the rest for whole if this is cut off
  rm -rf "$venv"
  mkdir "$venv"
  : >"$unfinished"
  "$base" -m venv "$venv"
fi

all=$(tr ' ' '\n' <<<"$keep $extras" | sort -u | xargs)
list=${all// /,}
quiet=()
[[ -t 2 ]] || quiet=(--quiet)

# An install that pip gives up (no network, versions that clash) leaves what was there; one that is cut off may leave
# half a package, and the mark makes the next call start from nothing.
say "installing into .venv${all:+ with $all} (minutes the first time: torch and MLflow are large)"
trap 'exit 130' INT
: >"$unfinished"
cd "$root"
status=0
"$python" -m pip --disable-pip-version-check install ${quiet[@]+"${quiet[@]}"} -c constraints.txt -e ".${list:+[$list]}" >&2 ||
  status=$?
if ((status)); then
  ((status > 128)) || rm -f "$unfinished"
  say "pip failed (exit status $status); .venv is not up to date"
  exit "$status"
fi
{ printf '%s\n%s\n%s\n' "$root" "$(version "$python")" "$all"; wanted; } >"$stamp.new"
mv "$stamp.new" "$stamp"
rm -f "$unfinished"
say "done"
