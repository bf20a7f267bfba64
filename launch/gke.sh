#!/usr/bin/env bash
# A run on the TPUs of a Google Kubernetes Engine cluster with JobSet: fills in gke_jobset.yaml and hands it to kubectl.
set -euo pipefail
script=launch/gke.sh
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/launch/commands.sh"

usage() {
  cat <<'END'
launch/gke.sh STEP [FLAGS] [-- COMMAND]

  apply   runs the command on every node of the slice. A node that is lost restarts them all, and with a workdir in a
          bucket the run goes on where it was; exit code 2, for what the user must mend, ends it
  log     follows what process 0 prints, which speaks for all; until a restart
  status  shows the JobSet, its restarts, and its pods
  delete  deletes the JobSet: the run saves and ends. `apply` with the same command goes on from there

Flags

  --name=NAME            of the JobSet, gpt-jax by default
  --namespace=NAMESPACE  kubectl's own by default
  --image=IMAGE          $GKE_IMAGE; one built from launch/Dockerfile
  --type=TYPE            v5e (default), v5p, v6e or v4
  --topology=TOPOLOGY    2x4 by default; 4x4, 2x2x2, ...
  --chips=N              chips of a node: 4 by default, 1 for 1x1
  --slices=N             several slices of that topology, 1 by default
  --spot                 on spot nodes
  --restarts=N           how often at most, 100 by default
  --bucket=BUCKET        mounted at /bucket by the Cloud Storage FUSE driver of the cluster
  --service-account=SA   of Kubernetes, with access to the bucket
  --worker=N             whose log: a node of the first slice, 0 by default
  --dry-run              prints the YAML and the commands, runs none

  launch/gke.sh apply --image=IMAGE --topology=4x4 --spot --bucket=mine --service-account=trainer -- \
    python -m gpt_jax.main --config=configs/pretrain.py:gpt2-small --workdir=/bucket/gpt2
END
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

# The template, without the lines of flags that were not given, and filled in.
jobset() {
  local text key left_out=()
  local -A values=(
    [NAME]=$name [IMAGE]=$image [ACCELERATOR]=$accelerator [TOPOLOGY]=$topology [CHIPS]=$chips [NODES]=$nodes
    [SLICES]=$slices [RESTARTS]=$restarts [BUCKET]=$bucket [SERVICE_ACCOUNT]=$service_account [COMMAND]=$words
  )
  if [[ -z $spot ]]; then left_out+=(-e '/# --spot$/d'); fi
  if [[ -z $bucket ]]; then left_out+=(-e '/# --bucket$/d'); fi
  if [[ -z $service_account ]]; then left_out+=(-e '/# --service-account$/d'); fi
  if ((slices == 1)); then left_out+=(-e '/# --slices$/d'); fi
  text=$(sed -e '/^#/d' "${left_out[@]}" -e 's/ *# --[a-z-]*$//' "$root/launch/gke_jobset.yaml")
  # The command last: what it says is not filled in again.
  for key in NAME IMAGE ACCELERATOR TOPOLOGY CHIPS NODES SLICES RESTARTS BUCKET SERVICE_ACCOUNT COMMAND; do
    text=${text//"\${$key}"/"${values[$key]}"}
  done
  echo "$text"
}

apply() {
  local accelerator dimensions all nodes words yaml value
  case $type in
    v5e) accelerator=tpu-v5-lite-podslice dimensions=2 ;;
    v6e) accelerator=tpu-v6e-slice dimensions=2 ;;
    v5p) accelerator=tpu-v5p-slice dimensions=3 ;;
    v4) accelerator=tpu-v4-podslice dimensions=3 ;;
    *) die "--type=$type: expected v5e, v6e, v5p or v4." ;;
  esac
  [[ $topology =~ ^[1-9][0-9]{0,2}(x[1-9][0-9]{0,2})+$ && $topology =~ ^([^x]+x){$((dimensions - 1))}[^x]+$ ]] ||
    die "--topology=$topology: a $type has $dimensions dimensions: expected, for example, \
$( ((dimensions == 2)) && echo 2x4 || echo 2x2x4)."
  all=$((${topology//x/*}))
  chips=${chips:-$((all < 4 ? all : 4))}
  whole_number --chips "$chips"
  whole_number --slices "$slices"
  whole_number --restarts "$restarts"
  ((all % chips == 0)) || die "--topology=$topology has $all chips, which nodes of --chips=$chips do not make up."
  nodes=$((all / chips))
  ((slices == 1 || nodes > 1)) || die "--slices=$slices of one node each: Cloud TPUs join only slices of several nodes."
  [[ -n $image ]] || die "no image. Give --image=IMAGE or set GKE_IMAGE; launch/Dockerfile builds one."
  for value in "$image" "$bucket" "$service_account"; do
    [[ $value =~ ^[A-Za-z0-9._:/@-]*$ ]] || die "$value: not the name of an image, a bucket or a service account."
  done
  words=$(yaml_list bash launch/worker.sh gke "${command[@]}") || exit
  yaml=$(jobset)
  echo "$yaml"
  # Not kubectl's apply: for a JobSet of this name that has ended it would say `unchanged` and start nothing.
  run kubectl "${where[@]}" create --filename=- <<<"$yaml" ||
    die "kubectl did not take the JobSet; its words are above. One of this name goes by launch/gke.sh delete; the \
cluster needs JobSet (jobset.sigs.k8s.io)." 1
}

log() {
  run kubectl "${where[@]}" logs --follow --tail=100 --container=gpt-jax \
    --selector="$pods,jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=$worker"
}

status() {
  run kubectl "${where[@]}" get jobset "$name"
  run kubectl "${where[@]}" get pods --selector="$pods" --output=wide
}

delete() {
  run kubectl "${where[@]}" delete jobset "$name" --ignore-not-found
}

name=gpt-jax namespace='' type=v5e topology=2x4 chips='' slices=1 image=${GKE_IMAGE:-} spot='' bucket=''
service_account='' restarts=100 worker=0
flags='name namespace image type topology chips slices restarts bucket service-account worker' switches='spot'
read_step "${1:-}" apply log status delete
shift
read_flags "$@"

if [[ $step == apply ]]; then need_command; fi
resource_name "$name" 40 # pods are named after it, and theirs has 63 characters at most
need kubectl "It is part of the Google Cloud CLI: gcloud components install kubectl"
where=(${namespace:+--namespace="$namespace"})
pods=jobset.sigs.k8s.io/jobset-name=$name
"$step"
