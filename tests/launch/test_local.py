"""launch/local.sh starts processes that form one run, and none of them outlives it."""

import json
import os
import signal
import subprocess
import sys

import pytest
from stand_ins import AWKWARD, ROOT, Stage


def local(stage: Stage, code: str) -> dict[str, str]:
    """An interpreter that runs this bash code instead of gpt_jax; the environment that makes local.sh take it."""
    stage.script(stage.place / "python", f"#!/usr/bin/env bash\n{code}\n")
    return {"PYTHON": str(stage.place / "python")}


def lines_of(out: str, index: int) -> list[str]:
    return [line.removeprefix(f"[{index}] ") for line in out.splitlines() if line.startswith(f"[{index}] ")]


def test_processes_get_their_place_and_the_arguments_as_given(stage):
    code = """echo "$JAX_COORDINATOR_ADDRESS $JAX_NUM_PROCESSES $JAX_PROCESS_ID $JAX_PLATFORMS $#"
printf '%s\\n' "$@"
printf end >&2"""
    words = [word for word in AWKWARD if "\n" not in word]
    out, err = stage.run("local.sh", "3", "--port=20123", "--", *words, **local(stage, code))
    for index in range(3):
        assert lines_of(out, index) == [
            f"127.0.0.1:20123 3 {index} cpu {len(words) + 2}", "-m", "gpt_jax.main", *words, "end"
        ]  # fmt: skip
    assert len(out.splitlines()) == 3 * (len(words) + 4) and err.count("+ env ") == 3


def test_a_port_is_chosen_that_all_processes_share(stage):
    out, _ = stage.run("local.sh", "2", "--", "x", **local(stage, "echo $JAX_COORDINATOR_ADDRESS"))
    addresses = {line.split()[1] for line in out.splitlines()}
    assert len(addresses) == 1 and 20000 <= int(addresses.pop().split(":")[1]) < 32000


def test_one_process_is_no_distributed_run(stage):
    out, _ = stage.run("local.sh", "1", "--", "x", **local(stage, "echo ${JAX_COORDINATOR_ADDRESS-none}"))
    assert out == "[0] none\n"


def test_the_failure_of_one_process_ends_all_with_its_exit_code(stage):
    code = 'trap "echo told; exit 143" TERM; [ $JAX_PROCESS_ID = 1 ] && exit 7; sleep 60 & wait $!'
    out, err = stage.run("local.sh", "3", "--", "x", code=7, **local(stage, code))
    assert lines_of(out, 0) == lines_of(out, 2) == ["told"]
    assert "a process ended with exit code 7; ending the others" in err


def test_a_process_that_does_not_end_when_told_is_killed(stage):
    code = 'trap "" TERM; [ $JAX_PROCESS_ID = 1 ] && exit 7; sleep 60; sleep 60'
    stage.run("local.sh", "2", "--grace=1", "--", "x", code=7, **local(stage, code))


def test_what_a_lost_process_leaves_behind_ends_with_it(stage):
    code = 'if [ $JAX_PROCESS_ID = 0 ]; then sleep 60 & kill -KILL $$; fi; trap "exit 143" TERM; sleep 60 & wait $!'
    stage.run("local.sh", "2", "--", "x", code=137, **local(stage, code))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_passed_on_once_to_every_process(stage, number):
    code = f"""exec {sys.executable} -c '
import os, signal, sys, time
def end(number, frame):
    print("signal", number)
    time.sleep(0.5 * (os.environ["JAX_PROCESS_ID"] == "0"))  # the first saves
    sys.exit(128 + number)
signal.signal(signal.SIGINT, end)
signal.signal(signal.SIGTERM, end)
print("ready")
time.sleep(60)'"""
    process = stage.start("local.sh", "2", "--", "x", **local(stage, code))
    assert [process.stdout.readline()[4:] for _ in range(2)] == ["ready\n"] * 2
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, err
    assert lines_of(out, 0) == lines_of(out, 1) == [f"signal {int(number)}"]
    assert f"passing {number.name} on" in err and "ending the others" not in err


def test_an_interpreter_that_is_not_there_is_named(stage):
    err = stage.run("local.sh", "2", "--", "x", code=2, PYTHON="/no/python")[1]
    assert err.startswith("error: launch/local.sh: /no/python is not installed")


@pytest.mark.slow
def test_two_processes_train_as_one_run(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("".join(f"The number {n} comes after the number {n - 1}.\n" for n in range(1, 6000)))
    fields = {
        "data.source": f"file:{text}", "data.cache_dir": tmp_path / "cache", "tokenizer.vocab_size": 300,
        "model.num_layers": 1, "model.embed_dim": 16, "model.num_heads": 2, "model.context_length": 16,
        "train.steps": 4, "train.batch_size": 4, "train.eval_every": 4, "schedule.warmup_steps": 1,
        "report.sample_every": 0, "mesh.fsdp": 2,
    }  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    done = subprocess.run(
        ["launch/local.sh", "2", "--", "--config=configs/pretrain.py", f"--workdir={tmp_path / 'run'}",
         *(f"--config.{name}={value}" for name, value in fields.items())],
        cwd=ROOT, capture_output=True, text=True, timeout=600,
        env=environment | {"PYTHON": sys.executable, "JAX_NUM_CPU_DEVICES": "2"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["processes"] == 2
    assert any("bits per byte" in line for line in lines_of(done.stdout, 0))
