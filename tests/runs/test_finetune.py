"""Fine-tuning through the entry that users call: what it leaves, that it resumes, what it refuses."""

import json
import random
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest_runs import ROOT, hex_numbers
from small_models import write_model

import gpt_jax
from gpt_jax.main import main
from gpt_jax.parallel.rules import path_string
from gpt_jax.runs import finetune


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("gpt2") / "model", "gpt2-small", context_length=32)


def rows(count: int, seed: int) -> list[dict]:
    """Two classes that one letter tells apart."""
    draw = random.Random(seed)
    found = []
    for number in range(count):
        label = draw.choice(["yes", "no"])
        text = "".join(draw.choice("abcd") for _ in range(draw.randint(2, 10))) + ("y" if label == "yes" else "n")
        found.append({"id": number, "review": text, "label": label})
    return found


def write_rows(path: Path, found: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return path


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tables")
    return {
        split: write_rows(folder / f"{split}.jsonl", rows(count, seed))
        for seed, (split, count) in enumerate({"train": 128, "valid": 24, "test": 24}.items())
    }


def arguments(
    workdir: Path, pretrained: Path, tables: dict[str, Path], *flags: str, kind="classification"
) -> list[str]:
    fields = {f"data.{split}": f"file:{path}" for split, path in tables.items()} | {
        "train.batch_size": 8, "train.epochs": 2, "train.log_every": 1,
        "schedule.peak": 1e-2, "report.tensorboard": False,
    }  # fmt: skip
    if kind == "classification":
        fields["data.columns.text"] = "review"
    overrides = [f"--config.{name}={value}" for name, value in fields.items()]
    return [f"--config=configs/finetune.py:{kind},init_from={pretrained}", f"--workdir={workdir}", *overrides, *flags]


@pytest.fixture(autouse=True)
def in_the_checkout(monkeypatch):
    monkeypatch.chdir(ROOT)


def fine_tune(*args, **options) -> int:
    return main(["main", *arguments(*args, **options)])


@pytest.fixture(scope="module")
def done(pretrained, tables, tmp_path_factory) -> Path:
    """The workdir of a run that nothing happened to."""
    workdir = tmp_path_factory.mktemp("done") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        assert fine_tune(workdir, pretrained, tables, "--config.train.epochs=6") == 0
    return workdir


def test_a_run_leaves_scores_curves_and_mistakes(done, tables):
    scores = json.loads((done / "scores.json").read_text())
    assert set(scores) == {"valid", "test"} and set(scores["test"]) == {"loss", "accuracy"}
    assert scores["test"]["accuracy"] > 0.9  # one letter decides
    report = (done / "report.md").read_text()
    assert f"{100 * scores['test']['accuracy']:.1f}" in report and "worst mistakes" in report
    for picture in ("learning.png", "confusion.png"):
        assert (done / picture).read_bytes().startswith(b"\x89PNG") and picture in report
    assert {"config.json", "data.json", "environment.json", "tokenizer"} <= {path.name for path in done.iterdir()}
    assert json.loads((done / "data.json").read_text())["labels"] == ["no", "yes"]


def test_the_first_step_is_told_in_parts_and_steps_can_be_profiled(done, pretrained, tables, tmp_path, capsys):
    flags = ("--config.train.epochs=6", "--config.report.profile_steps=2:3")
    assert fine_tune(tmp_path / "run", pretrained, tables, *flags) == 0
    output = capsys.readouterr().err
    assert output.count("first step after ") == 1 and ", compiling " in output
    assert f"profile of steps 2 to 3: {tmp_path / 'run' / 'profile'}" in output
    assert list((tmp_path / "run" / "profile").glob("plugins/profile/*/*.xplane.pb"))
    assert (tmp_path / "run" / "scores.json").read_text() == (done / "scores.json").read_text()
    assert fine_tune(tmp_path / "other", pretrained, tables, "--config.report.profile_steps=900:901") == 2
    assert "the last step of this run is 32" in capsys.readouterr().err


def test_the_best_epoch_is_the_one_that_is_scored(done):
    valid = [
        row for row in map(json.loads, (done / "metrics.jsonl").read_text().splitlines()) if row["split"] == "valid"
    ]
    assert len(valid) == 6
    best = max(row["accuracy"] for row in valid)
    assert json.loads((done / "scores.json").read_text())["valid"]["accuracy"] == best


def test_the_best_epoch_is_kept_however_often_checkpoints_are_saved(done, pretrained, tables, tmp_path):
    flags = ("--config.train.epochs=6", "--config.checkpoint.every=5", "--config.checkpoint.keep=1")
    assert fine_tune(tmp_path / "run", pretrained, tables, *flags) == 0
    assert (tmp_path / "run" / "scores.json").read_text() == (done / "scores.json").read_text()


def test_started_again_it_says_the_same_though_the_weights_are_gone(done, pretrained, tables):
    before = (done / "scores.json").read_text()
    pretrained.rename(pretrained.parent / "elsewhere")
    try:
        assert fine_tune(done, pretrained, tables, "--config.train.epochs=6") == 0
    finally:
        (pretrained.parent / "elsewhere").rename(pretrained)
    assert (done / "scores.json").read_text() == before


def test_a_fine_tuned_model_can_be_loaded_and_fine_tuned_again(done, tables, tmp_path):
    lm = gpt_jax.load(done)
    assert lm.config.vocab_size == lm.tokenizer.vocab_size == 260
    assert lm.logits([lm.tokenizer.encode("abc")]).shape == (1, 3, 260)
    assert fine_tune(tmp_path / "run", done, tables, "--config.train.epochs=1") == 0


@pytest.mark.parametrize("devices", [1])
def test_a_killed_run_resumes_bit_for_bit(devices, pretrained, tables, tmp_path):
    import os
    import signal
    import subprocess
    import sys
    import time

    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}
    environment |= {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "xla")}
    environment |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}

    def start(name: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "gpt_jax.main"]
        command += arguments(tmp_path / name, pretrained, tables, "--config.checkpoint.every=8")
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    whole = start("whole")
    assert whole.wait(timeout=300) == 0, whole.communicate()[0]
    killed = start("killed")
    deadline = time.monotonic() + 240
    while not (tmp_path / "killed" / "checkpoints" / "8").exists():
        assert killed.poll() is None and time.monotonic() < deadline
        time.sleep(0.001)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed" / "scores.json").exists()
    again = start("killed")
    assert again.wait(timeout=300) == 0, again.communicate()[0]
    (tmp_path / "whole" / "samples.jsonl").touch(), (tmp_path / "killed" / "samples.jsonl").touch()
    assert hex_numbers(tmp_path / "whole") == hex_numbers(tmp_path / "killed")
    assert (tmp_path / "whole" / "scores.json").read_text() == (tmp_path / "killed" / "scores.json").read_text()


