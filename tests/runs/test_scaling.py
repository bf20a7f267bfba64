"""A ladder of runs, the law through them, and the run that it foretells."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest_runs import ROOT, kill_when

from gpt_jax.main import main, parse_flags
from gpt_jax.planning.scaling_laws import PowerLaw
from gpt_jax.runs import pretrain, scaling

LADDER = "16x1@1024/2048,32x1@1024/2048,48x1@2048/4096"


@pytest.fixture(autouse=True)
def in_the_checkout(monkeypatch):
    monkeypatch.chdir(ROOT)


def command(workdir: Path, text: Path, cache: Path, preset: str = "fit", **fields) -> list[str]:
    fields = {
        "data.source": f"file:{text}", "data.cache_dir": cache, "data.sequence_length": 16,
        "model.context_length": 16, "train.batch_size": 8, "train.log_every": 1,
        "schedule.warmup_steps": 2, "scaling.resamples": 20,
    } | fields  # fmt: skip
    overrides = [f"--config.{name}={value}" for name, value in fields.items()]
    return ["main", f"--config=configs/scaling.py:{preset}", f"--workdir={workdir}", *overrides]


@pytest.fixture(scope="module")
def done(text, cache, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("scaling") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        assert main(command(workdir, text, cache, ladder=LADDER, held_out="64x1@4096", budget="1e10")) == 0
    return workdir


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    """Runs of a law that is known, as anyone's table."""
    law, path = PowerLaw(1.4, (60.0, 200.0), (0.35, 0.4)), tmp_path_factory.mktemp("table") / "runs.csv"
    rows = [f"{N},{D},{float(law(N, D))}" for N in (50e3, 2e5, 1e6) for D in (1e6, 3e6, 9e6, 2.7e7)]
    path.write_text("\n".join(["N,D,L", *rows]) + "\n")
    return path


def result(workdir: Path) -> dict:
    return json.loads((workdir / "scaling.json").read_text())


def test_a_run_is_foretold_before_it_is_made(done):
    prediction, written = json.loads((done / "prediction.json").read_text()), result(done)
    assert (
        prediction["run"] == "64x1@4096" and len(prediction["points"]) == 6 and "64x1@4096" not in prediction["points"]
    )
    made = [path.stat().st_mtime_ns for path in (done / "ladder" / "64x1@4096").rglob("*")]
    assert (done / "prediction.json").stat().st_mtime_ns < min(made)
    measured = written["measured"]["loss"]
    assert written["error"] == pytest.approx(prediction["loss"] / measured - 1)
    report = (done / "report.md").read_text()
    assert f"foretold {prediction['loss']:.4f}" in report and f"Measured {measured:.4f}" in report
    for name in ("curves", "residuals", "optimal"):
        assert (done / f"{name}.png").read_bytes().startswith(b"\x89PNG") and f"({name}.png)" in report


def test_points_count_what_the_papers_count(done):
    point = next(point for point in result(done)["points"] if point["name"] == "48x1@4096")
    weights, gains = 12 * 48**2, 3 * 48
    assert point["parameters"] == weights + gains and point["tokens"] == 4096
    assert point["compute"] == 6 * point["parameters"] * 4096
    assert point["total_parameters"] == point["parameters"] + 512 * 48
    assert point["flops"] == (6 * (weights + 512 * 48) + 12 * 48 * 16) * 4096


def test_the_rate_falls_with_the_width_and_ends_with_the_run(done):
    schedules = {
        name: json.loads((done / "ladder" / name / "config.json").read_text())["schedule"]
        for name in ("16x1@1024", "64x1@4096")
    }
    assert schedules["16x1@1024"]["peak"] == pytest.approx(2 * schedules["64x1@4096"]["peak"])
    last = [json.loads(line) for line in (done / "ladder" / "64x1@4096" / "metrics.jsonl").read_text().splitlines()][-2]
    assert last["step"] == 32 and last["learning_rate"] == pytest.approx(0.1 * schedules["64x1@4096"]["peak"], rel=1e-3)


def test_started_again_nothing_is_made_or_foretold_twice(done, text, cache, monkeypatch, capsys):
    monkeypatch.setattr(pretrain, "run", lambda *_: pytest.fail("made again"))
    before = (done / "prediction.json").read_bytes(), result(done)
    assert main(command(done, text, cache, ladder=LADDER, held_out="64x1@4096", budget="1e10")) == 0
    assert ((done / "prediction.json").read_bytes(), result(done)) == before
    said = "".join(capsys.readouterr())
    assert said.count("# Scaling laws") == 1 and "not made yet" not in said


def test_finished_ladders_are_read_and_others_join(done, text, cache, tmp_path):
    more = dict(ladder="64x1@1024", read=f"{done / 'ladder'}")
    assert main(command(tmp_path / "run", text, cache, **more)) == 0
    assert len(result(tmp_path / "run")["points"]) == 8


