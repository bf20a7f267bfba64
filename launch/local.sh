#!/usr/bin/env bash
# Several processes of one run on this machine, over the loopback.
set -euo pipefail
script=launch/local.sh
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/launch/common.sh"

usage() {
  cat <<'END'
launch/local.sh N [--port=PORT] [--grace=SECONDS] [--dry-run] -- ARGUMENTS

Runs N processes of `python -m gpt_jax.main ARGUMENTS` as one run, each line of theirs behind [its number].
Ctrl-C and SIGTERM are passed on to all. When one fails all are ended, and its exit code is that of this script.

  --port=PORT      of process 0; a free one by default
  --grace=SECONDS  that the others have to end, after one did; 60 by default. Then they are killed

Environment
  PYTHON                the interpreter; .venv/bin/python of this checkout, or python3
  JAX_PLATFORMS         cpu by default. With cuda or gpu each process has the GPU of its own number
  JAX_NUM_CPU_DEVICES   simulated devices of each process

  JAX_NUM_CPU_DEVICES=2 launch/local.sh 2 -- --config=configs/pretrain.py --config.mesh.fsdp=2
END
}

processes='' port='' grace=60 arguments=()
while (($#)); do
  case $1 in
    -h | --help) usage && exit ;;
    --port=*) port=${1#*=} && whole_number --port "$port" ;;
    --grace=*) grace=${1#*=} && whole_number --grace "$grace" ;;
    --dry-run) dry_run=yes ;;
    --) shift && arguments=("$@") && break ;;
    -*) die "unknown flag $1. Arguments of gpt_jax.main stand behind --. See launch/local.sh --help." ;;
    *)
      [[ -z $processes ]] || die "unexpected argument $1. Arguments of gpt_jax.main stand behind --."
      processes=$1 && whole_number N "$processes"
      ;;
  esac
  shift
done
[[ -n $processes ]] || die "how many processes? For example: launch/local.sh 2 -- --config=configs/pretrain.py"
((${#arguments[@]})) ||
  die "no arguments for gpt_jax.main; they stand behind --, for example -- --config=configs/pretrain.py"

python=${PYTHON:-}
if [[ -z $python ]]; then
  python=python3
  if [[ -x $root/.venv/bin/python ]]; then python=$root/.venv/bin/python; fi
fi
need "$python" "Install as the README says, or set PYTHON."
need setsid "It is part of util-linux."

# Below the ports that the system hands out by itself; nobody listens on it now.
while [[ -z $port ]]; do
  port=$((20000 + RANDOM % 12000))
  if (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then port=''; fi
done

prefixed() {
  local line
  while IFS= read -r line || [[ -n $line ]]; do printf '[%s] %s\n' "$1" "$line"; done
}

pipes=$(mktemp -d)
trap 'rm -rf "$pipes"' EXIT
running=() printers=()
for ((index = 0; index < processes; index++)); do
  settings=(
    PYTHONUNBUFFERED=1 "JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}" "JAX_LOCAL_DEVICE_IDS=$index"
    "JAX_COORDINATOR_ADDRESS=127.0.0.1:$port" "JAX_NUM_PROCESSES=$processes" "JAX_PROCESS_ID=$index"
  )
  if ((processes == 1)); then settings=("${settings[@]:0:2}"); fi
  command=(env "${settings[@]}" "$python" -m gpt_jax.main "${arguments[@]}")
  if [[ -n $dry_run ]]; then
    run "${command[@]}"
    continue
  fi
  echo "+ $(quoted "${command[@]}")" >&2
  mkfifo "$pipes/$index"
  prefixed "$index" <"$pipes/$index" &
  printers+=($!)
  # A session for each: a Ctrl-C at the terminal reaches this script only, and by it each process once.
  setsid "${command[@]}" >"$pipes/$index" 2>&1 </dev/null &
  running+=($!)
done

# Sends the signal to the processes that are left; one that has just ended is no error.
tell() {
  local process
  for process in "${running[@]}"; do kill -s "$1" "$process" 2>/dev/null || true; done
}

passed_on=
# shellcheck disable=SC2329 # the traps call it
pass_on() {
  passed_on=yes
  echo "$script: passing SIG$1 on" >&2
  tell "$1"
}
trap 'pass_on INT' INT
trap 'pass_on TERM' TERM HUP

code=0 killing_at=''
while ((${#running[@]})); do
  sleep 0.2 || true # a Ctrl-C ends it
  left=()
  for process in "${running[@]}"; do
    if kill -0 "$process" 2>/dev/null; then
      left+=("$process")
      continue
    fi
    status=0
    wait "$process" || status=$?
    if ((code == 0)); then code=$status; fi
    kill -s KILL -- "-$process" 2>/dev/null || true # what it left behind would hold its pipe open
  done
  running=("${left[@]}")
  if ((code != 0)) && [[ -z $killing_at ]]; then
    killing_at=$((SECONDS + grace))
    # Where all were told to end they are saving now: a second signal would cut that short.
    if [[ -z $passed_on ]] && ((${#running[@]})); then
      sleep 1 || true # the others may be about to end for the same reason, with a message of their own
      echo "$script: a process ended with exit code $code; ending the others" >&2
      tell TERM
    fi
  elif [[ -n $killing_at ]] && ((SECONDS >= killing_at)); then
    tell KILL
  fi
done
if ((${#printers[@]})); then wait "${printers[@]}" || true; fi # their last lines
exit "$code"
