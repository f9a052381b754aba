# Sourced: creates .venv if needed, and .venv-$name, which has the packages of constraints-$name.txt and the other packages
# of .venv. Variables to set before: root, the folder of the project, and name. Result: python, the Python of .venv-$name.

pins=$root/constraints-$name.txt
venv=$root/.venv-$name
python=$venv/bin/python
stamp=$venv/.trainyard-installed    # written last: the Python, the places and what was installed

bash "$root/scripts/setup.sh" --extra test
places=$("$root/.venv/bin/python" -c 'import sys; print(*(path for path in sys.path if path.endswith("-packages")), sep="\n")')

wanted() { printf '%s\n' "$places" "$("$root/.venv/bin/python" -V)"; cat "$pins"; }
if [[ ! -r $stamp || $(<"$stamp") != "$(wanted)" ]]; then
  printf '%s: creating .venv-%s\n' "$name" "$name" >&2
  rm -rf "$venv"
  "$root/.venv/bin/python" -m venv --without-pip "$venv"
  "$root/.venv/bin/python" -m pip --python "$python" --disable-pip-version-check install --quiet --no-deps -r "$pins" >&2
  # Paths of a .pth file come after the environment's own packages; a .pth file in them is not read.
  own=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  printf '%s\n' "$places" "$root/src" >"$own/trainyard.pth"
  wanted >"$stamp"
fi
