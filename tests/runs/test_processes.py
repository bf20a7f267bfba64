"""Several processes form one mesh over the loopback and train as one process with the same mesh does."""

import json
import re
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import numpy as np
import pytest
from conftest_runs import hex_numbers, kill_when, read_metrics


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start_two(runs, workdir: Path, **overrides) -> list[subprocess.Popen]:
    """Two processes of two devices each."""
    address = f"127.0.0.1:{free_port()}"
    return [
        runs.start(
            workdir, devices=2,
            environment={"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(index)},
            **overrides,
        )
        for index in range(2)
    ]  # fmt: skip


def finish_two(runs, workdir: Path, **overrides) -> list[str]:
    """Runs two processes to their end and returns what each printed."""
    processes = start_two(runs, workdir, **overrides)
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    return outputs


def test_two_processes_train_like_one(runs, tmp_path):
    mesh = {"mesh.data": 2, "mesh.fsdp": 2}
    outputs = finish_two(runs, tmp_path / "two", **mesh)
    runs.finish(tmp_path / "one", devices=4, **mesh)
    two, one = read_metrics(tmp_path / "two"), read_metrics(tmp_path / "one")
    assert two.keys() == one.keys()
    for key in one:
        np.testing.assert_allclose(two[key]["loss"], one[key]["loss"], rtol=1e-5, err_msg=str(key))
    assert json.loads((tmp_path / "two" / "environment.json").read_text())["processes"] == 2
    assert outputs[0].count("bits per byte: ") == 1 and "bits per byte" not in outputs[1]  # one of them speaks


@pytest.mark.slow
def test_two_processes_stop_together_by_a_signal_to_one_and_go_on(runs, tmp_path):
    processes = start_two(runs, tmp_path / "stopped")
    log = tmp_path / "stopped" / "metrics.jsonl"
    output = kill_when(processes[0], lambda: log.exists() and log.read_text().count("train") > 3, number=signal.SIGTERM)
    processes[1].communicate(timeout=120)
    assert [process.returncode for process in processes] == [143, 143]
    stopped_at = int(re.search(r"after step (\d+)", output)[1])
    assert f"checkpoint of step {stopped_at}" in finish_two(runs, tmp_path / "stopped")[0]
    finish_two(runs, tmp_path / "undisturbed")
    assert hex_numbers(tmp_path / "stopped") == hex_numbers(tmp_path / "undisturbed")


def test_a_variable_that_is_missing_is_named(runs, tmp_path):
    process = runs.start(tmp_path, environment={"JAX_COORDINATOR_ADDRESS": "127.0.0.1:1", "JAX_NUM_PROCESSES": "2"})
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 2 and "JAX_PROCESS_ID not set" in output


def test_a_refusal_of_the_first_process_ends_them_all(runs, undisturbed, tmp_path):
    shutil.copytree(undisturbed, tmp_path / "run")
    processes = start_two(runs, tmp_path / "run", **{"train.steps": 20})
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [2, 2], outputs
    assert "train.steps: 12 there, 20 here" in outputs[0]
    assert "process 0 does not go on" in outputs[1] and "Traceback" not in outputs[1]
