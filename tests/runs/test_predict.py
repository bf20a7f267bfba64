"""Prediction through the entry that users call: the answers behind the scores, GLUE's files, what is refused."""

import csv
import json
import math
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest_runs import ROOT
from hypothesis import given
from hypothesis import strategies as st
from test_finetune import arguments, done, fine_tune, in_the_checkout, pretrained, rows, tables, write_rows  # noqa: F401

import gpt_jax
from gpt_jax.main import main
from gpt_jax.runs import predict as predict_run
from gpt_jax.runs.problem import Problem, Split, answer_of
from gpt_jax.tasks.examples import Example, Similarity
from gpt_jax.tasks.registry import TASKS

# ruff: noqa: F811 - fixtures have the names of what they make


def predict(workdir: Path, model: Path, *flags: str, table: Path | None = None, form: str = "jsonl") -> int:
    own = [] if table is None else [f"--config.data.table=file:{table}"]
    batch = [] if any("batch_size" in flag for flag in flags) else ["--config.batch_size=8"]
    config = f"--config=configs/predict.py:{form},model={model}"
    return main(["main", config, f"--workdir={workdir}", *batch, *own, *flags])


def read(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "predictions.jsonl").read_text().splitlines()]


def predicted(workdir: Path, model: Path, *flags: str, **options) -> list[dict]:
    assert predict(workdir, model, *flags, **options) == 0
    return read(workdir)


def check_same(found: list[dict], expected: list[dict], tolerance: float = 1e-6) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one["label"] == other["label"] and list(one["probabilities"]) == list(other["probabilities"])
        for label, p in one["probabilities"].items():
            assert p == pytest.approx(other["probabilities"][label], abs=tolerance)


@pytest.fixture(scope="module")
def answers(done, tables, tmp_path_factory) -> Path:
    """The workdir of a prediction of the test split of `done`."""
    workdir = tmp_path_factory.mktemp("answers") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        assert predict(workdir, done, table=tables["test"]) == 0
    return workdir


def check_scores(found: list[dict], table: Path, scores: dict[str, float]) -> None:
    """The accuracy and the loss that the predictions have are those of the fine-tuning run."""
    truth = [json.loads(line) for line in table.read_text().splitlines()]
    assert [row["id"] for row in found] == [str(row["id"]) for row in truth]
    right = [row["label"] == true["label"] for row, true in zip(found, truth, strict=True)]
    assert np.mean(right) == pytest.approx(scores["accuracy"])
    nats = [-math.log(row["probabilities"][true["label"]]) for row, true in zip(found, truth, strict=True)]
    assert np.mean(nats) == pytest.approx(scores["loss"], rel=1e-4)


def test_the_predictions_are_those_behind_the_scores(done, tables, answers):
    check_scores(read(answers), tables["test"], json.loads((done / "scores.json").read_text())["test"])


def test_probabilities_are_of_all_labels_and_the_likeliest_is_said(answers):
    for row in read(answers):
        assert list(row["probabilities"]) == ["no", "yes"]
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-6)
        assert row["label"] == max(row["probabilities"], key=row["probabilities"].get)


def test_labels_are_not_needed_and_not_read(done, tables, answers, tmp_path):
    found = rows(24, seed=2)
    for name, change in (("without", lambda row: row.pop("label")), ("wrong", lambda row: row.update(label="maybe"))):
        for row in found:
            change(row)
        table = write_rows(tmp_path / f"{name}.jsonl", found)
        assert predicted(tmp_path / name, done, table=table) == read(answers)
        found = rows(24, seed=2)


@pytest.mark.parametrize("batch", [16, 24])
def test_neither_the_batch_nor_the_order_of_the_rows_changes_a_prediction(batch, done, answers, tmp_path):
    table = write_rows(tmp_path / "turned.jsonl", rows(24, seed=2)[::-1])
    found = predicted(tmp_path / "run", done, f"--config.batch_size={batch}", table=table)
    assert [row["id"] for row in found] == [row["id"] for row in read(answers)][::-1]
    check_same(found[::-1], read(answers))


def test_a_csv_file_with_other_columns_and_no_ids_is_numbered(done, answers, tmp_path):
    path = tmp_path / "mine.csv"
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([["what they said"], *([row["review"]] for row in rows(24, seed=2))])
    found = predicted(tmp_path / "run", done, "--config.data.columns.text=what they said", table=path)
    assert [row["id"] for row in found] == [str(number) for number in range(24)]
    check_same(found, read(answers))


