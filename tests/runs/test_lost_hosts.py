"""Processes that do not come, do not agree or are killed: the others end with a message, and a restart resumes."""

import os
import signal
from pathlib import Path

import pytest
from conftest_runs import hex_numbers
from test_processes import free_port

MINUTE = 60  # in which the others have to be at their end


def start(runs, workdir: Path, count: int, *, which=None, seeds=None, **overrides) -> dict:
    """Starts the processes `which` of a run of `count` with one device each."""
    address = f"127.0.0.1:{free_port()}"
    variables = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count), "GPT_JAX_JOIN_SECONDS": "200"}
    return {
        index: runs.start(
            workdir,
            environment=variables | {"JAX_PROCESS_ID": str(index)} | (overrides.get("environment") or {}),
            **{"mesh.fsdp": count, "mesh.data": 1, "seed": (seeds or {}).get(index, 0)},
        )
        for index in (which if which is not None else range(count))
    }


def ends(processes: dict, timeout: float = 300) -> dict[int, tuple[int, str]]:
    """Each process's exit code and output."""
    outputs = {index: process.communicate(timeout=timeout)[0] for index, process in processes.items()}
    return {index: (process.returncode, outputs[index]) for index, process in processes.items()}


def kill_one_and_go_on(runs, tmp_path: Path, count: int, victim: int) -> None:
    processes = start(runs, tmp_path, count)
    checkpoint = tmp_path / "checkpoints" / "3"
    while not checkpoint.exists() and processes[victim].poll() is None:
        signal.sigtimedwait([], 0.05)
    processes[victim].kill()
    for index, (code, output) in ends(processes, timeout=MINUTE).items():
        if index == victim:
            assert code == -signal.SIGKILL, output
            continue
        assert code == os.EX_TEMPFAIL, output
        assert f"process {victim} (host" in output and "is gone" in output and "from the last checkpoint" in output
        assert "Traceback" not in output and "Check failure" not in output
    again = ends(start(runs, tmp_path, count))
    assert [code for code, _ in again.values()] == [0] * count, again
    assert "going on from the checkpoint of step" in again[0][1]


@pytest.fixture(scope="module")
def two_undisturbed(runs, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("two")
    results = ends(start(runs, workdir, 2))
    assert [code for code, _ in results.values()] == [0, 0], results
    return workdir


@pytest.mark.parametrize("victim", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_the_loss_of_one_of_two_ends_the_other_and_a_restart_resumes_bit_for_bit(
    runs, two_undisturbed, tmp_path, victim
):
    kill_one_and_go_on(runs, tmp_path, 2, victim)
    assert hex_numbers(tmp_path) == hex_numbers(two_undisturbed)


@pytest.mark.slow
def test_a_run_of_four_that_loses_one_resumes_bit_for_bit(runs, tmp_path):
    assert [code for code, _ in ends(start(runs, tmp_path / "whole", 4)).values()] == [0] * 4
    kill_one_and_go_on(runs, tmp_path / "killed", 4, victim=2)
    assert hex_numbers(tmp_path / "killed") == hex_numbers(tmp_path / "whole")


def test_one_host_that_is_started_alone_says_who_is_missing(runs, tmp_path):
    processes = start(runs, tmp_path / "run", 4, which=[0], environment={"GPT_JAX_JOIN_SECONDS": "1"})
    code, output = ends(processes)[0]
    assert code == 2 and "3 of 4 processes have not come within 1 s: ids 1, 2, 3." in output
    assert "Traceback" not in output and not (tmp_path / "run").exists()


def test_a_host_that_finds_no_coordinator_says_where_it_looked(runs, tmp_path):
    processes = start(runs, tmp_path / "run", 2, which=[1], environment={"GPT_JAX_JOIN_SECONDS": "1"})
    code, output = ends(processes)[1]
    assert code == 2 and "nothing answers at 127.0.0.1:" in output and "Traceback" not in output


def test_hosts_that_were_asked_different_things_end_before_any_work(runs, tmp_path):
    results = ends(start(runs, tmp_path / "run", 2, seeds={1: 7}))
    for code, output in results.values():
        assert code == 2 and "config seed: 0 on process 0" in output and "7 on process 1" in output
        assert "Traceback" not in output
    assert not (tmp_path / "run").exists()
