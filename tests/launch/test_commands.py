"""What all launch scripts do alike: help, messages, dry runs, quoting."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from stand_ins import ROOT, WORDS, bash


@pytest.mark.parametrize("path", sorted((ROOT / "launch").glob("*.s*")), ids=lambda path: path.name)
def test_a_script_is_clean_by_shellcheck(path):
    beside_python = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    shellcheck = shutil.which("shellcheck", path=beside_python)
    assert shellcheck, 'shellcheck is part of the extra "test": pip install -e ".[test]"'
    found = subprocess.run([shellcheck, "-x", path], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("script", ["tpu_vm.sh", "gke.sh", "slurm.sh", "local.sh", "beam.sh"])
def test_help_needs_nothing_and_names_every_step_and_flag(stage, script):
    text = stage.run(script, "--help")[0]
    assert text.startswith(f"launch/{script} ")
    source = (ROOT / "launch" / script).read_text()
    steps = re.search(r'^read_step "\$\{1:-\}" (.*)$', source, re.MULTILINE)
    for step in steps[1].split() if steps else []:
        assert f"\n  {step} " in text
    for flag in re.search(r"\bflags='(.*?)'", source)[1].split():
        assert f"\n  --{flag}=" in text


@pytest.mark.parametrize(
    "words, message",
    [
        ("tpu_vm.sh fly", "unknown step fly: expected one of create install"),
        ("tpu_vm.sh create", "no zone. Give --zone=ZONE or set TPU_ZONE"),
        ("tpu_vm.sh create --zone=z", "gcloud is not installed or not on PATH"),
        ("tpu_vm.sh create --zone=z --name=A_b", "--name=A_b: expected a-z"),
        ("tpu_vm.sh create --zone=z --type=h100 --dry-run", "--type=h100: expected v5e-N"),
        ("tpu_vm.sh create --zone z", "unexpected --zone. Flags are written --name=value"),
        ("tpu_vm.sh create --nodes=2", "unexpected --nodes=2. Flags are written --name=value"),
        ("tpu_vm.sh install --zone=z --ref=main", "--ref=main goes with --source=URL"),
        ("gke.sh apply --dry-run -- x", "no image. Give --image=IMAGE or set GKE_IMAGE"),
        ("gke.sh apply --dry-run --image=i --type=h100 -- x", "--type=h100: expected v5e, v6e, v5p or v4"),
        ("gke.sh apply --dry-run --image=i --topology=16 -- x", "--topology=16: a v5e has 2 dimensions"),
        ("gke.sh apply --dry-run --image=i --type=v5p -- x", "--topology=2x4: a v5p has 3 dimensions"),
        ("gke.sh apply --dry-run --image=i --topology=2x4 --chips=3 -- x", "has 8 chips, which nodes of --chips=3"),
        ("gke.sh apply --dry-run --image=i --topology=2x2 --slices=2 -- x", "join only slices of several nodes"),
        ("gke.sh apply --dry-run --image=i --bucket=a;b -- x", "not the name of an image, a bucket"),
        ("gke.sh apply --dry-run --image=i -- \x01", "a control character in the command"),
        ("slurm.sh", "no command; it stands behind --"),
        ("slurm.sh --per=rack -- x", "--per=rack: expected gpu or node"),
        ("slurm.sh --gpus=08 -- x", "--gpus=08: expected a whole number of 1 or more"),
        ("local.sh -- x", "how many processes?"),
        ("local.sh two -- x", "N=two: expected a whole number"),
        ("local.sh 2", "no arguments for gpt_jax.main; they stand behind --"),
        ("beam.sh walk", "unknown step walk: expected one of dataflow flink spark"),
        ("beam.sh flink --output=o --image=i", "no arguments for gpt_jax.main; they stand behind --"),
        ("beam.sh flink --image=i -- x", "no folder to write to. Give --output=FOLDER"),
        ("beam.sh flink --output=o -- x", "no image. Give --image=IMAGE or set BEAM_IMAGE"),
        ("beam.sh flink --output=o --image=i -- x", "no cluster. Give --master=HOST:8081"),
        ("beam.sh flink --output=o;ls --image=i -- x", "a character in a flag"),
        ("beam.sh dataflow --output=o --image=i -- x", "no project. Give --project=PROJECT"),
        ("beam.sh dataflow --output=o --image=i --project=p -- x", "--output=o: Dataflow writes to gs://"),
        ("worker.sh cloud x", "cloud: expected tpu-vm, gke or slurm"),
    ],
)
def test_what_the_user_can_mend_is_one_message_and_exit_code_2(stage, words, message):
    out, err = stage.run(*words.split(" "), code=2)
    assert out == "" and err.startswith(f"error: launch/{words.split()[0]}: ") and err.count("\n") == 1
    assert message in err


@pytest.mark.parametrize("script", ["tpu_vm.sh", "gke.sh", "beam.sh"])
def test_a_script_called_without_a_step_explains_itself(stage, script):
    out, err = stage.run(script, code=2)
    assert out == "" and err.startswith(f"launch/{script} STEP")


@pytest.mark.parametrize(
    "words",
    [
        "tpu_vm.sh create --zone=z", "tpu_vm.sh install --zone=z", "tpu_vm.sh run --zone=z -- x",
        "tpu_vm.sh log --zone=z", "tpu_vm.sh status --zone=z", "tpu_vm.sh stop --zone=z",
        "tpu_vm.sh resume --zone=z -- x", "tpu_vm.sh delete --zone=z", "gke.sh apply --image=i -- x", "gke.sh log",
        "gke.sh status", "gke.sh delete", "slurm.sh -- x", "local.sh 2 -- x",
        "beam.sh dataflow --project=p --output=gs://b/o --image=i -- x",
        "beam.sh flink --master=h:1 --output=o --image=i -- x",
    ],
)  # fmt: skip
def test_a_dry_run_shows_commands_and_runs_none(stage, words):
    stage.plays("gcloud", "kubectl", "sbatch", "python3")
    before = sorted(stage.checkout.rglob("*"))
    head, *command = re.split(" (?=-- )", words)
    _, err = stage.run(*head.split(), "--dry-run", *" ".join(command).split())
    assert re.search(r"^\+ (gcloud|kubectl|sbatch|env|python3) ", err, re.MULTILINE)
    assert stage.calls == [] and sorted(stage.checkout.rglob("*")) == before


@settings(max_examples=30, deadline=None)
@given(WORDS)
def test_quoted_words_come_out_of_a_shell_as_they_went_in(words):
    line = bash(f'script=test; source "{ROOT}/launch/commands.sh"; quoted "$@"', *words)
    for shell in ("bash", "sh"):
        read = subprocess.run([shell, "-c", f"printf '%s\\0' {line}"], check=True, capture_output=True).stdout.decode()
        assert read.split("\0")[:-1] == words
