#!/usr/bin/env bash
# Runs a real Slurm with two nodes on this machine, from Debian's packages. Nothing is installed: all files are in .slurm/.
#
#   bash scripts/slurm.sh fetch         once: downloads and unpacks the packages (needs apt and a network; takes seconds)
#   bash scripts/slurm.sh run CMD...    starts the controller and two nodes with one CPU each, runs CMD, stops Slurm
#
# The state of Slurm is in the folder TRAINYARD_SLURM_STATE, or in a temporary folder. There are two partitions: `low` (the
# default) and `high`, whose jobs preempt and requeue jobs of `low`. There is no accounting, so sacct fails. A mount namespace
# requires root. Exit status: 3 if Slurm is not unpacked or cannot run here (stderr contains the reason), otherwise that of CMD.
set -uo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
slurm=$root/.slurm
R=$slurm/root

fail() { printf 'slurm: %s\n' "$*" >&2; exit 3; }

fetch() {
  [[ ! -e $slurm/done ]] || return 0
  command -v apt-get >/dev/null || fail "apt-get is not installed, so Debian's packages cannot be downloaded"
  mkdir -p "$slurm/deb" "$R" && cd "$slurm/deb" || exit 1
  apt-get update -qq >/dev/null || fail "apt-get update failed"
  local wanted='^(slurm|libmunge|liblz4|libfreeipmi|libipmimonitoring|libhwloc|libjwt|libjansson|librdkafka|libhttp-parser|libyaml|libpmix|libnuma|freeipmi|libltdl|libdbus|libxnvctrl)'
  local packages
  packages=$(apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces --no-enhances \
    slurmctld slurmd slurm-client slurm-wlm-basic-plugins | grep -E "$wanted" | sort -u)
  [[ -n $packages ]] || fail "apt has no package slurmctld"
  # shellcheck disable=SC2086
  apt-get download -qq $packages >/dev/null 2>&1 || fail "apt-get download failed"
  for package in *.deb; do dpkg -x "$package" "$R" || fail "$package cannot be unpacked"; done
  cd "$root" && rm -rf "$slurm/deb" && touch "$slurm/done"
}

free_ports() {
  python3 - "$1" <<'PY'
import socket, sys
sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(int(sys.argv[1]))]
print(*(each.getsockname()[1] for each in sockets))
PY
}

run() {
  [[ -e $slurm/done ]] || fail "Slurm is not unpacked; run: bash scripts/slurm.sh fetch"
  [[ $(id -u) = 0 ]] || fail "root is required for mounts"
  unshare -m true 2>/dev/null || fail "this system does not allow mount namespaces"
  export TRAINYARD_SLURM_INSIDE=1
  exec unshare -m bash "${BASH_SOURCE[0]}" inside "$@"
}

inside() {
  local state own=""
  state=${TRAINYARD_SLURM_STATE:-}
  if [[ -z $state ]]; then state=$(mktemp -d) && own=$state; fi
  mkdir -p "$state"/{save,log,spool/n1,spool/n2,overlay}
  local host lib ports
  host=$(hostname -s) lib=$R/usr/lib/$(uname -m)-linux-gnu
  read -r -a ports <<<"$(free_ports 3)"
  cat >"$state/slurm.conf" <<CONF
ClusterName=trainyard
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/none
CredType=cred/none
AuthInfo=cred_expire=5
PluginDir=$lib/slurm-wlm
SlurmctldPort=${ports[0]}
SlurmctldPidFile=$state/ctld.pid
SlurmdPidFile=$state/slurmd-%n.pid
SlurmdSpoolDir=$state/spool/%n
StateSaveLocation=$state/save
SlurmctldLogFile=$state/log/ctld.log
SlurmdLogFile=$state/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=2,preempt_youngest_first,min_preempt_exempt_time=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
KillWait=5
InactiveLimit=0
SlurmctldTimeout=60
SlurmdTimeout=20
SlurmdParameters=config_overrides
NodeName=n1 NodeHostname=$host NodeAddr=127.0.0.1 Port=${ports[1]} CPUs=1 RealMemory=1000 Feature=tested State=UNKNOWN
NodeName=n2 NodeHostname=$host NodeAddr=127.0.0.1 Port=${ports[2]} CPUs=1 RealMemory=1000 Feature=tested State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES MaxTime=60 State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=10
PartitionName=high Nodes=ALL MaxTime=60 State=UP PriorityTier=10 PreemptMode=OFF
CONF
  export LD_LIBRARY_PATH=$lib/slurm-wlm:$lib SLURM_CONF=$state/slurm.conf PATH=$R/usr/bin:$PATH
  # slurmd looks for slurmstepd in /usr/sbin, where it exists only in this namespace.
  mount -t tmpfs none "$state/overlay" && mkdir -p "$state/overlay/up" "$state/overlay/work" &&
    cp -s "$R/usr/sbin/slurmstepd-wlm" "$state/overlay/up/slurmstepd" &&
    mount -t overlay overlay -o "lowerdir=/usr/sbin,upperdir=$state/overlay/up,workdir=$state/overlay/work" /usr/sbin ||
    fail "this system does not allow overlay mounts"
  "$R/usr/sbin/slurmctld-wlm" -D -c -f "$SLURM_CONF" >"$state/log/ctld.out" 2>&1 &
  local pids=($!) node
  for node in n1 n2; do
    "$R/usr/sbin/slurmd-wlm" -D -N "$node" -f "$SLURM_CONF" >"$state/log/$node.out" 2>&1 &
    pids+=($!)
  done
  trap 'kill "${pids[@]}" 2>/dev/null; wait' EXIT
  local try
  for try in $(seq 60); do
    [[ $(timeout 5 sinfo -h -N -p low -t idle 2>/dev/null | wc -l) = 2 ]] && break
    sleep 0.5
  done
  [[ $try -lt 60 ]] || { tail -5 "$state"/log/* >&2; fail "the nodes did not start (see the logs above)"; }
  "$@"
  local status=$?
  kill "${pids[@]}" 2>/dev/null
  wait
  trap - EXIT
  [[ -z $own ]] || { umount "$state/overlay" 2>/dev/null; rm -rf "$own" 2>/dev/null; }
  return $status
}

case ${1:-} in
  fetch) fetch ;;
  run) shift && (($#)) || { printf 'usage: bash scripts/slurm.sh run CMD...\n' >&2; exit 2; }; run "$@" ;;
  inside) [[ -n ${TRAINYARD_SLURM_INSIDE:-} ]] || exit 2; shift; inside "$@" ;;
  *) printf 'usage: bash scripts/slurm.sh fetch | run CMD...\n' >&2; exit 2 ;;
esac
