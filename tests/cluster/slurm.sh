#!/usr/bin/env bash
# A Slurm of one node on this machine, for the user who asks, in a directory that ends with it.
#
#   slurm.sh start DIR     starts munged, slurmctld and slurmd; prints the SLURM_CONF to use
#   slurm.sh stop DIR      stops them
#   slurm.sh run COMMAND   COMMAND with a Slurm of its own
#
# Exit status 77, with the reason on stderr: it cannot be started here.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin

cannot() { echo "no Slurm here: $1" >&2; exit 77; }

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

start() {
  local dir=$1 user host
  for program in munged slurmctld slurmd sbatch srun squeue scontrol; do
    command -v "$program" > /dev/null || cannot "$program is not installed (Debian: slurm-wlm, munge)"
  done
  user=$(id -un) host=$(hostname -s)
  mkdir -p "$dir"/{munge,state,spool}
  chmod 755 "$dir" "$dir/munge"
  head -c 1024 /dev/urandom > "$dir/munge/key"
  chmod 600 "$dir/munge/key"
  # --force: of a directory that others may write to, as temporary ones are.
  munged --force --key-file="$dir/munge/key" --socket="$dir/munge/socket" \
    --pid-file="$dir/munged.pid" --log-file="$dir/munged.log" --seed-file="$dir/munge/seed" \
    2> "$dir/munged.err" || cannot "munged: $(tail -1 "$dir/munged.err")"
  # cred_expire: after so many seconds a requeued job may start again.
  cat > "$dir/slurm.conf" << CONF
ClusterName=llfc
SlurmctldHost=$host(127.0.0.1)
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
AuthInfo=socket=$dir/munge/socket,cred_expire=5
CredType=cred/munge
SlurmctldPort=$(free_port)
SlurmdPort=$(free_port)
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
ReturnToService=2
KillWait=5
GresTypes=gpu
NodeName=$host NodeAddr=127.0.0.1 CPUs=2 Gres=gpu:4 State=UNKNOWN
PartitionName=llfc Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
CONF
  # GPUs by name alone: Slurm hands them out, and nobody uses them.
  touch "$dir"/gpu{0..3}
  echo "Name=gpu File=$dir/gpu[0-3]" > "$dir/gres.conf"
  export SLURM_CONF=$dir/slurm.conf
  slurmctld || { stop "$dir"; cannot "slurmctld: $(tail -1 "$dir/slurmctld.log")"; }
  slurmd || { stop "$dir"; cannot "slurmd: $(tail -1 "$dir/slurmd.log")"; }
  local until=$((SECONDS + 30))
  until sinfo --noheader --format=%t 2> /dev/null | grep -q '^idle'; do
    if ((SECONDS >= until)); then
      stop "$dir"
      cannot "the node does not come up: $(tail -1 "$dir/slurmctld.log")"
    fi
    sleep 0.2
  done
  echo "$SLURM_CONF"
}

stop() {
  local dir=$1 pid
  SLURM_CONF=$dir/slurm.conf timeout 10 scancel --me 2> /dev/null || true
  for daemon in slurmd slurmctld munged; do
    [[ -s $dir/$daemon.pid ]] || continue
    pid=$(< "$dir/$daemon.pid")
    kill "$pid" 2> /dev/null || continue
    for _ in {1..100}; do kill -0 "$pid" 2> /dev/null || break; sleep 0.1; done
  done
}

case ${1-} in
  start | stop) "$1" "$2" ;;
  run)
    shift
    directory=$(mktemp -d)
    trap 'stop "$directory"; rm -rf "$directory"' EXIT
    SLURM_CONF=$(start "$directory")
    export SLURM_CONF
    "$@"
    ;;
  *) sed -n 's/^# \{0,1\}//p' "$0" | head -8 >&2; exit 2 ;;
esac
