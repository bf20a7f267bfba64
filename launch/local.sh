#!/usr/bin/env bash
# Several processes of one run on this machine, over the loopback.
set -euo pipefail
script=launch/local.sh
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/launch/commands.sh"

usage() {
  cat <<'END'
launch/local.sh N [--port=PORT] [--grace=SECONDS] [--dry-run] -- ARGUMENTS

Runs N processes of `python -m gpt_jax.main ARGUMENTS` as one run, each line of theirs behind [its number].
Ctrl-C and SIGTERM are passed on to all. When one fails all are ended, and its exit code is that of this script.

  --port=PORT      of process 0; a free one by default
  --grace=SECONDS  that the others have to end, after one did; 60 by default. Then they are killed
  --dry-run        prints the commands and runs none

Environment
  PYTHON                the interpreter; .venv/bin/python of this checkout, or python3
  JAX_PLATFORMS         cpu by default. With cuda or gpu each process has the GPU of its own number
  JAX_NUM_CPU_DEVICES   simulated devices of each process

  JAX_NUM_CPU_DEVICES=2 launch/local.sh 2 -- --config=configs/pretrain.py --config.mesh.fsdp=2
END
}

processes='' port='' grace=60 flags='port grace'
if [[ ${1--} != -* ]]; then
  processes=$1
  shift
fi
read_flags "$@"
[[ -n $processes ]] || die "how many processes? For example: launch/local.sh 2 -- --config=configs/pretrain.py"
whole_number N "$processes"
whole_number --port "${port:-1}"
whole_number --grace "$grace"
((${#command[@]})) ||
  die "no arguments for gpt_jax.main; they stand behind --, for example -- --config=configs/pretrain.py"
arguments=("${command[@]}")

find_python
need setsid "It is part of util-linux."

# Below the ports that the system hands out by itself; nobody listens on it now.
while [[ -z $port ]]; do
  port=$((20000 + RANDOM % 12000))
  if (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then port=''; fi
done

# The command of process $1, in `command`.
command_of() {
  command=(env PYTHONUNBUFFERED=1 "JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}")
  if ((processes > 1)); then
    command+=(
      "JAX_COORDINATOR_ADDRESS=127.0.0.1:$port" "JAX_NUM_PROCESSES=$processes" "JAX_PROCESS_ID=$1"
      "JAX_LOCAL_DEVICE_IDS=$1"
    )
  fi
  command+=("$python" -m gpt_jax.main "${arguments[@]}")
}

if [[ -n $dry_run ]]; then
  for ((index = 0; index < processes; index++)); do
    command_of "$index"
    run "${command[@]}"
  done
  exit
fi

running=() printers=() passed_on=''

# Sends the signal to the processes that are left; one that has just ended is no error.
tell() {
  local process
  for process in "${running[@]}"; do kill -s "$1" "$process" 2>/dev/null || true; done
}

# shellcheck disable=SC2329 # the traps call it
pass_on() {
  passed_on=yes
  echo "$script: passing SIG$1 on" >&2
  tell "$1"
}

prefixed() {
  local line
  while IFS= read -r line || [[ -n $line ]]; do printf '[%s] %s\n' "$1" "$line"; done
}

pipes=$(mktemp -d)
trap 'rm -rf "$pipes"' EXIT
trap 'pass_on INT' INT
trap 'pass_on TERM' TERM HUP
for ((index = 0; index < processes; index++)); do
  [[ -z $passed_on ]] || break
  command_of "$index"
  echo "+ $(quoted "${command[@]}")" >&2
  mkfifo "$pipes/$index"
  prefixed "$index" <"$pipes/$index" &
  printers+=($!)
  # A session for each: a Ctrl-C at the terminal reaches this script only, and by it each process once.
  setsid "${command[@]}" >"$pipes/$index" 2>&1 </dev/null &
  running+=($!)
done

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
