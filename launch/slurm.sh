#!/usr/bin/env bash
# A run on the GPU nodes of a Slurm cluster: hands slurm.sbatch to sbatch.
set -euo pipefail
script=launch/slurm.sh
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/launch/commands.sh"

usage() {
  cat <<'END'
launch/slurm.sh [FLAGS] -- COMMAND

Submits the command as a batch job: one process a GPU on each node, forming one run. Shortly before its time is over,
and when it is preempted, the run saves and the job goes back into the queue; it then goes on where it was. The
checkout, its .venv (installed with the extra [gpu]) and the workdir stand on a file system that all nodes see.

  --nodes=N              1 by default
  --gpus=N               of a node, 8 by default
  --per=gpu|node         one process a GPU (default) or a node
  --cpus=N               of a process; by default what the cluster gives, often one
  --time=LIMIT           as Slurm writes it, 24:00:00 by default
  --notice=SECONDS       that the run has to save before its time is over, 180 by default
  --name=NAME            gpt-jax by default; what it prints is appended to slurm-NAME-JOB.log
  --partition=PARTITION  $SLURM_PARTITION
  --account=ACCOUNT      $SLURM_ACCOUNT
  --sbatch=OPTIONS       any other options of sbatch, with spaces between them
  --dry-run              prints the command and does not run it

  launch/slurm.sh --nodes=4 --gpus=8 --cpus=12 --partition=h100 --sbatch='--exclusive --qos=high' -- \
    python -m gpt_jax.main --config=configs/pretrain.py:gpt2-small --workdir=runs/gpt2
END
}

nodes=1 gpus=8 per=gpu cpus='' time=24:00:00 notice=180 name=gpt-jax
partition=${SLURM_PARTITION:-} account=${SLURM_ACCOUNT:-} sbatch=''
flags='nodes gpus per cpus time notice name partition account sbatch'
read_flags "$@"

need_command
whole_number --nodes "$nodes"
whole_number --gpus "$gpus"
whole_number --cpus "${cpus:-1}"
whole_number --notice "$notice"
case $per in
  gpu) tasks=$gpus ;;
  node) tasks=1 ;;
  *) die "--per=$per: expected gpu or node." ;;
esac
need sbatch "This is not a login node of a Slurm cluster."
read -ra options <<<"$sbatch"

# --signal=B: only the batch script gets the signal, which is then in charge. --open-mode: a requeued job keeps its log.
run sbatch --job-name="$name" --nodes="$nodes" --gpus-per-node="$gpus" --ntasks-per-node="$tasks" --time="$time" \
  --signal="B:USR1@$notice" --requeue --open-mode=append --chdir="$root" --output="slurm-%x-%j.log" \
  ${cpus:+--cpus-per-task="$cpus"} ${partition:+--partition="$partition"} ${account:+--account="$account"} \
  "${options[@]}" "$root/launch/slurm.sbatch" "${command[@]}"
