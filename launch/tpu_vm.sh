#!/usr/bin/env bash
# A run on a Cloud TPU VM, or on a pod of them: one sub-command a step, each of a few gcloud commands that it prints.
# The flags of gcloud and the states are those of its version 528 (surface/compute/tpus) and of the TPU API v2.
set -euo pipefail
script=launch/tpu_vm.sh
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/launch/common.sh"

name=${TPU_NAME:-gpt-jax} zone=${TPU_ZONE:-} project=${TPU_PROJECT:-} type=${TPU_TYPE:-v5litepod-8}
version=${TPU_VERSION:-} spot=${TPU_SPOT:-} bucket=${TPU_BUCKET:-} source=${TPU_SOURCE:-} ref=HEAD worker=0
poll=${POLL_SECONDS:-30}
command=()

usage() {
  case ${1:-} in
    create)
      cat <<'END'
launch/tpu_vm.sh create --zone=ZONE [--type=TYPE] [--spot] [--version=VERSION]

Asks for the TPU as a queued resource and waits until it is there. Ctrl-C ends the waiting, not the request: `status`
tells how it stands, and the same request is not made twice.
  --type=TYPE        $TPU_TYPE; v5litepod-8 by default. Also v5p-8, v6e-8, v4-8, ...; v5e-8 is v5litepod-8
  --spot             cheap, and taken back at any time (`resume`); $TPU_SPOT=1
  --version=VERSION  $TPU_VERSION; the image, by default the one for JAX of that type
END
      ;;
    install)
      cat <<'END'
launch/tpu_vm.sh install --zone=ZONE [--source=URL [--ref=REF]]

Brings the commit that is checked out here to all workers, into ~/gpt_jax, and installs it there with the extra [tpu],
in an environment of its own with Python 3.12. Changes that are not committed stay here. Again after a new commit.
  --source=URL  $TPU_SOURCE; a git repository that the workers can reach, instead of this checkout
  --ref=REF     the branch, tag or commit of it; its HEAD by default
END
      ;;
    run)
      cat <<'END'
launch/tpu_vm.sh run --zone=ZONE [--bucket=BUCKET] -- COMMAND

Starts the command in ~/gpt_jax on all workers at once. It goes on when the connection or this machine is gone; what it
prints is appended to ~/gpt_jax/run.log of each worker (`log`). A worker where a run is going on refuses a second one.
  --bucket=BUCKET  $TPU_BUCKET; mounted with gcsfuse at ~/bucket, which is ../bucket for the run. A workdir there
                   outlives the TPU

  launch/tpu_vm.sh run --zone=us-west4-a --bucket=mine -- \
    python -m gpt_jax.main --config=configs/pretrain.py:gpt2-small --workdir=../bucket/gpt2
END
      ;;
    log)
      cat <<'END'
launch/tpu_vm.sh log --zone=ZONE [--worker=N]

Shows the end of ~/gpt_jax/run.log and follows it. Worker 0 by default: it is the one that speaks.
END
      ;;
    status)
      cat <<'END'
launch/tpu_vm.sh status --zone=ZONE

Shows how the request and the TPU stand and, where it is ready, whether the run is going on and its last line.
END
      ;;
    stop)
      cat <<'END'
launch/tpu_vm.sh stop --zone=ZONE

Sends SIGTERM to the run on all workers: it saves and ends, and `run` with the same command goes on from there.
END
      ;;
    resume)
      cat <<'END'
launch/tpu_vm.sh resume --zone=ZONE [FLAGS of create, install and run] -- COMMAND

After a preemption: deletes what is left, creates the TPU anew, installs, and runs the command again. With the same
workdir, in a bucket or on a disk that outlives the TPU, the run goes on where it was. A request that still waits is
waited for; on a TPU that is ready the command is only run. So the same line may be repeated, by hand or by cron.
END
      ;;
    delete)
      cat <<'END'
launch/tpu_vm.sh delete --zone=ZONE

Deletes the TPU and its request, a run on it and the disks of its workers with them. Nothing is asked.
END
      ;;
    *)
      cat <<'END'
