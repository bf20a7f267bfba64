#!/usr/bin/env bash
# A run on the TPUs of a Google Kubernetes Engine cluster with JobSet: fills in gke_jobset.yaml and hands it to kubectl.
set -euo pipefail
script=launch/gke.sh
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/launch/common.sh"

name=gpt-jax namespace='' type=v5e topology=2x4 chips='' slices=1 image=${GKE_IMAGE:-} spot='' bucket='' account=''
restarts=100 worker=0 command=()

usage() {
  case ${1:-} in
    apply)
      cat <<'END'
launch/gke.sh apply --image=IMAGE [FLAGS] -- COMMAND

Runs the command on every node of the slice. A node that is lost restarts them all, and with a workdir in a bucket the
run goes on where it was; exit code 2, for what the user must mend, ends it. --dry-run prints the YAML.
  --image=IMAGE         $GKE_IMAGE; one built from launch/Dockerfile
  --type=TYPE           v5e (default), v5p, v6e or v4
  --topology=TOPOLOGY   2x4 by default; 4x4, 2x2x2, ...
  --chips=N             chips of a node: 4 by default, 1 for 1x1
  --slices=N            several slices of that topology, 1 by default
  --spot                on spot nodes
  --restarts=N          how often at most, 100 by default
  --bucket=BUCKET       mounted at /bucket by the Cloud Storage FUSE driver of the cluster
  --service-account=SA  of Kubernetes, with access to the bucket

  launch/gke.sh apply --image=IMAGE --topology=4x4 --spot --bucket=mine --service-account=trainer -- \
    python -m gpt_jax.main --config=configs/pretrain.py:gpt2-small --workdir=/bucket/gpt2
END
      ;;
    log)
      cat <<'END'
launch/gke.sh log [--name=NAME] [--worker=N]

Follows what a process prints; that of worker 0 by default, which speaks for all. It ends at a restart.
END
      ;;
    status) echo "launch/gke.sh status [--name=NAME]: shows the JobSet, its restarts, and its pods." ;;
    delete) echo "launch/gke.sh delete [--name=NAME]: deletes the JobSet. Its pods save and end." ;;
    *)
      cat <<'END'
launch/gke.sh SUB-COMMAND [FLAGS] [-- COMMAND]

  apply    starts a command on the TPUs
  log      follows what it prints
  status   how it stands
  delete   ends it

launch/gke.sh SUB-COMMAND --help says more. Flags of all:

  --name=NAME            of the JobSet, gpt-jax by default
  --namespace=NAMESPACE  kubectl's own by default
  --dry-run              prints the commands and runs none
END
      ;;
  esac
}

