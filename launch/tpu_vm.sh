#!/usr/bin/env bash
# A run on a Cloud TPU VM, or on a pod of them: a few steps, each of a few gcloud commands that it prints.
# Commands, flags and states are those of gcloud's own reference (compute/tpus/queued-resources, compute/tpus/tpu-vm)
# and of the TPU API v2.
set -euo pipefail
script=launch/tpu_vm.sh
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/launch/commands.sh"

usage() {
  cat <<'END'
launch/tpu_vm.sh STEP [FLAGS] [-- COMMAND]

  create   asks for the TPU as a queued resource and waits for it. Ctrl-C ends the waiting, not the request; the same
           step again goes on waiting
  install  brings the commit that is checked out here to ~/gpt_jax of all workers and installs it there
  run      starts the command there on all workers. It goes on when the connection or this machine is gone; what it
           prints is appended to ~/gpt_jax/run.log of each worker
  log      follows that of worker 0, the one that speaks
  status   how the request, the TPU and the run stand
  stop     lets the run save and end (SIGTERM); `run` with the same command goes on from there
  resume   does what is missing of create, install and run: after a preemption deletes what is left and does all
           three, beside a run that goes on nothing. So: while sleep 300; do launch/tpu_vm.sh resume -- COMMAND; done
  delete   deletes the request, the TPU and its disks. Nothing is asked

Flags, and the environment variables that they take the place of

  --name=NAME        TPU_NAME     of the request and of the TPU; gpt-jax by default
  --zone=ZONE        TPU_ZONE
  --project=PROJECT  TPU_PROJECT  gcloud's own by default
  --type=TYPE        TPU_TYPE     v5e-8 by default; v5e-16, v5p-8, v6e-8, v4-8, ...
  --version=VERSION  TPU_VERSION  the image; by default the one for JAX on that type
  --spot             TPU_SPOT=1   cheap, and taken back at any time: see resume
  --bucket=BUCKET    TPU_BUCKET   mounted at ~/bucket, which is ../bucket for the command. Workers of a pod must all
                                  see the workdir, and only in a bucket it outlives the TPU
  --source=URL       TPU_SOURCE   a git repository that the workers can reach, to install instead of this checkout
  --ref=REF                       its branch, tag or commit; its HEAD by default
  --worker=N                      whose log; 0 by default
  --dry-run                       prints the commands and runs none

gcloud reaches several workers at once only with its key in an ssh-agent: ssh-add ~/.ssh/google_compute_engine

  export TPU_ZONE=us-west4-a TPU_TYPE=v5e-16 TPU_SPOT=1 TPU_BUCKET=mine
  launch/tpu_vm.sh create && launch/tpu_vm.sh install
  launch/tpu_vm.sh run -- python -m gpt_jax.main --config=configs/pretrain.py:gpt2-small --workdir=../bucket/gpt2
END
}

# The image that Google's page on TPU software versions names for JAX (cloud.google.com/tpu/docs/runtimes).
image_of() {
  case $1 in
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    v2-* | v3-* | v4-*) echo tpu-ubuntu2204-base ;;
    *) die "--type=$1: expected v5e-N, v5p-N, v6e-N, v4-N, v3-N or v2-N; others need --version." ;;
  esac
}

on_workers() {
  run gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker="$1" --command="$2"
}

# One word of what gcloud says of the request or of the TPU; nothing where there is none. Asked of `list`: `describe`
# fails in the same way for a TPU that is gone and for a network that is down, and a healthy TPU would be deleted.
state_of() {
  run gcloud compute tpus "$1" list "${where[@]}" --filter="name ~ /$name\$" --format="value($2)" ||
    die "gcloud does not tell how $name stands; its words are above. Nothing was changed." 1
}
request_state() { state_of queued-resources state.state; }
vm_state() { state_of tpu-vm state; }

# Waits while the request is in one of the states $1, and leaves the one that follows in `state`.
wait_while() {
  local before='' quiet=''
  while state=$(request_state) || exit; [[ $state == @($1) ]]; do
    [[ $state == "$before" ]] || echo "$name is $state"
    before=$state quiet=yes
    sleep "$poll"
  done
}

create() {
  state=$(request_state) || exit
  if [[ -z $state ]]; then
    run gcloud compute tpus queued-resources create "$name" "${where[@]}" --node-id="$name" \
      --accelerator-type="$type" --runtime-version="$version" ${spot:+--spot} ||
      die "gcloud did not accept the request; its words are above." 1
  fi
  wait_while 'CREATING|ACCEPTED|WAITING_FOR_RESOURCES|PROVISIONING'
  [[ -n $dry_run || $state == ACTIVE ]] ||
    die "$name is ${state:-gone} and will not become ACTIVE. launch/tpu_vm.sh status says why; resume asks anew, \
delete gives up." 1
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
.venv/bin/pip install --quiet -r requirements.txt -e '.[tpu]'" ||
    die "the installation failed on at least one worker of $name; its words stand above. Nothing was started." 1
}

# shellcheck disable=SC2016 # for the shell of a worker
going_on='kill -0 "$(cat ~/gpt_jax/run.pid 2>/dev/null)" 2>/dev/null'