def test_bad_rows_are_left_out_and_counted_if_asked_for(done, answers, tmp_path, capsys):
    bad = rows(24, seed=2)
    bad[3]["review"] = "  "
    table = write_rows(tmp_path / "bad.jsonl", bad)
    lines = table.read_text().splitlines(keepends=True)
    table.write_text("".join([*lines[:7], "{broken\n", *lines[7:]]))
    found = predicted(tmp_path / "run", done, "--config.data.skip_bad_rows=True", table=table)
    assert "2 bad rows are left out" in capsys.readouterr().err
    expected = [row for number, row in enumerate(read(answers)) if number != 3]
    assert [row["id"] for row in found] == [row["id"] for row in expected]
    check_same(found, expected)


def test_a_shorter_context_reads_less(done, answers, tmp_path):
    table = write_rows(tmp_path / "test.jsonl", rows(24, seed=2))
    found = predicted(tmp_path / "run", done, "--config.model.context_length=5", table=table)
    assert len(found) == 24 and found != read(answers)


def test_started_again_it_says_the_same(done, tables, answers, tmp_path, capsys):
    shutil.copytree(answers, tmp_path / "run")
    (tmp_path / "run" / "predictions.jsonl").unlink()
    assert predict(tmp_path / "run", done, table=tables["test"]) == 0
    assert (tmp_path / "run" / "predictions.jsonl").read_bytes() == (answers / "predictions.jsonl").read_bytes()
    out = capsys.readouterr().out
    assert str(tmp_path / "run" / "predictions.jsonl") in out
    said = [row["label"] for row in read(answers)]
    assert f"no {said.count('no')}, yes {said.count('yes')}" in out


def test_several_processes_would_write_once(done, tables, answers, tmp_path, monkeypatch):
    """What a process that is not the first does: it computes, and leaves the files alone."""
    for module in ("gpt_jax.parallel.runtime", "gpt_jax.runs.predict"):
        monkeypatch.setattr(f"{module}.is_main_process", lambda: False)
    assert predict(tmp_path / "run", done, table=tables["test"]) == 0
    assert not (tmp_path / "run").exists()


# --- which parameters


def with_valid_accuracy(done: Path, folder: Path, change) -> Path:
    """A copy of the run whose validation scores are others."""
    shutil.copytree(done, folder)
    log = [json.loads(line) for line in (done / "metrics.jsonl").read_text().splitlines()]
    for row in log:
        if row["split"] == "valid":
            row["accuracy"] = change(row["step"])
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))
    return folder


def test_the_best_epoch_speaks_and_not_the_last(done, tables, tmp_path):
    steps = sorted(int(path.name) for path in (done / "checkpoints").iterdir() if path.name.isdigit())
    best, last = steps[-2:]
    run = with_valid_accuracy(done, tmp_path / "model", lambda step: 0.9 if step == best else 0.5)
    found = predicted(tmp_path / "best", run, table=tables["test"])
    assert found == predicted(tmp_path / "named", run / "checkpoints" / str(best), table=tables["test"])
    assert found != predicted(tmp_path / "last", run / "checkpoints" / str(last), table=tables["test"])
    loaded, named = gpt_jax.load(run).params, gpt_jax.load(run / "checkpoints" / str(best)).params
    jax.tree.map(np.testing.assert_array_equal, loaded, named)
    newest = gpt_jax.load(run / "checkpoints" / str(last)).params
    assert not np.array_equal(loaded["embedding"]["tokens"], newest["embedding"]["tokens"])


def test_of_equal_epochs_the_earlier_speaks_and_one_that_was_not_saved_does_not(done, tables, tmp_path):
    steps = sorted(int(path.name) for path in (done / "checkpoints").iterdir() if path.name.isdigit())
    run = with_valid_accuracy(done, tmp_path / "model", lambda step: 0.9)
    with open(run / "metrics.jsonl", "a") as file:  # killed between an evaluation and its checkpoint, within a line
        file.write(json.dumps({"step": 10_000, "split": "valid", "loss": 0, "accuracy": 1.0}) + '\n{"step": 10')
    assert predict(tmp_path / "run", run, table=tables["test"]) == 0
    assert json.loads((tmp_path / "run" / "data.json").read_text())["step"] == steps[0]


