"""Nothing is lost: a run that was killed, at any moment, ends with the numbers of one that was not."""

import shutil
import signal

import numpy as np
import pytest
from conftest_runs import hex_numbers, kill_when, read_metrics


def rows_reach(workdir, step):
    return lambda: (
        (workdir / "metrics.jsonl").exists() and (workdir / "metrics.jsonl").read_text().count("train") >= step
    )


def first_match(folder, pattern):
    return lambda: any(folder.glob(pattern))


KILL_POINTS = {
    "while the workdir is new": lambda workdir, cache: lambda: (workdir / ".lock").exists(),
    "while the tokenizer is trained": lambda workdir, cache: first_match(cache, "tokenizers/*/lock"),
    "while the tokens are written": lambda workdir, cache: first_match(cache, "tokens/*/data-*"),
    "before the first checkpoint": lambda workdir, cache: rows_reach(workdir, 2),
    "while the first checkpoint is written": lambda workdir, cache: first_match(workdir, "checkpoints/*tmp*"),
    "just after a checkpoint": lambda workdir, cache: lambda: (workdir / "checkpoints" / "3").exists(),
    "while a later checkpoint is written": lambda workdir, cache: first_match(workdir, "checkpoints/9*tmp*"),
    "at the very end": lambda workdir, cache: rows_reach(workdir, 12),
}


@pytest.mark.parametrize("moment", KILL_POINTS)
def test_a_killed_run_resumes_bit_for_bit(moment, runs, undisturbed, tmp_path):
    cache = tmp_path / "cache" if "writ" in moment or "trained" in moment else runs.cache
    process = runs.start(tmp_path / "run", **{"data.cache_dir": cache})
    kill_when(process, KILL_POINTS[moment](tmp_path / "run", cache))
    runs.finish(tmp_path / "run", **{"data.cache_dir": cache})
    assert hex_numbers(tmp_path / "run") == hex_numbers(undisturbed)
    assert not list((tmp_path / "run" / "checkpoints").glob("*tmp*"))


def test_a_run_killed_again_and_again_resumes_bit_for_bit(runs, undisturbed, tmp_path):
    for step in (2, 5, 8, 11):
        kill_when(runs.start(tmp_path), rows_reach(tmp_path, step))
    runs.finish(tmp_path)
    assert hex_numbers(tmp_path) == hex_numbers(undisturbed)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_stops_and_the_run_goes_on(number, runs, undisturbed, tmp_path):
    process = runs.start(tmp_path, **{"checkpoint.every": 0})
    output = kill_when(process, rows_reach(tmp_path, 4), number=number)
    assert process.returncode == 128 + number
    assert f"stopped by {signal.Signals(number).name} after step" in output
    steps = [int(path.name) for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()]
    assert len(steps) == 1 and 4 <= steps[0] < 12
    output = runs.finish(tmp_path, **{"checkpoint.every": 0})
    assert f"going on from the checkpoint of step {steps[0]}" in output
    assert hex_numbers(tmp_path) == hex_numbers(undisturbed)


def test_the_same_seed_gives_the_same_numbers_and_another_does_not(runs, undisturbed, tmp_path):
    runs.finish(tmp_path / "same", **{"data.cache_dir": tmp_path / "own cache"})
    assert hex_numbers(tmp_path / "same") == hex_numbers(undisturbed)
    runs.finish(tmp_path / "other", seed=1)
    assert read_metrics(tmp_path / "other")[1, "train"]["loss"] != read_metrics(undisturbed)[1, "train"]["loss"]


def test_a_run_goes_on_with_8_then_4_then_1_devices(runs, undisturbed, tmp_path):
    kill_when(runs.start(tmp_path, devices=8), rows_reach(tmp_path, 4))
    kill_when(runs.start(tmp_path, devices=4, **{"mesh.data": 2, "mesh.fsdp": 2}), rows_reach(tmp_path, 8))
    runs.finish(tmp_path, devices=1)
    expected, found = read_metrics(undisturbed), read_metrics(tmp_path)
    assert expected.keys() == found.keys()
    for key in expected:
        np.testing.assert_allclose(found[key]["loss"], expected[key]["loss"], rtol=1e-5, err_msg=str(key))


def test_a_finished_run_started_again_only_makes_up_what_is_missing(runs, undisturbed, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed, workdir)
    (workdir / "report.md").unlink()
    lines = (workdir / "metrics.jsonl").read_text().splitlines(keepends=True)
    (workdir / "metrics.jsonl").write_text(
        "".join(line for line in lines if '"step": 12, "split": "valid"' not in line) + '{"torn'
    )
    runs.finish(workdir)
    assert hex_numbers(workdir) == hex_numbers(undisturbed)
    assert (workdir / "report.md").exists()


def test_a_damaged_newest_checkpoint_is_named_and_the_run_ends_the_same(runs, undisturbed, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed, workdir)
    for path in (workdir / "checkpoints" / "12" / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    output = runs.finish(workdir)
    assert "checkpoints/12 is damaged" in output and "going on from the checkpoint of step 9" in output
    assert hex_numbers(workdir) == hex_numbers(undisturbed)