@pytest.mark.slow
def test_a_killed_ladder_goes_on_to_the_same_numbers(text, cache, table, tmp_path):
    fields = {"ladder": "32x1@16384", "read": table, "checkpoint.every": 8, "data.prefetch": 1}
    assert main(command(tmp_path / "whole", text, cache, **fields)) == 0
    process = subprocess.Popen(
        [sys.executable, "-m", "gpt_jax.main", *command(tmp_path / "killed", text, cache, **fields)[1:]],
        cwd=ROOT, env=dict(os.environ), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip
    checkpoints = tmp_path / "killed" / "ladder" / "32x1@16384" / "checkpoints"
    kill_when(process, lambda: any(path.name.isdigit() for path in checkpoints.glob("*")), number=signal.SIGKILL)
    assert not (tmp_path / "killed" / "scaling.json").exists()
    assert main(command(tmp_path / "killed", text, cache, **fields)) == 0
    assert result(tmp_path / "killed")["points"] == result(tmp_path / "whole")["points"]


def test_a_table_of_anyones_runs_gives_the_law_and_the_best_size(text, cache, table, tmp_path, capsys):
    rows = [dict(zip("NDL", map(float, line.split(",")), strict=True)) for line in table.read_text().splitlines()[1:]]
    lines = tmp_path / "runs.jsonl"
    lines.write_text("".join(json.dumps(row | {"name": f"run {i}", "seed": 0}) + "\n" for i, row in enumerate(rows)))
    for number, path in enumerate((table, lines)):
        assert main(command(tmp_path / str(number), text, cache, read=path, budget="1e14")) == 0
        law = result(tmp_path / str(number))["laws"]["L(N,D)"]["values"]
        assert law["exponent_parameters"] == pytest.approx(0.35, rel=0.02) and law["E"] == pytest.approx(1.4, rel=0.02)
    best = result(tmp_path / "1")["optimal"]
    assert 6 * best["parameters"] * best["tokens"] == pytest.approx(1e14)
    assert best["parameters_interval"][0] <= best["parameters"] * 1.01
    assert "Least loss for 1e+14 FLOPs" in capsys.readouterr().err + (tmp_path / "1" / "report.md").read_text()


def test_runs_too_short_for_a_law_are_shown_and_left_out(text, cache, table, tmp_path):
    assert main(command(tmp_path / "run", text, cache, read=table, **{"scaling.least_tokens": 2_000_000})) == 0
    written = result(tmp_path / "run")
    left_out = [point["name"] for point in written["points"] if not point["used"]]
    assert len(left_out) == 3 and len(written["laws"]["L(N,D)"]["points"]) == 9
    assert all(f"| {name} (left out) |" in (tmp_path / "run" / "report.md").read_text() for name in left_out)


@pytest.mark.parametrize("preset", ["books", "novels"])
def test_shipped_ladders_can_be_run(preset, text, cache, tmp_path):
    """Every run of them resolves, a law goes through them, and what they foretell is four times larger."""
    values = parse_flags(
        command(tmp_path, text, cache, preset=preset, **{"data.sequence_length": 128, "model.context_length": 128})
    )
    rungs, held_out = scaling.check(values.config)
    assert len({(rung.width, rung.layers) for rung in rungs}) >= 3 and len({rung.tokens for rung in rungs}) >= 3
    compute = [rung.width**2 * rung.layers * rung.tokens for rung in (*rungs, held_out)]
    assert compute[-1] > 3.9 * max(compute[:-1])


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (dict(), ["nothing to fit", "read=PATHS"]),
        (dict(ladder="48by2@1M"), ["'48by2@1M'", "WIDTHxLAYERS@TOKENS"]),
        (dict(ladder="48x2@1Q"), ["'48x2@1Q'", "0.8M"]),
        (dict(ladder="40x2@1M,48x2@1M,64x2@1M,80x2@1M"), ["40x2@1M", "scaling.head_dim=16"]),
        (dict(ladder="48x2@100,48x2@1M,64x2@1M,80x2@1M"), ["48x2@100", "no two steps"]),
        (dict(ladder="48x2@1M/2M,64x2@1M"), ["3 runs", "4 are the least"]),
        (dict(ladder="48x2@1M,48x2@1M,64x2@1M,80x2@1M"), ["48x2@1M", "twice"]),
        (dict(ladder=LADDER, held_out="16x1@1024"), ["16x1@1024", "no point of the law that foretells it"]),
        (dict(ladder=LADDER, held_out="16x1@4096/8192"), ["expected one run"]),
        (dict(read="nowhere/*"), ["read=nowhere/*", "no such file"]),
        (dict(read=ROOT / "docs"), ["no pretraining run that is done"]),
        (dict(read=ROOT / "setup.cfg"), ["setup.cfg", ".csv"]),
        ({"ladder": LADDER, "scaling.resamples": 3}, ["scaling.resamples=3"]),
        ({"ladder": LADDER, "scaling.huber_delta": 0.0}, ["scaling.huber_delta=0.0"]),
        (dict(ladder=LADDER, budget="-1"), ["budget=-1"]),
        ({"ladder": LADDER, "model.activation": "tanh"}, ["model.activation='tanh'"]),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_run(text, cache, tmp_path, capsys, fields, words):
    assert main(command(tmp_path / "run", text, cache, **fields)) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("error: ") and all(word in message for word in words)
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", "N,D\n1,2\n", ["a.csv, line 2", "expected a loss"]),
        ("a.csv", "N,D,L\n1,2,3\n1,2,minus\n", ["a.csv, line 3", "loss='minus'"]),
        ("a.csv", "N,D,L\n1,2,nan\n", ["line 2", "positive"]),
        ("a.csv", "N,D,L\n", ["holds no run"]),
        ("a.csv", "C,L\n1,3\n2,2\n", ["no law can be fitted", "L(C)", "at least 4 runs"]),
        ("a.csv", "C,L\n1,3\n1,3\n", ["line 2", "line 3", "the same run"]),
        ("a.jsonl", '{"N": 1, "D": 2, "L": 3}\n{"N": 1,\n', ["a.jsonl, line 2", "JSON"]),
        ("a.jsonl", "3\n", ["line 1", "JSON object"]),
    ],
)
def test_a_table_that_is_wrong_names_its_line(text, cache, tmp_path, capsys, name, content, words):
    (tmp_path / name).write_text(content)
    assert main(command(tmp_path / "run", text, cache, read=tmp_path / name)) == 2
    message = capsys.readouterr().err
    assert "error: " in message and all(word in message for word in words)


