# Sourced by the scripts that run pytest: sets `parallel` to pytest's arguments for three processes on two cores, because tests
# spend a third of their time waiting for processes and servers. `parallel` is empty if the arguments of the caller set the
# number of processes (-n), debug (--pdb, --trace) or print output immediately (-s).
parallel=(-n $((($(nproc) * 3 + 1) / 2)) --dist loadgroup)
for argument in "$@"; do
  case $argument in
    -n* | --numprocesses* | --pdb | --trace | -s | --capture=no) parallel=() ;;
  esac
done