start() {
  local mount=
  if [[ -n $bucket ]]; then
    # Checkpoints are written under another name and renamed, which gcsfuse refuses for folders by default; and what
    # one worker writes the others must see, where gcsfuse on TPU machines would remember for ever what it saw first.
    mount="command -v gcsfuse >/dev/null || {
  echo 'gcsfuse is not installed here: cloud.google.com/storage/docs/cloud-storage-fuse/install' >&2; exit 2; }
mkdir -p ~/bucket
if mountpoint -q ~/bucket; then fusermount -u ~/bucket; fi
gcsfuse --implicit-dirs --rename-dir-limit=200000 --metadata-cache-ttl-secs=0 $(quoted "$bucket") ~/bucket
"
  fi
  on_workers all "set -e
cd ~/gpt_jax && [ -x .venv/bin/python ] || { echo 'nothing is installed here: launch/tpu_vm.sh install' >&2; exit 2; }
if $going_on; then echo 'a run is going on here' >&2; exit 2; fi
${mount}setsid launch/worker.sh tpu-vm $(quoted "${command[@]}") >>run.log 2>&1 </dev/null &
echo \$! >run.pid" ||
    die "not every worker of $name started the command; their words stand above. launch/tpu_vm.sh stop ends it." 1
  [[ -n $dry_run ]] || echo "started; launch/tpu_vm.sh log follows it"
}

log() {
  on_workers "$worker" 'tail -n 100 -F ~/gpt_jax/run.log'
}

status() {
  run gcloud compute tpus queued-resources describe "$name" "${where[@]}" || die "there is no request $name in $zone." 1
  state=$(vm_state) || exit
  if [[ -n $dry_run || $state == READY ]]; then
    on_workers all "if $going_on; then echo 'a run is going on'; else echo 'no run is going on'; fi
tail -n 1 ~/gpt_jax/run.log 2>/dev/null || true"
  else
    echo "the TPU is ${state:-not there}"
  fi
}

stop() {
  # shellcheck disable=SC2016 # for the shell of the worker
  on_workers all 'kill -TERM "$(cat ~/gpt_jax/run.pid)"' || die "not every worker of $name had a run to stop." 1
}

resume() {
  wait_while 'SUSPENDING|DELETING'
  if [[ $state == ACTIVE ]]; then # as the request of a TPU that was taken back is for a while yet
    state=$(vm_state) || exit
    state=${state:-"out of sight"} # if it is gone, the request will soon be SUSPENDED
  fi
  if [[ -n $dry_run ]]; then
    echo "# as if it were SUSPENDED:" >&2
    state=SUSPENDED
  fi
  case $state in
    '' | CREATING | ACCEPTED | WAITING_FOR_RESOURCES | PROVISIONING) create ;;
    READY)
      state=$(on_workers 0 "if $going_on; then echo running; fi") || die "worker 0 of $name does not answer." 1
      if [[ $state == running ]]; then
        echo "a run is going on"
        return
      fi
      ;;
    SUSPENDED | FAILED | PREEMPTED | TERMINATED)
      echo "$name is $state"
      delete
      create
      ;;
    *) die "$name is $state: nothing to resume from now. Try again in a minute; launch/tpu_vm.sh status says more." 1 ;;
  esac
  install
  start
}

delete() {
  state=$(request_state) || exit
  if [[ -z $dry_run && -z $state ]]; then
    echo "there is no request $name in $zone"
    return
  fi
  run gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet ||
    die "$name was not deleted; gcloud's words are above." 1
}

name=${TPU_NAME:-gpt-jax} zone=${TPU_ZONE:-} project=${TPU_PROJECT:-} type=${TPU_TYPE:-v5e-8}
version=${TPU_VERSION:-} spot=${TPU_SPOT:-} bucket=${TPU_BUCKET:-} source=${TPU_SOURCE:-} ref=HEAD worker=0
poll=${TPU_POLL_SECONDS:-30} # between two looks at a request
flags='name zone project type version bucket source ref worker' switches='spot'
read_step "${1:-}" create install run log status stop resume delete
shift
read_flags "$@"

if [[ $step == @(run|resume) ]]; then need_command; fi
[[ -n $zone ]] || die "no zone. Give --zone=ZONE or set TPU_ZONE; \`gcloud compute tpus locations list\` lists them."
resource_name "$name" 63
case $spot in
  1 | yes) ;;
  0 | no | '') spot='' ;;
  *) die "TPU_SPOT=$spot: expected 1 or 0." ;;
esac
[[ $ref == HEAD || -n $source ]] ||
  die "--ref=$ref goes with --source=URL; without it the commit checked out here is sent."
type=${type/#v5e-/v5litepod-}
if [[ $step == @(create|resume) ]]; then version=${version:-$(image_of "$type")}; fi
need gcloud "It is part of the Google Cloud CLI: cloud.google.com/sdk/docs/install"
where=(--zone="$zone" ${project:+--project="$project"})

case $step in
  run) start ;; # `run` shows a command and runs it
  *) "$step" ;;
esac