def test_a_best_size_needs_a_law_of_both(text, cache, tmp_path, capsys):
    (tmp_path / "a.csv").write_text("C,L\n" + "".join(f"{10.0**k},{3 - k / 10}\n" for k in range(5)))
    assert main(command(tmp_path / "run", text, cache, read=tmp_path / "a.csv", budget="1e3")) == 2
    assert "no size can be chosen without L(N,D)" in capsys.readouterr().err


def test_runs_of_another_text_or_tokenizer_are_refused(done, text, cache, tmp_path, capsys):
    other = tmp_path / "other"
    other.mkdir()
    for name in ("config.json", "metrics.jsonl", "report.md", "data.json"):
        content = (done / "ladder" / "16x1@1024" / name).read_text()
        (other / name).write_text(content)
    facts = json.loads((other / "data.json").read_text())
    (other / "data.json").write_text(json.dumps(facts | {"tokenizer": "another"}))
    assert main(command(tmp_path / "run", text, cache, read=f"{done / 'ladder'},{other}")) == 2
    assert "have another tokenizer" in capsys.readouterr().err


def test_a_prediction_is_of_one_run_and_comes_first(done, text, cache, tmp_path, capsys):
    assert main(command(done, text, cache, ladder=LADDER, held_out="80x1@4096")) == 2
    assert "foretells 64x1@4096, not 80x1@4096" in capsys.readouterr().err
    (tmp_path / "run" / "ladder" / "80x1@4096").mkdir(parents=True)
    assert main(command(tmp_path / "run", text, cache, read=done / "ladder", held_out="80x1@4096")) == 2
    assert "begun before its loss was foretold" in capsys.readouterr().err


def test_a_run_that_is_read_is_not_foretold(done, text, cache, tmp_path, capsys):
    fields = dict(read=done / "ladder", held_out="64x1@4096")
    assert main(command(tmp_path / "run", text, cache, **fields)) == 2
    assert "64x1@4096 among the runs read" in capsys.readouterr().err
    assert not (tmp_path / "run" / "prediction.json").exists()


@pytest.mark.parametrize("fields", [{"train.ramp_tokens": 512}, {"train.tokens": 4096}, {"ladder": "16x1@1e400"}])
def test_what_would_make_another_run_than_the_ladder_says_is_refused(text, cache, tmp_path, capsys, fields):
    assert main(command(tmp_path / "run", text, cache, **{"ladder": LADDER} | fields)) == 2
    error = capsys.readouterr().err
    assert ("full from the start" if "ladder" not in fields else "expected WIDTHxLAYERS") in error


def test_time_of_the_prediction_is_that_of_the_clock(done):
    stamp = json.loads((done / "prediction.json").read_text())["time"]
    assert stamp[:4] == time.strftime("%Y") and ("+" in stamp or "-" in stamp[10:])