launch/tpu_vm.sh SUB-COMMAND [FLAGS] [-- COMMAND]

  create    asks for the TPU, as a queued resource, and waits for it
  install   brings the checkout to all workers and installs it
  run       starts a command on all workers, in a session that outlives the connection
  log       follows what it prints
  status    how the TPU and the run stand
  stop      lets the run save and end
  resume    after a preemption: creates anew, installs, runs
  delete    deletes the TPU

launch/tpu_vm.sh SUB-COMMAND --help says more. Flags of all, and the environment variables that they take the place of:

  --name=NAME        $TPU_NAME; of the TPU and its request, gpt-jax by default
  --zone=ZONE        $TPU_ZONE
  --project=PROJECT  $TPU_PROJECT; gcloud's own by default
  --dry-run          prints the commands and runs none

$POLL_SECONDS, 30 by default, is the time between two looks at a request.
END
      ;;
  esac
}

# The image that Google's page on TPU software versions names for JAX (cloud.google.com/tpu/docs/runtimes).
image_of() {
  case $1 in
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    v2-* | v3-* | v4-*) echo tpu-ubuntu2204-base ;;
    *) die "--type=$1: expected v5litepod-N (or v5e-N), v5p-N, v6e-N, v4-N, v3-N or v2-N; others need --version." ;;
  esac
}

on_workers() {
  run gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker="$1" --command="$2"
}

# One word of what gcloud says of the request or the TPU.
request_state() {
  run gcloud compute tpus queued-resources describe "$name" "${where[@]}" --format='value(state.state)'
}
vm_state() {
  run gcloud compute tpus tpu-vm describe "$name" "${where[@]}" --format='value(state)'
}

create() {
  version=${version:-$(image_of "$type")}
  run gcloud compute tpus queued-resources create "$name" "${where[@]}" --node-id="$name" \
    --accelerator-type="$type" --runtime-version="$version" ${spot:+--spot} ||
    die "gcloud did not accept the request. Where it exists already: launch/tpu_vm.sh status, resume or delete." 1
  wait_until_active
}

wait_until_active() {
  local state before='' quiet=''
  while true; do
    state=$(request_state) || die "gcloud does not tell the state of $name in $zone." 1
    if [[ -n $dry_run || $state == ACTIVE ]]; then return; fi
    if [[ $state != "$before" ]]; then echo "$name is $state"; fi
    case $state in
      FAILED | SUSPENDING | SUSPENDED | DELETING)
        die "$name is $state and will not become ACTIVE. \`gcloud compute tpus queued-resources describe\` says why; \
launch/tpu_vm.sh resume asks anew, delete gives up." 1
        ;;
    esac
    before=$state quiet=yes
    sleep "$poll"
  done
}

install() {
  local from=$source bundle
  if [[ -z $from ]]; then
    need git "install brings the commit of this checkout."
    if [[ -z $dry_run && -n $(git -C "$root" status --porcelain --untracked-files=no) ]]; then
      echo "$script: changes that are not committed stay here" >&2
    fi
    bundle=$(mktemp -d)/gpt_jax.bundle
    # shellcheck disable=SC2064 # the value of now
    trap "rm -rf $(quoted "$(dirname "$bundle")")" EXIT
    run git -C "$root" bundle create --quiet "$bundle" HEAD
    run gcloud compute tpus tpu-vm scp "$bundle" "$name:gpt_jax.bundle" "${where[@]}" --worker=all ||
      die "the checkout did not reach every worker of $name; nothing was installed." 1
    from=../gpt_jax.bundle
  fi
  # The images have Python 3.10, too old for gpt_jax: uv brings one. Newer Debians let pip touch only its own folders.
  on_workers all "set -e
git init --quiet gpt_jax && cd gpt_jax
git fetch --quiet $(quoted "$from" "$ref") && git checkout --quiet --force --detach FETCH_HEAD
PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv
~/.local/bin/uv venv --quiet --seed --allow-existing --python 3.12 .venv
.venv/bin/pip install --quiet -e '.[tpu]'" ||
    die "the installation failed on at least one worker of $name; its words stand above. Nothing was started." 1
}

