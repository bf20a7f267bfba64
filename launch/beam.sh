#!/usr/bin/env bash
# Curation on many machines: configs/curate.py as an Apache Beam pipeline on Dataflow, Flink or Spark.
set -euo pipefail
script=launch/beam.sh
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/launch/commands.sh"

usage() {
  cat <<'END'
launch/beam.sh STEP [FLAGS] -- ARGUMENTS

Starts `python -m gpt_jax.main --config=configs/curate.py ARGUMENTS` here, which hands its pipeline to the cluster and
waits for it. Sources and output stand where every worker reaches them, gs://bucket/... say; config, report and manifest
are written to --workdir here. Workers run the image: docker build -f launch/beam.Dockerfile -t IMAGE .

Steps
  dataflow   on Google Cloud; needs pip install -e ".[data,beam]" "apache-beam[gcp]" and gcloud auth login
  flink      on a Flink cluster, through Beam's job server (Java on this machine)
  spark      on a Spark cluster, the same way

Flags
  --output=FOLDER    where the workers write, for example gs://bucket/curated
  --image=IMAGE      of the workers, $BEAM_IMAGE; made by launch/beam.Dockerfile
  --workers=N        at most; the parallelism of Flink; 16 by default
  --name=NAME        of the job, gpt-jax-curate by default
  --project=PROJECT  of Google Cloud, $GOOGLE_CLOUD_PROJECT
  --region=REGION    of Google Cloud, us-central1 by default
  --master=ADDRESS   of Flink, HOST:8081, or of Spark, spark://HOST:7077
  --options=OPTIONS  any other options of Beam, with spaces between them
  --dry-run          prints the command and does not run it

  launch/beam.sh dataflow --project=mine --output=gs://bucket/curated --image=gcr.io/mine/curate -- \
    --workdir=runs/curated --config.sources='{"web": "file:gs://bucket/crawl/*.jsonl.zst"}' --config.output.shards=512
END
}

read_step "${1:-}" dataflow flink spark
shift
output='' image=${BEAM_IMAGE:-} workers=16 name=gpt-jax-curate project=${GOOGLE_CLOUD_PROJECT:-} region=us-central1
master='' options=''
flags='output image workers name project region master options'
read_flags "$@"

((${#command[@]})) || die "no arguments for gpt_jax.main; they stand behind --, for example -- --workdir=runs/curated"
[[ -n $output ]] || die "no folder to write to. Give --output=FOLDER that all workers can write, gs://bucket/curated say."
[[ -n $image ]] || die "no image. Give --image=IMAGE or set BEAM_IMAGE; docker build -f launch/beam.Dockerfile makes it."
[[ $output$image$name$project$region$master =~ ^[A-Za-z0-9_./:@%+-]*$ ]] ||
  die "a character in a flag that is in no name of a folder, an image or a machine."
whole_number --workers "$workers"
resource_name "$name" 40

case $step in
  dataflow)
    [[ -n $project ]] || die "no project. Give --project=PROJECT or set GOOGLE_CLOUD_PROJECT."
    [[ $output == gs://* ]] || die "--output=$output: Dataflow writes to gs://BUCKET/FOLDER."
    beam="--runner=DataflowRunner --project=$project --region=$region --job_name=$name --temp_location=$output/temp"
    beam+=" --sdk_container_image=$image --sdk_location=container --max_num_workers=$workers"
    ;;
  flink)
    [[ -n $master ]] || die "no cluster. Give --master=HOST:8081, where Flink's REST API listens."
    beam="--runner=FlinkRunner --flink_master=$master --job_name=$name --parallelism=$workers"
    beam+=" --environment_type=DOCKER --environment_config=$image"
    ;;
  spark)
    [[ -n $master ]] || die "no cluster. Give --master=spark://HOST:7077."
    beam="--runner=SparkRunner --spark_master_url=$master --job_name=$name"
    beam+=" --environment_type=DOCKER --environment_config=$image"
    ;;
esac
find_python
cd "$root"

run "$python" -m gpt_jax.main --config=configs/curate.py --config.runner=beam --config.beam.output="$output" \
  --config.beam.options="$beam${options:+ $options}" "${command[@]}"