def test_several_seeds_give_median_best_and_spread(pretrained, tables, tmp_path):
    assert fine_tune(tmp_path / "run", pretrained, tables, "--config.seeds=2", "--config.train.epochs=1") == 0
    ones = [json.loads((tmp_path / "run" / f"seed-{seed}" / "scores.json").read_text()) for seed in (0, 1)]
    summary = json.loads((tmp_path / "run" / "scores.json").read_text())["test"]["loss"]
    losses = [one["test"]["loss"] for one in ones]
    assert losses[0] != losses[1] and summary["median"] == pytest.approx(sum(losses) / 2)
    assert (summary["best"], summary["worst"], summary["seeds"]) == (min(losses), max(losses), 2)


def test_several_seeds_do_not_go_into_the_folder_of_one(done, pretrained, tables, capsys):
    before = (done / "scores.json").read_text()
    assert fine_tune(done, pretrained, tables, "--config.train.epochs=6", "--config.seeds=2") == 2
    assert "holds a run of a single seed" in capsys.readouterr().err
    assert (done / "scores.json").read_text() == before


def test_k_layers_are_transferred_and_the_rest_drawn_anew(pretrained, one_device):
    given = gpt_jax.load(pretrained).params
    fresh = jax.tree.map(lambda x: np.zeros_like(x) + 7, given)
    fresh = jax.tree.map(jax.numpy.asarray, fresh)
    for layers in (0, 1, 2, None):
        begun = finetune.transferred(given, fresh, layers)
        jax.tree.map(np.testing.assert_array_equal, begun["embedding"], given["embedding"])
        kernels = np.asarray(begun["layers"]["mlp"]["up"]["kernel"])
        kept = 2 if layers is None else layers
        np.testing.assert_array_equal(kernels[:kept], given["layers"]["mlp"]["up"]["kernel"][:kept])
        assert (kernels[kept:] == 7).all()


def test_frozen_layers_stay_as_they_were(pretrained, tables, tmp_path):
    assert fine_tune(tmp_path / "run", pretrained, tables, "--config.transfer.freeze=1", "--config.train.epochs=1") == 0
    after, before = gpt_jax.load(tmp_path / "run").params, gpt_jax.load(pretrained).params
    for now, then in zip(jax.tree.leaves(after["layers"]), jax.tree.leaves(before["layers"]), strict=True):
        np.testing.assert_array_equal(now[0], then[0])
        assert not np.array_equal(now[1], then[1])
    np.testing.assert_array_equal(after["embedding"]["tokens"][:257], before["embedding"]["tokens"])


@pytest.mark.parametrize(
    ("kind", "example"),
    [
        ("entailment", lambda n: {"premise": f"p{n}", "hypothesis": "h" * (n % 5 + 1), "label": n % 3}),
        ("similarity", lambda n: {"first": f"p{n}", "second": "h" * (n % 5 + 1), "label": n % 2}),
        ("multiple_choice", lambda n: {"context": f"c{n}", "answers": ["a", "bb", "c"][: 2 + n % 2], "label": n % 2}),
    ],
)  # fmt: skip
def test_every_kind_of_task_runs(kind, example, pretrained, tmp_path):
    table = write_rows(tmp_path / "all.jsonl", [example(n) for n in range(40)])
    flags = ["--config.data.validation_fraction=0.3"]
    assert fine_tune(tmp_path / "run", pretrained, {"train": table}, *flags, kind=kind) == 0
    assert json.loads((tmp_path / "run" / "scores.json").read_text())["valid"]["accuracy"] >= 0


