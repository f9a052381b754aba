# Sourced by the scripts that run pytest: sets `parallel` to pytest's arguments for one process a core, or to none where
# the arguments of the caller choose (-n), debug (--pdb, --trace) or want the output as it comes (-s).
parallel=(-n auto --dist loadgroup)
for argument in "$@"; do
  case $argument in
    -n* | --numprocesses* | --pdb | --trace | -s | --capture=no) parallel=() ;;
  esac
done