def test_adapters_are_part_of_what_is_predicted_and_loaded(pretrained, tables, tmp_path):
    flags = ["--config.transfer.adapters.rank=4", "--config.schedule.peak=0.03", "--config.train.epochs=3"]
    assert fine_tune(tmp_path / "model", pretrained, tables, *flags) == 0
    scores = json.loads((tmp_path / "model" / "scores.json").read_text())["test"]
    check_scores(predicted(tmp_path / "run", tmp_path / "model", table=tables["test"]), tables["test"], scores)
    lm, before = gpt_jax.load(tmp_path / "model"), gpt_jax.load(pretrained).params
    assert set(lm.params) == set(before) and lm.logits([[1, 2, 3]]).shape == (1, 3, 260)
    kernels, given = lm.params["layers"]["attention"], before["layers"]["attention"]
    assert not np.allclose(kernels["query"]["kernel"], given["query"]["kernel"])
    np.testing.assert_array_equal(kernels["key"]["kernel"], given["key"]["kernel"])


# --- other kinds of tasks


@pytest.fixture(scope="module")
def chooser(pretrained, tmp_path_factory) -> Path:
    """A model of questions with two or three answers."""
    folder = tmp_path_factory.mktemp("chooser")
    questions = [
        {"context": f"c{n}", "answers": ["a", "bb", "c"][: 2 + n % 2], "label": n % (2 + n % 2)} for n in range(40)
    ]
    table = write_rows(folder / "all.jsonl", questions)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        flags = ["--config.data.validation_fraction=0.3", "--config.train.epochs=1"]
        assert fine_tune(folder / "run", pretrained, {"train": table}, *flags, kind="multiple_choice") == 0
    return folder / "run"


def test_a_choice_has_a_probability_for_each_of_its_answers(chooser, tmp_path):
    found = [{"context": "c", "answers": ["a", "bb", "c"][: 2 + n % 2]} for n in range(5)]
    table = write_rows(tmp_path / "table.jsonl", found)
    names = [list(row["probabilities"]) for row in predicted(tmp_path / "run", chooser, table=table)]
    assert names == [["0", "1"], ["0", "1", "2"], ["0", "1"], ["0", "1", "2"], ["0", "1"]]
    for row in read(tmp_path / "run"):
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("flags", "answers", "words"),
    [
        ([], ["a", "b", "c", "d"], ["line 1", "4 answers", "0, 1, 2"]),
        (["--config.data.max_answers=2"], ["a", "b", "c"], ["line 1", "3 answers", "data.max_answers"]),
    ],
)
def test_a_question_with_too_many_answers_is_named(flags, answers, words, chooser, tmp_path, capsys):
    table = write_rows(tmp_path / "table.jsonl", [{"context": "c", "answers": answers}])
    refused(tmp_path / "run", chooser, words, capsys, *flags, table=table)


# --- GLUE


def write_tsv(path: Path, header: str, lines: list[list]) -> None:
    path.write_text("\t".join(header.split(",")) + "\n" + "".join("\t".join(map(str, line)) + "\n" for line in lines))


def glue_folder(task: str, folder: Path) -> Path:
    """A release of `task` with few short texts, its columns as GLUE has them."""
    folder.mkdir()
    texts = [row["review"] for row in rows(24, seed=5)]
    pairs = list(zip(texts, texts[1:] + texts[:1], strict=True))
    match task:
        case "sst2":
            for split in ("train", "dev"):
                write_tsv(folder / f"{split}.tsv", "sentence,label", [[t, int(t.endswith("y"))] for t in texts])
            write_tsv(folder / "test.tsv", "index,sentence", list(enumerate(texts)))
        case "mnli":
            labels = TASKS["mnli"].labels
            labelled = [[n, *pair, labels[n % 3]] for n, pair in enumerate(pairs)]
            for split in ("train", "dev_matched", "dev_mismatched"):
                write_tsv(folder / f"{split}.tsv", "index,sentence1,sentence2,gold_label", labelled)
            for split, count in (("matched", 5), ("mismatched", 4)):
                unlabelled = [[n, f"{n}n", *pair] for n, pair in enumerate(pairs[:count])]
                write_tsv(folder / f"test_{split}.tsv", "index,pairID,sentence1,sentence2", unlabelled)
        case "stsb":
            labelled = [[n, *pair, n % 6 * 0.9] for n, pair in enumerate(pairs)]
            for split in ("train", "dev"):
                write_tsv(folder / f"{split}.tsv", "index,sentence1,sentence2,score", labelled)
            write_tsv(folder / "test.tsv", "index,sentence1,sentence2", [[n, *pair] for n, pair in enumerate(pairs)])
        case "mrpc":
            header = "Quality,#1 ID,#2 ID,#1 String,#2 String"
            for split in ("train", "dev"):
                write_tsv(folder / f"{split}.tsv", header, [[n % 2, n, n, *pair] for n, pair in enumerate(pairs)])
            unlabelled = [[n, n, n, *pair] for n, pair in enumerate(pairs)]
            write_tsv(folder / "test.tsv", "index,#1 ID,#2 ID,#1 String,#2 String", unlabelled)
    return folder