# The words as a YAML list. Kubernetes takes $(NAME) in a command for a variable, and $$ for a dollar sign.
yaml_list() {
  local word separator=
  printf '['
  for word; do
    [[ $word != *[$'\001'-$'\010\013'-$'\037\177']* ]] || die "a control character in the command: $(printf %q "$word")"
    word=${word//\$/\$\$}
    word=${word//\\/\\\\}
    word=${word//\"/\\\"}
    word=${word//$'\n'/\\n}
    word=${word//$'\t'/\\t}
    printf '%s"%s"' "$separator" "$word"
    separator=', '
  done
  printf ']'
}

# The template, filled in.
jobset() {
  local text key list
  list=$(yaml_list bash launch/worker.sh gke "${command[@]}") || exit
  local -A values=(
    [NAME]=$name [IMAGE]=$image [ACCELERATOR]=$accelerator [TOPOLOGY]=$topology [CHIPS]=$chips [NODES]=$nodes
    [SLICES]=$slices [RESTARTS]=$restarts [BUCKET]=$bucket [SERVICE_ACCOUNT]=$account
    [COMMAND]=$list
  )
  local left_out=()
  if [[ -z $spot ]]; then left_out+=(-e '/# --spot$/d'); fi
  if [[ -z $bucket ]]; then left_out+=(-e '/# --bucket$/d'); fi
  if [[ -z $account ]]; then left_out+=(-e '/# --service-account$/d'); fi
  if ((slices == 1)); then left_out+=(-e '/# --slices$/d'); fi
  text=$(sed -e '/^#/d' "${left_out[@]}" -e 's/ *# --[a-z-]*$//' "$root/launch/gke_jobset.yaml")
  # The command last: what it says is not filled in again.
  for key in NAME IMAGE ACCELERATOR TOPOLOGY CHIPS NODES SLICES RESTARTS BUCKET SERVICE_ACCOUNT COMMAND; do
    text=${text//"\${$key}"/"${values[$key]}"}
  done
  echo "$text"
}

apply() {
  case $type in
    v5e) accelerator=tpu-v5-lite-podslice ;;
    v5p) accelerator=tpu-v5p-slice ;;
    v6e) accelerator=tpu-v6e-slice ;;
    v4) accelerator=tpu-v4-podslice ;;
    *) die "--type=$type: expected v5e, v5p, v6e or v4." ;;
  esac
  [[ $topology =~ ^[1-9][0-9]{0,2}(x[1-9][0-9]{0,2}){1,2}$ ]] ||
    die "--topology=$topology: expected, for example, 2x4 or 2x2x4."
  local all=$((${topology//x/*}))
  chips=${chips:-$((all < 4 ? all : 4))}
  whole_number --chips "$chips"
  whole_number --slices "$slices"
  whole_number --restarts "$restarts"
  ((all % chips == 0)) || die "--topology=$topology has $all chips, which nodes of --chips=$chips do not make up."
  nodes=$((all / chips))
  [[ -n $image ]] || die "no image. Give --image=IMAGE or set GKE_IMAGE; launch/Dockerfile builds one."
  local yaml value
  for value in "$image" "$bucket" "$account"; do
    [[ $value =~ ^[A-Za-z0-9._:/@-]*$ ]] || die "$value: not the name of an image, a bucket or a service account."
  done
  yaml=$(jobset)
  echo "$yaml"
  run kubectl "${where[@]}" apply --filename=- <<<"$yaml" ||
    die "kubectl did not accept the JobSet. Where one of this name exists: launch/gke.sh delete. JobSet is needed." 1
}

step=${1:-}
case $step in
  '') usage >&2 && exit 2 ;;
  -h | --help) usage && exit ;;
  apply | log | status | delete) shift ;;
  *) die "unknown sub-command $step: expected apply, log, status or delete." ;;
esac
while (($#)); do
  case $1 in
    -h | --help) usage "$step" && exit ;;
    --name=*) name=${1#*=} ;;
    --namespace=*) namespace=${1#*=} ;;
    --image=*) image=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --topology=*) topology=${1#*=} ;;
    --chips=*) chips=${1#*=} ;;
    --slices=*) slices=${1#*=} ;;
    --spot) spot=yes ;;
    --restarts=*) restarts=${1#*=} ;;
    --bucket=*) bucket=${1#*=} ;;
    --service-account=*) account=${1#*=} ;;
    --worker=*) worker=${1#*=} ;;
    --dry-run) dry_run=yes ;;
    --) shift && command=("$@") && break ;;
    *) die "unexpected $1. Flags are written --name=value, a command stands behind --. See $script $step --help." ;;
  esac
  shift
done
# 40: pods are named after it, and a name has 63 characters at most
[[ $name =~ ^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$ ]] || die "--name=$name: expected a-z, 0-9 and -, 40 characters at most."
[[ $step != apply ]] || ((${#command[@]})) ||
  die "no command; it stands behind --, for example -- python -m gpt_jax.main --config=configs/pretrain.py"
need kubectl "It is part of the Google Cloud CLI: gcloud components install kubectl"
where=(${namespace:+--namespace="$namespace"})
pods=jobset.sigs.k8s.io/jobset-name=$name

case $step in
  apply) apply ;;
  log)
    run kubectl "${where[@]}" logs --follow --tail=100 \
      --selector="$pods,jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=$worker"
    ;;
  status)
    run kubectl "${where[@]}" get jobset "$name"
    run kubectl "${where[@]}" get pods --selector="$pods" --output=wide
    ;;
  delete) run kubectl "${where[@]}" delete jobset "$name" ;;
esac
