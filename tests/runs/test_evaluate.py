"""Evaluation without fine-tuning, through the entry that users call."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest_runs import ROOT
from small_models import write_model

import gpt_jax
from gpt_jax.main import main
from gpt_jax.tasks.registry import TASKS


@pytest.fixture(autouse=True)
def in_the_checkout(monkeypatch):
    monkeypatch.chdir(ROOT)


def write_rows(path: Path, found: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("gpt2") / "model", "gpt2-small", context_length=48)


CHOICES = [
    {
        "context": f"c{n} " * (n % 4 + 1),
        "answers": ["one", "two or three", "f"][: 2 + n % 2],
        "label": "AB"[n % 2],
        "id": n,
    }
    for n in range(11)
]
SENTENCES = [{"sentence": "abcdefgh"[: n % 7 + 1] + str(n), "label": n % 2} for n in range(13)]
SCHEMAS = [
    {"context_options": [f"a cat {n}", f"a dog {n}"], "continuation": "ran." if n % 2 else ".", "gold": n % 2}
    for n in range(9)
]


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("tables")
    found = {"race": CHOICES, "cola": SENTENCES, "sst2": SENTENCES, "winograd": SCHEMAS}
    return {task: f"file:{write_rows(folder / f'{task}.jsonl', rows)}" for task, rows in found.items()}


def evaluate(workdir: Path, argument: str, **fields) -> int:
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    return main(["main", f"--config=configs/evaluate.py:{argument}", f"--workdir={workdir}", *flags])


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_log_probabilities_are_those_of_the_loaded_model_whatever_stands_beside(model, tables, tmp_path):
    lm = gpt_jax.load(model)
    for batch_size in (1, 8):
        workdir = tmp_path / f"run-{batch_size}"
        assert evaluate(workdir, f"race,model={model},batch={batch_size}", **{"data.test": tables["race"]}) == 0
        for row, fields in zip(lines(workdir / "predictions.jsonl"), CHOICES, strict=True):
            context = fields["context"].strip()
            texts = [f"{context} {answer}" for answer in fields["answers"]]
            scores = [own[len(context) :].mean() for own in lm.score(texts)]  # a byte is a token here
            np.testing.assert_allclose(row["scores"], scores, atol=1e-5)
            assert row["prediction"] == TASKS["race"].labels[np.argmax(scores)]


def test_words_are_compared_by_all_their_tokens(model, tables, tmp_path):
    assert evaluate(tmp_path / "run", f"sst2,model={model}", **{"data.test": tables["sst2"]}) == 0
    lm = gpt_jax.load(model)
    for row, fields in zip(lines(tmp_path / "run" / "predictions.jsonl"), SENTENCES, strict=True):
        very = f"{fields['sentence']} very"
        scores = [own[len(very) :].sum() for own in lm.score([f"{very} negative", f"{very} positive"])]
        np.testing.assert_allclose(row["scores"], scores, rtol=1e-5)
        assert row["prediction"] == ("positive" if scores[1] > scores[0] else "negative")


def test_candidates_in_another_order_give_the_other_number_and_the_same_answer(model, tables, tmp_path):
    swapped = [row | {"context_options": row["context_options"][::-1]} for row in SCHEMAS]
    table = f"file:{write_rows(tmp_path / 'swapped.jsonl', swapped)}"
    for name, address in (("as-they-are", tables["winograd"]), ("swapped", table)):
        assert evaluate(tmp_path / name, f"winograd,model={model}", **{"data.test": address}) == 0
    before, after = (lines(tmp_path / name / "predictions.jsonl") for name in ("as-they-are", "swapped"))
    for first, second in zip(before, after, strict=True):
        np.testing.assert_allclose(first["scores"], second["scores"][::-1], atol=1e-6)
        assert {first["prediction"], second["prediction"]} == {"0", "1"}


def test_the_threshold_is_found_on_training_rows_or_is_the_median(model, tables, tmp_path):
    train = [{"sentence": text, "label": label} for text, label in (("aa", 0), ("bbbb", 1), ("cc", 1), ("d", 0))]
    table = f"file:{write_rows(tmp_path / 'train.jsonl', train)}"
    assert evaluate(tmp_path / "median", f"cola,model={model}", **{"data.test": tables["cola"]}) == 0
    median = np.median([row["scores"][0] for row in lines(tmp_path / "median" / "predictions.jsonl")])
    assert lines(tmp_path / "median" / "evaluations.jsonl")[0]["threshold"] == pytest.approx(median)
    fields = {"data.test": tables["cola"], "data.train": table}
    assert evaluate(tmp_path / "found", f"cola,model={model}", **fields) == 0
    threshold = lines(tmp_path / "found" / "evaluations.jsonl")[0]["threshold"]
    for row in lines(tmp_path / "found" / "predictions.jsonl"):
        assert row["prediction"] == ("acceptable" if row["scores"][0] > threshold else "unacceptable")
    own = [scores.mean() for scores in gpt_jax.load(model).score([row["sentence"] for row in train])]
    assert threshold < min(own) or min(abs(threshold - (a + b) / 2) for a in own for b in own if a != b) < 1e-5


def test_what_does_not_fit_loses_its_first_tokens_and_is_counted(model, tmp_path, capsys):
    found = [
        {"context": "x" * 60, "answers": ["ab", "abc"], "label": 1},
        {"context": "c", "answers": ["a", "b"], "label": 0},
    ]
    table = f"file:{write_rows(tmp_path / 'long.jsonl', found)}"
    assert evaluate(tmp_path / "run", f"multiple_choice,model={model}", **{"data.test": table}) == 0
    assert "1 of 2 examples" in capsys.readouterr().err
    rows = lines(tmp_path / "run" / "predictions.jsonl")
    lm = gpt_jax.load(model)
    ids = lm.tokenizer.encode("x" * 44 + " ab")  # 48 less the token that the other answer has more
    log_probabilities = jax.nn.log_softmax(lm.logits([ids])[0])
    scores = [log_probabilities[place - 1, ids[place]] for place in (44, 45, 46)]
    assert rows[0]["scores"][0] == pytest.approx(np.mean(scores), abs=1e-5)
    assert json.loads((tmp_path / "run" / "data.json").read_text())["test"]["truncated"] == 1


@pytest.fixture(scope="module")
def all_tasks(tables) -> dict[str, str]:
    return {f"data.{task}.test": address for task, address in tables.items()}


@pytest.fixture(scope="module")
def curve(undisturbed, all_tasks, tmp_path_factory) -> Path:
    """The workdir of an evaluation of all checkpoints of a pretraining run."""
    workdir = tmp_path_factory.mktemp("curve") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        assert evaluate(workdir, f"race+cola+sst2+winograd,checkpoints=all,model={undisturbed}", **all_tasks) == 0
    return workdir


def test_the_curve_goes_from_the_untrained_model_over_every_checkpoint(curve, undisturbed):
    rows = lines(curve / "evaluations.jsonl")
    kept = sorted(int(path.name) for path in (undisturbed / "checkpoints").iterdir() if path.name.isdigit())
    steps = [0, *kept]
    tasks = ("cola", "race", "sst2", "winograd")
    assert [(row["step"], row["task"]) for row in rows] == [(step, task) for step in steps for task in tasks]
    for row in rows:
        assert row["tokens"] == row["step"] * 8 * 32 and row["split"] == "test"
        metric = "matthews" if row["task"] == "cola" else "accuracy"
        assert row["chance"] == {"cola": 0, "race": pytest.approx((6 / 2 + 5 / 3) / 11)}.get(row["task"], 0.5)
        assert row["above_chance"] == pytest.approx((row[metric] - row["chance"]) / (1 - row["chance"]))
    scores = json.loads((curve / "scores.json").read_text())
    assert set(scores) == {f"{task}/test" for task in tasks}
    last = {row["task"]: row for row in rows if row["step"] == steps[-1]}
    assert scores["race/test"] == {"accuracy": last["race"]["accuracy"]}
    assert {row["task"] for row in lines(curve / "predictions.jsonl")} == set(tasks)
    report = (curve / "report.md").read_text()
    assert all(f"| {step} |" in report for step in steps) and "zero_shot.png" in report
    assert (curve / "zero_shot.png").read_bytes().startswith(b"\x89PNG")


def test_started_again_it_goes_on_after_the_checkpoints_that_are_done(curve, undisturbed, all_tasks, capsys):
    before = lines(curve / "evaluations.jsonl")
    last = before[-1]["step"]
    (curve / "predictions.jsonl").unlink()
    kept = [row for row in before if row["step"] < last]
    (curve / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept) + '{"step": 12, "to')
    assert evaluate(curve, f"race+cola+sst2+winograd,checkpoints=all,model={undisturbed}", **all_tasks) == 0
    said = capsys.readouterr().err
    assert f"step {last}:" in said and "step 0:" not in said
    assert lines(curve / "evaluations.jsonl") == before and (curve / "predictions.jsonl").exists()


def test_one_checkpoint_by_its_name_says_what_the_curve_says(curve, undisturbed, tables, tmp_path):
    rows = [row for row in lines(curve / "evaluations.jsonl") if row["task"] == "winograd"]
    source = undisturbed / "checkpoints" / str(rows[1]["step"])
    assert evaluate(tmp_path / "run", f"winograd,model={source}", **{"data.test": tables["winograd"]}) == 0
    assert lines(tmp_path / "run" / "evaluations.jsonl") == [rows[1]]


def test_the_untrained_model_of_the_curve_is_the_one_that_the_run_began_with(undisturbed, runs, tables, tmp_path):
    """At a learning rate of 0 all checkpoints are what the run drew at first."""
    runs.finish(tmp_path / "still", **{"schedule.peak": 0.0, "optimizer.weight_decay": 0.0, "train.steps": 3})
    argument = f"cola,checkpoints=all,model={tmp_path / 'still'}"
    assert evaluate(tmp_path / "run", argument, **{"data.test": tables["cola"]}) == 0
    first, second = lines(tmp_path / "run" / "evaluations.jsonl")
    assert (first["step"], second["step"]) == (0, 3)
    assert first["threshold"] == pytest.approx(second["threshold"], abs=1e-6)  # the median of the scores


@pytest.mark.parametrize(
    ("argument", "fields", "words"),
    [
        ("colla", {}, ["'colla'", "Did you mean 'cola'?"]),
        ("mnli", {}, ["mnli: no heuristic", "finetune"]),
        ("cola+mrpc", {}, ["mrpc: no heuristic"]),
        ("cola+sst2,folder=/data", {}, ["folder=", "--config.data.cola.folder"]),
        ("cola,modle=x", {}, ["'modle=x'", "Did you mean 'model'?"]),
        ("cola,model=MODEL", {}, ["gluebenchmark.com", "TensorFlow Datasets"]),
        ("winograd,model=MODEL", {}, ["data.test is missing", "winograd"]),
        ("cola,model=MODEL", {"data.train": "file:x.csv"}, ["data.test is missing"]),
        ("cola,model=MODEL", {"data.test": "file:/nowhere.csv"}, ["/nowhere.csv"]),
        ("cola,model=MODEL", {"data.test": "TABLE", "data.columns.text": "txt"}, ["'txt'", "line 1", "'sentence'"]),
        ("sst2+cola,model=MODEL", {"data.sst2.test": "TABLE"}, ["cola", "data.cola"]),
        ("race,model=MODEL", {"data.test": "TABLE"}, ["no column 'options' or 'answers'", "line 1"]),
        ("cola,model=/nowhere", {"data.test": "TABLE"}, ["/nowhere"]),
        ("cola,model=EMPTY", {"data.test": "TABLE"}, ["no checkpoint is there yet"]),
        ("cola,model=EMPTY,checkpoints=all", {"data.test": "TABLE"}, ["no checkpoint is there yet"]),
        ("cola,model=EMPTY/checkpoints/3", {"data.test": "TABLE"}, ["no checkpoint of step 3"]),
        ("cola,model=MODEL,checkpoints=all", {"data.test": "TABLE"}, ["checkpoints=all", "no workdir"]),
        ("cola,model=MODEL,checkpoints=some", {"data.test": "TABLE"}, ["checkpoints='some'", "one or all"]),
        ("cola,model=MODEL,batch=0", {"data.test": "TABLE"}, ["batch_size=0"]),
        ("cola,model=MODEL", {"data.test": "TABLE", "model.embed_dim": 64}, ["model.embed_dim=64"]),
    ],
)
def test_what_cannot_be_is_one_message(argument, fields, words, model, tables, undisturbed, tmp_path, capsys):
    empty = tmp_path / "empty"
    shutil.copytree(undisturbed, empty, ignore=shutil.ignore_patterns("[0-9]*"))
    known = {"MODEL": str(model), "EMPTY": str(empty), "TABLE": tables["cola"]}
    for name, value in known.items():
        argument = argument.replace(name, value)
    fields = {name: known.get(value, value) for name, value in fields.items()}
    assert evaluate(tmp_path / "run", argument, **fields) == 2
    error = capsys.readouterr().err
    assert error.count("error: ") == 1 and "Traceback" not in error
    assert all(word in error for word in words), error
    assert not (tmp_path / "run" / "config.json").exists()


def test_other_data_on_the_same_workdir_are_refused(curve, undisturbed, all_tasks, tmp_path, capsys):
    other = f"file:{write_rows(tmp_path / 'other.jsonl', SCHEMAS[:5])}"
    fields = all_tasks | {"data.winograd.test": other}
    assert evaluate(curve, f"race+cola+sst2+winograd,checkpoints=all,model={undisturbed}", **fields) == 2
    assert "another config" in capsys.readouterr().err


def test_other_weights_in_the_place_of_the_first_are_asked_anew(model, tables, tmp_path):
    place = tmp_path / "model"
    shutil.copytree(model, place)
    command = (f"race,model={place}", {"data.test": tables["race"]})
    assert evaluate(tmp_path / "run", command[0], **command[1]) == 0
    before = lines(tmp_path / "run" / "predictions.jsonl")
    shutil.rmtree(place)
    write_model(place, "gpt2-small", context_length=48, num_layers=3)
    assert evaluate(tmp_path / "run", command[0], **command[1]) == 2  # another model
    shutil.rmtree(place)
    other = write_model(tmp_path / "other", "gpt2-small", context_length=48, key=9)
    other.rename(place)
    assert evaluate(tmp_path / "run", command[0], **command[1]) == 0  # the same model with other weights
    assert lines(tmp_path / "run" / "predictions.jsonl") != before
    assert len(lines(tmp_path / "run" / "evaluations.jsonl")) == 1


@pytest.mark.parametrize("task", ["sst2", "cola"])
def test_labels_in_another_order_than_the_heuristics_are_refused(task, model, tables, tmp_path, capsys):
    labels = TASKS[task].labels[::-1]
    fields = {"data.test": tables[task], "data.labels": labels}
    assert evaluate(tmp_path / "run", f"{task},model={model}", **fields) == 2
    assert f"answers in the order {TASKS[task].labels}" in capsys.readouterr().err


def test_an_answer_without_a_name_is_refused_before_anything_is_scored(model, tmp_path, capsys):
    found = [{"context": "c", "answers": ["one", "two", "three"], "label": n % 2} for n in range(6)]
    table = write_rows(tmp_path / "mine.jsonl", found)
    assert evaluate(tmp_path / "run", f"multiple_choice,model={model}", **{"data.test": f"file:{table}"}) == 2
    assert "3 answers, and there are names for 2: 0, 1" in capsys.readouterr().err
    assert not (tmp_path / "run" / "config.json").exists()
