#!/usr/bin/env bash
# Starts one process of a run on a machine among many: finds out its place among them, tells it to gpt_jax, and becomes
# the command. The other launch scripts call it on every machine.
#
#   launch/worker.sh tpu-vm|gke|slurm COMMAND...
#
# gpt_jax.parallel.runtime reads JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID. On TPUs the order must
# be the TPU runtime's own, since jax.process_index() is; the sources below are those of jax/_src/clusters (0.10.2).
# Environment: JAX_COORDINATOR_PORT, the port of process 0 (8482, as JAX has it on TPUs).
set -euo pipefail
script=launch/worker.sh
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/launch/commands.sh"

port=${JAX_COORDINATOR_PORT:-8482}

# An attribute of this TPU VM, from the metadata server of Google Cloud.
metadata() {
  curl --silent --fail --retry 5 --header 'Metadata-Flavor: Google' \
    "http://${GCE_METADATA_IP:-metadata.google.internal}/computeMetadata/v1/instance/attributes/$1" ||
    die "the metadata server does not tell $1: is this a TPU VM?" 1
}

# The number of entries of a list with commas.
count() {
  local entries
  IFS=, read -ra entries <<<"$1"
  echo "${#entries[@]}"
}

on_tpu_vm() {
  local endpoints first
  endpoints=$(metadata worker-network-endpoints)
  processes=$(count "$endpoints")
  process=$(metadata agent-worker-number)
  first=${endpoints%%,*}
  coordinator=${first##*:}:$port # an endpoint is a host, or name:id:address
}

# GKE's webhook sets TPU_WORKER_*, and MEGASCALE_* where a JobSet spans several slices.
on_gke() {
  local hosts=${TPU_WORKER_HOSTNAMES:-localhost} first per_slice
  per_slice=$(count "$hosts")
  processes=$((per_slice * ${MEGASCALE_NUM_SLICES:-1}))
  process=$((${TPU_WORKER_ID:-0} + per_slice * ${MEGASCALE_SLICE_ID:-0}))
  first=${MEGASCALE_COORDINATOR_ADDRESS:-${hosts%%,*}}
  coordinator=${first%%:*}:$port
}

# slurm.sbatch sets JAX_COORDINATOR_ADDRESS.
on_slurm() {
  processes=$SLURM_NTASKS process=$SLURM_PROCID coordinator=$JAX_COORDINATOR_ADDRESS
  # Left alone JAX gives a Slurm task the one GPU of its local index, even where one process has the whole node.
  if [[ -z ${JAX_LOCAL_DEVICE_IDS:-} && -n ${SLURM_GPUS_ON_NODE:-} ]]; then
    if ((SLURM_NTASKS == SLURM_NNODES)); then
      JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((SLURM_GPUS_ON_NODE - 1)))
    else
      JAX_LOCAL_DEVICE_IDS=$SLURM_LOCALID
    fi
    export JAX_LOCAL_DEVICE_IDS
  fi
}

(($# > 1)) || die "usage: launch/worker.sh tpu-vm|gke|slurm COMMAND..."
case $1 in
  tpu-vm) on_tpu_vm ;;
  gke) on_gke ;;
  slurm) on_slurm ;;
  *) die "$1: expected tpu-vm, gke or slurm." ;;
esac
shift

unset JAX_COORDINATOR_ADDRESS JAX_NUM_PROCESSES JAX_PROCESS_ID
if ((processes > 1)); then
  export JAX_COORDINATOR_ADDRESS=$coordinator JAX_NUM_PROCESSES=$processes JAX_PROCESS_ID=$process
fi
echo "process $process of $processes on $(uname -n)${JAX_COORDINATOR_ADDRESS:+, coordinator $coordinator}"
export PYTHONUNBUFFERED=1 # a log says what was printed when the process was lost
if [[ -d $root/.venv/bin ]]; then PATH=$root/.venv/bin:$PATH; fi
exec "$@"
