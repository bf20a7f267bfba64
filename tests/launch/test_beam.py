"""launch/beam.sh hands configs/curate.py the options of a cluster, as one flag, and its own arguments as they are."""

import shlex
from pathlib import Path

from apache_beam.options.pipeline_options import DebugOptions, GoogleCloudOptions, PipelineOptions, WorkerOptions
from stand_ins import AWKWARD, Stage

LAUNCH = Path(__file__).resolve().parents[2] / "launch"


def called(stage: Stage, *words: str) -> tuple[list[str], PipelineOptions]:
    """What the interpreter is given, without the options of Beam; and these."""
    stage.plays("python3")
    stage.run("beam.sh", *words)
    (call,) = stage.calls
    own = [word for word in call if word.startswith("--config.beam.options=")]
    return [word for word in call if word not in own], PipelineOptions(shlex.split(own[0].partition("=")[2]))


def test_dataflow_gets_project_region_and_image_and_no_option_that_beam_does_not_know(stage):
    flags = ["--project=mine", "--output=gs://b/curated", "--image=gcr.io/mine/curate", "--workers=9"]
    words, options = called(stage, "dataflow", *flags, "--options=--experiments=use_runner_v2", "--", *AWKWARD)
    assert words == [
        "python3", "-m", "gpt_jax.main", "--config=configs/curate.py", "--config.runner=beam",
        "--config.beam.output=gs://b/curated", *AWKWARD,
    ]  # fmt: skip
    cloud, workers = options.view_as(GoogleCloudOptions), options.view_as(WorkerOptions)
    assert (cloud.project, cloud.region, cloud.job_name) == ("mine", "us-central1", "gpt-jax-curate")
    assert cloud.temp_location == "gs://b/curated/temp"
    assert (workers.sdk_container_image, workers.max_num_workers) == ("gcr.io/mine/curate", 9)
    assert options.view_as(DebugOptions).experiments == ["use_runner_v2"]


def test_flink_gets_its_master_and_runs_the_image(stage):
    flags = ["--master=flink:8081", "--output=/nfs/curated", "--image=curate"]
    _, options = called(stage, "flink", *flags, "--", "x")
    values = options.get_all_options()
    assert (values["runner"], values["flink_master"], values["parallelism"]) == ("FlinkRunner", "flink:8081", 16)
    assert (values["environment_type"], values["environment_config"]) == ("DOCKER", "curate")


def test_spark_gets_its_master(stage):
    flags = ["--master=spark://s:7077", "--output=/nfs/curated", "--image=curate"]
    _, options = called(stage, "spark", *flags, "--", "x")
    values = options.get_all_options()
    assert (values["runner"], values["spark_master_url"]) == ("SparkRunner", "spark://s:7077")


def test_no_image_takes_along_what_is_of_this_machine():
    for dockerfile in LAUNCH.glob("*Dockerfile"):
        ignored = dockerfile.with_name(f"{dockerfile.name}.dockerignore").read_text().split("\n")
        assert {".git", ".venv", "runs", "models"} < set(ignored)