def fine_tune_glue(task: str, folder: Path, pretrained: Path, workdir: Path) -> Path:
    flags = [f"--config.data.folder={folder}", "--config.train.epochs=1"]
    assert fine_tune(workdir, pretrained, {}, *flags, kind=task) == 0
    return workdir


GLUE_FILES = {
    "sst2": {"SST-2.tsv": 24}, "mnli": {"MNLI-m.tsv": 5, "MNLI-mm.tsv": 4},
    "stsb": {"STS-B.tsv": 24}, "mrpc": {"MRPC.tsv": 24},
}  # fmt: skip


@pytest.fixture(scope="module")
def glue(pretrained, tmp_path_factory):
    """task -> (the folder of its release, the workdir of a model of it); each made when it is first asked for."""
    made = {}

    def make(task: str) -> tuple[Path, Path]:
        if task not in made:
            home = tmp_path_factory.mktemp(task)
            folder = glue_folder(task, home / "release")
            made[task] = folder, fine_tune_glue(task, folder, pretrained, home / "model")
        return made[task]

    return make


@pytest.mark.parametrize(
    "task", [task if task == "sst2" else pytest.param(task, marks=pytest.mark.slow) for task in GLUE_FILES]
)
def test_a_submission_has_every_test_row_as_glue_numbers_and_labels_them(task, glue, tmp_path):
    folder, model = glue(task)
    found = predicted(tmp_path / "run", model, f"--config.data.folder={folder}", form="glue")
    allowed = {"sst2": {"0", "1"}, "mrpc": {"0", "1"}, "mnli": set(TASKS["mnli"].labels)}
    assert len(found) == sum(GLUE_FILES[task].values())
    for name, count in GLUE_FILES[task].items():
        header, *lines = (tmp_path / "run" / name).read_text().splitlines()
        assert header == "index\tprediction"
        index, said = zip(*(line.split("\t") for line in lines), strict=True)
        assert index == tuple(map(str, range(count)))
        own, found = found[:count], found[count:]  # in predictions.jsonl one after the other
        if task == "stsb":
            assert said == tuple(f"{min(max(row['score'], 0), 5):.3f}" for row in own)
        else:
            spelled = {label: spelling for spelling, label in TASKS[task].spellings.items()}
            assert said == tuple(spelled.get(row["label"], row["label"]) for row in own) and set(said) <= allowed[task]
    assert ({"split"} <= set(own[0])) == (task == "mnli")


def test_a_submission_can_be_made_of_one_table(glue, tmp_path):
    folder, model = glue("sst2")
    assert predict(tmp_path / "whole", model, f"--config.data.folder={folder}", form="glue") == 0
    assert predict(tmp_path / "run", model, table=folder / "test.tsv", form="glue") == 0
    assert (tmp_path / "run" / "SST-2.tsv").read_bytes() == (tmp_path / "whole" / "SST-2.tsv").read_bytes()


@pytest.mark.parametrize(
    ("task", "files", "flags", "words"),
    [
        ("mnli", ["test_matched.tsv"], ["folder={folder}"], ["test_mismatched.tsv"]),
        ("sst2", [], ["folder={folder}"], ["holds no test.tsv"]),
        ("sst2", ["test.tsv"], ["folder={folder}", "skip_bad_rows=True"], ["every row"]),
        ("sst2", ["test.tsv"], ["folder={folder}", "table=file:{folder}/test.tsv"], ["one of them"]),
        ("sst2", [], [], ["data.folder is missing"]),
        ("mnli", ["test_matched.tsv"], ["table=file:{folder}/test_matched.tsv"], ["MNLI-m.tsv, MNLI-mm.tsv", "folder"]),
    ],
)
def test_what_is_no_whole_submission_is_refused(task, files, flags, words, glue, tmp_path, capsys):
    folder, model = glue(task)
    (tmp_path / "part").mkdir()
    for name in files:
        shutil.copy(folder / name, tmp_path / "part" / name)
    overrides = [f"--config.data.{flag.format(folder=tmp_path / 'part')}" for flag in flags]
    refused(tmp_path / "run", model, words, capsys, *overrides, form="glue")