@pytest.mark.parametrize("form", ["score", "score_distribution"])
def test_scores_are_regressed(form, pretrained, tmp_path):
    found = [{"first": "a" * (n % 6 + 1), "second": "b", "label": n % 6 * 0.9} for n in range(40)]
    table = write_rows(tmp_path / "all.jsonl", found)
    flags = [
        "--config.data.score_range=(0, 5)",
        f"--config.objective.score={form}",
        "--config.data.validation_fraction=0.3",
    ]
    assert fine_tune(tmp_path / "run", pretrained, {"train": table}, *flags, kind="similarity") == 0
    assert set(json.loads((tmp_path / "run" / "scores.json").read_text())["valid"]) == {"loss", "pearson", "spearman"}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--config.data.columns.text=nothing"], ["no column 'nothing'", "'review'"]),
        (["--config.data.labels=('yes', 'maybe')"], ["line", "unknown label 'no'", "yes, maybe"]),
        (["--config.transfer.layers=3"], ["transfer.layers=3", "2 (all layers)"]),
        (["--config.transfer.freeze=-1"], ["transfer.freeze=-1"]),
        (["--config.objective.score=rank"], ["objective.score='rank'"]),
        (["--config.objective.language_model_weight=-1.0"], ["language_model_weight"]),
        (["--config.train.epochs=0"], ["train.epochs=0"]),
        (["--config.seeds=0"], ["seeds=0"]),
        (["--config.seed=-1"], ["seed=-1", "4294967295"]),
        (["--config.data.max_train=-1"], ["data.max_train=-1"]),
        (["--config.data.metrics=('bleu',)"], ["bleu", "accuracy"]),
        (["--config.model.embed_dim=64"], ["model.embed_dim=64", "the weights have 32"]),
        (["--config.init_from=/nowhere"], ["/nowhere"]),
        (["--config.mesh.data=1", "--config.mesh.tensor=8"], ["mesh.tensor=8", "Sizes that work: 1, "]),
        (["--config.data.train=file:/nowhere.csv"], ["/nowhere.csv"]),
    ],
)
def test_what_cannot_be_is_one_message(flags, words, pretrained, tables, tmp_path, capsys):
    assert fine_tune(tmp_path / "run", pretrained, tables, *flags) == 2
    error = capsys.readouterr().err
    assert all(word in error for word in words), error
    assert "Traceback" not in error and not (tmp_path / "run" / "config.json").exists()


def test_other_data_on_the_same_workdir_are_refused(done, pretrained, tables, tmp_path, capsys):
    other = tables | {"train": write_rows(tmp_path / "train.jsonl", rows(128, seed=9))}
    assert fine_tune(done, pretrained, other, "--config.train.epochs=6") == 2
    assert "another" in capsys.readouterr().err


def test_adapters_learn_and_the_decoder_stays(pretrained, tables, tmp_path, monkeypatch):
    programs, make_program = [], finetune.make_program
    monkeypatch.setattr(finetune, "make_program", lambda *args: programs.append(make_program(*args)) or programs[-1])
    flags = (
        "--config.transfer.adapters.rank=4",
        "--config.train.epochs=6",
        "--config.objective.language_model_weight=0",
    )
    assert fine_tune(tmp_path / "run", pretrained, tables, *flags) == 0
    assert json.loads((tmp_path / "run" / "scores.json").read_text())["test"]["accuracy"] > 0.7
    after, before = gpt_jax.load(tmp_path / "run").params["layers"], gpt_jax.load(pretrained).params["layers"]
    for room in ("mlp", "mlp_norm"):
        jax.tree.map(np.testing.assert_array_equal, after[room], before[room])
    assert not np.array_equal(after["attention"]["query"]["kernel"], before["attention"]["query"]["kernel"])
    moments = [path_string(path) for path, _ in jax.tree_util.tree_leaves_with_path(programs[0].abstract.opt_state)]
    assert any("adapters" in path for path in moments) and not any("model" in path for path in moments)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["rank=-1"], ["rank=-1"]),
        (["rank=4", "alpha=0.0"], ["alpha=0.0"]),
        (["rank=4", "targets=('query', 'gate')"], ["'gate'", "down, key, output, query, up, value"]),
    ],
)
def test_adapters_that_cannot_be_are_one_message(flags, words, pretrained, tables, tmp_path, capsys):
    flags = [f"--config.transfer.adapters.{flag}" for flag in flags]
    assert fine_tune(tmp_path / "run", pretrained, tables, *flags) == 2
    error = capsys.readouterr().err
    assert all(word in error for word in words), error