start() {
  local mount=
  if [[ -n $bucket ]]; then
    mount="mkdir -p ~/bucket
mountpoint -q ~/bucket || gcsfuse --implicit-dirs $(quoted "$bucket") ~/bucket
"
  fi
  on_workers all "set -e
cd ~/gpt_jax && [ -x .venv/bin/python ] || { echo 'nothing is installed here: launch/tpu_vm.sh install' >&2; exit 2; }
if kill -0 \"\$(cat run.pid 2>/dev/null)\" 2>/dev/null; then echo 'a run is going on here' >&2; exit 2; fi
${mount}setsid launch/worker.sh tpu-vm $(quoted "${command[@]}") >>run.log 2>&1 </dev/null &
echo \$! >run.pid" ||
    die "not every worker of $name started the command; their words stand above. launch/tpu_vm.sh stop ends it." 1
  [[ -n $dry_run ]] || echo "started; launch/tpu_vm.sh log follows it" >&2
}

status() {
  run gcloud compute tpus queued-resources describe "$name" "${where[@]}" || die "there is no request $name in $zone." 1
  local state
  state=$(vm_state) || exit 0 # not there yet, or no more
  if [[ -z $dry_run && $state != READY ]]; then exit 0; fi
  on_workers all "cd ~/gpt_jax 2>/dev/null || { echo 'nothing is installed here'; exit 0; }
if kill -0 \"\$(cat run.pid 2>/dev/null)\" 2>/dev/null; then echo running; else echo 'not running'; fi
tail -n 1 run.log 2>/dev/null || true"
}

stop() {
  # shellcheck disable=SC2016 # for the worker's shell
  on_workers all 'kill -TERM "$(cat ~/gpt_jax/run.pid)"' || die "not every worker of $name had a run to stop." 1
}

resume() {
  local state
  version=${version:-$(image_of "$type")} # before anything is deleted
  state=$(request_state) || die "there is no request $name in $zone to resume: launch/tpu_vm.sh create." 1
  if [[ $state == ACTIVE ]]; then
    # The request of a TPU that was taken back can be ACTIVE for a while yet.
    state=$(vm_state) || state=GONE
  fi
  if [[ -n $dry_run ]]; then
    echo "# as if it were SUSPENDED:" >&2
    state=SUSPENDED
  fi
  echo "$name is $state" >&2
  case $state in
    READY) ;;
    CREATING | ACCEPTED | PROVISIONING | WAITING_FOR_RESOURCES)
      wait_until_active
      install
      ;;
    SUSPENDING | SUSPENDED | FAILED | PREEMPTED | TERMINATED | GONE)
      delete
      create
      install
      ;;
    *) die "$name is $state: no state to resume from. Try again in a minute; launch/tpu_vm.sh status tells more." 1 ;;
  esac
  start
}

delete() {
  run gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet ||
    die "$name was not deleted." 1
}

step=${1:-}
case $step in
  '') usage >&2 && exit 2 ;;
  -h | --help) usage && exit ;;
  create | install | run | log | status | stop | resume | delete) shift ;;
  *) die "unknown sub-command $step: expected create, install, run, log, status, stop, resume or delete." ;;
esac
while (($#)); do
  case $1 in
    -h | --help) usage "$step" && exit ;;
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --version=*) version=${1#*=} ;;
    --spot) spot=yes ;;
    --bucket=*) bucket=${1#*=} ;;
    --source=*) source=${1#*=} ;;
    --ref=*) ref=${1#*=} ;;
    --worker=*) worker=${1#*=} ;;
    --dry-run) dry_run=yes ;;
    --) shift && command=("$@") && break ;;
    *) die "unexpected $1. Flags are written --name=value, a command stands behind --. See $script $step --help." ;;
  esac
  shift
done
[[ $step != @(run|resume) ]] || ((${#command[@]})) ||
  die "no command; it stands behind --, for example -- python -m gpt_jax.main --config=configs/pretrain.py"
[[ -n $zone ]] || die "no zone. Give --zone=ZONE or set TPU_ZONE; \`gcloud compute tpus locations list\` lists them."
[[ $ref == HEAD || -n $source ]] ||
  die "--ref=$ref goes with --source=URL; without it the commit checked out here is sent."
need gcloud "It is part of the Google Cloud CLI: cloud.google.com/sdk/docs/install"
where=(--zone="$zone" ${project:+--project="$project"})
type=${type/#v5e-/v5litepod-}

case $step in
  run) start ;; # `run` is common.sh's
  log) on_workers "$worker" 'tail -n 100 -F ~/gpt_jax/run.log' ;;
  *) "$step" ;;
esac