def test_a_broken_row_of_a_test_set_is_an_error(glue, tmp_path, capsys):
    folder, model = glue("sst2")
    shutil.copytree(folder, tmp_path / "broken")
    with open(tmp_path / "broken" / "test.tsv", "a") as file:
        file.write("24\n")
    flag = f"--config.data.folder={tmp_path / 'broken'}"
    refused(tmp_path / "run", model, ["test.tsv, line 26"], capsys, flag, form="glue")


@given(st.lists(st.floats(-3, 9, width=32), min_size=1, max_size=20))
def test_submitted_scores_lie_within_the_range(scores):
    task = TASKS["stsb"]
    examples = [Example(Similarity("a", "b"), None, str(n), f"row {n}") for n in range(len(scores))]
    split = Split(examples, None)
    problem = Problem(task, answer_of(task, "score"), None, {"test": split}, {})
    _, *lines = predict_run.submission(problem, split, np.array(scores, np.float32)[:, None] / 5).splitlines()
    for line, score in zip(lines, scores, strict=True):
        assert float(line.split("\t")[1]) == pytest.approx(min(max(score, 0), 5), abs=5.1e-4)
        assert len(line.partition(".")[2]) == 3


# --- what is refused


def refused(workdir: Path, model: Path, words: list[str], capsys, *flags: str, **options) -> None:
    """One message with these words, exit code 2, nothing written."""
    assert predict(workdir, model, *flags, **options) == 2
    error = capsys.readouterr().err
    assert all(word in error for word in words), error
    assert "Traceback" not in error and error.count("error: ") == 1
    assert not workdir.exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--config.data.table=file:/nowhere.csv"], ["/nowhere.csv"]),
        (["--config.data.table=nowhere"], ["'nowhere'", "file:PATH"]),
        (["--config.data.columns.text=nothing"], ["no column 'nothing'", "'review'"]),
        (["--config.data.columns.id=key"], ["no column 'key' for the id"]),
        (["--config.data.columns.premise=review"], ["data.columns.premise", "text, label, id"]),
        (["--config.data.encoding=utf-9"], ["utf-9"]),
        (["--config.model.context_length=33"], ["model.context_length=33", "32 positions"]),
        (["--config.model.context_length=2"], ["model.context_length=2"]),
        (["--config.model.path=/nowhere"], ["/nowhere"]),
        (["--config.format=xml"], ["format='xml'", "jsonl, glue"]),
        (["--config.format=glue"], ["learnt classification", "none of GLUE's", "sst2"]),
        (["--config.batch_size=12"], ["batch_size=12", "8 devices"]),
        (["--config.batch_size=0"], ["batch_size=0"]),
        (["--config.data.folder=/tmp"], ["one of them"]),
        (["--config.data.table="], ["data.table is missing"]),
    ],
)
def test_what_cannot_be_is_one_message(flags, words, done, tables, tmp_path, capsys):
    refused(tmp_path / "run", done, words, capsys, *flags, table=None if "table" in flags[0] else tables["test"])


def test_a_format_that_is_not_there_is_named(done, tables, tmp_path, capsys):
    refused(tmp_path / "run", done, ["no preset 'jsom'", "jsonl"], capsys, table=tables["test"], form="jsom")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", ["there are no rows"]),
        ('{"review": "a"}\n{"review": " "}\n', ["line 2", "'review' is empty"]),
        ('{"review": "a", "id": 7}\n{"review": "b", "id": "7"}\n', ["line 2", "the id '7'", "line 1"]),
        ('{"review": "a"}\n{"revue": "b"}\n', ["line 2", "no column 'review'", "'revue'"]),
        ('{"review": "a"}\n{"review"\n', ["line 2", "not JSON"]),
    ],
)
def test_what_is_wrong_with_a_row_is_said_with_its_line(content, words, done, tmp_path, capsys):
    (tmp_path / "table.jsonl").write_text(content)
    refused(tmp_path / "run", done, words, capsys, table=tmp_path / "table.jsonl")


