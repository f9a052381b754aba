# Sourced by the scripts that run pytest: sets `parallel` to pytest's arguments for three processes for two cores, since tests
# wait a third of their time for processes and servers; or to none where the arguments of the caller choose (-n), debug
# (--pdb, --trace) or want the output as it comes (-s).
parallel=(-n $((($(nproc) * 3 + 1) / 2)) --dist loadgroup)
for argument in "$@"; do
  case $argument in
    -n* | --numprocesses* | --pdb | --trace | -s | --capture=no) parallel=() ;;
  esac
done