def test_a_model_that_is_not_fine_tuned_is_named(pretrained, answers, tables, tmp_path, capsys):
    refused(tmp_path / "run", pretrained, ["other people's weights", "init_from="], capsys, table=tables["test"])
    assert (
        main(["main", f"--config=configs/convert.py:workdir,source={pretrained}", f"--workdir={tmp_path / 'own'}"]) == 0
    )
    refused(tmp_path / "run", tmp_path / "own", ["the workdir of a convert run"], capsys, table=tables["test"])
    refused(tmp_path / "run", answers, ["the workdir of a predict run", "no checkpoint"], capsys, table=tables["test"])


def test_a_run_of_several_seeds_asks_for_one(done, tables, tmp_path, capsys):
    shutil.copytree(done, tmp_path / "model" / "seed-3")
    refused(tmp_path / "run", tmp_path / "model", ["several seeds", "seed-3"], capsys, table=tables["test"])
    assert predict(tmp_path / "run", tmp_path / "model" / "seed-3", table=tables["test"]) == 0


def test_a_run_without_an_epoch_says_so(done, tables, tmp_path, capsys):
    run = shutil.copytree(done, tmp_path / "model")
    log = [line for line in (run / "metrics.jsonl").read_text().splitlines() if json.loads(line)["split"] == "train"]
    (run / "metrics.jsonl").write_text("\n".join(log) + "\n")
    refused(tmp_path / "run", run, ["no epoch", "Start it again"], capsys, table=tables["test"])
    (run / "metrics.jsonl").unlink()
    refused(tmp_path / "run", run, ["no epoch"], capsys, table=tables["test"])
    shutil.rmtree(run / "checkpoints")
    refused(tmp_path / "run", run, ["the workdir of a finetune run", "no checkpoint"], capsys, table=tables["test"])


def edited(done: Path, folder: Path, name: str, change) -> Path:
    """A copy of the run in which the JSON file `name` is another."""
    shutil.copytree(done, folder)
    value = json.loads((folder / name).read_text())
    change(value)
    (folder / name).write_text(json.dumps(value))
    return folder


def test_parts_of_a_workdir_that_do_not_fit_are_named(done, tables, tmp_path, capsys):
    options = {"table": tables["test"]}
    wider = edited(done, tmp_path / "wider", "config.json", lambda config: config["model"].update(embed_dim=64))
    refused(tmp_path / "run", wider, ["damaged or of another model"], capsys, **options)
    more = edited(done, tmp_path / "more", "data.json", lambda data: data.update(labels=["a", "b", "c"]))
    refused(tmp_path / "run", more, ["damaged or of another model"], capsys, **options)
    other = edited(done, tmp_path / "other", "data.json", lambda data: data.update(tokenizer="0"))
    refused(tmp_path / "run", other, ["not the tokenizer"], capsys, **options)
    unsaid = edited(done, tmp_path / "unsaid", "data.json", lambda data: data.pop("labels"))
    refused(tmp_path / "run", unsaid, ["does not say which labels"], capsys, **options)
    rows = edited(done, tmp_path / "rows", "config.json", lambda config: config["model"].update(vocab_size=600))
    refused(tmp_path / "run", rows, ["260 ids", "600 rows"], capsys, **options)


def test_a_step_that_is_not_there_is_named(done, tables, tmp_path, capsys):
    refused(tmp_path / "run", done / "checkpoints" / "7", ["no checkpoint of step 7"], capsys, table=tables["test"])


def test_another_table_or_another_run_in_the_workdir_is_refused(done, tables, answers, tmp_path, capsys):
    before = {path.name: path.read_bytes() for path in answers.iterdir()}
    assert predict(answers, done, table=tables["valid"]) == 2
    assert "data.table" in capsys.readouterr().err
    table = tables["test"]
    saved = table.read_bytes()
    try:
        write_rows(table, rows(24, seed=11))
        assert predict(answers, done, table=table) == 2
    finally:
        table.write_bytes(saved)
    assert "tables.table" in capsys.readouterr().err
    assert before == {path.name: path.read_bytes() for path in answers.iterdir()}
    assert predict(done, done, table=table) == 2
    assert "run: 'finetune' there, 'predict' here" in capsys.readouterr().err
