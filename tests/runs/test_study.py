"""Many fine-tuning runs in one command, and their scores in one table."""

import json
import random
import shutil
from pathlib import Path

import pytest
from conftest_runs import ROOT
from small_models import write_model

from gpt_jax.main import main
from gpt_jax.runs import finetune, gather


@pytest.fixture(autouse=True)
def in_the_checkout(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("gpt2") / "model", "gpt2-small", context_length=32)


def write_table(path: Path, count: int, seed: int) -> None:
    draw = random.Random(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {"sentence": "".join(draw.choice("ab") for _ in range(6)), "label": draw.randint(0, 1)} for _ in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> Path:
    """Tables of two tasks, of which only one has a test split."""
    folder = tmp_path_factory.mktemp("tables")
    for task, splits in {"sst2": ("train", "valid", "test"), "cola": ("train", "valid")}.items():
        for seed, split in enumerate(splits):
            write_table(folder / task / f"{split}.jsonl", 32 if split == "train" else 16, seed)
    return folder


def study(
    workdir: Path,
    pretrained: Path,
    tables: Path,
    *flags: str,
    tasks=("sst2", "cola"),
    variants=("full", "layers-1", "without-pretraining"),
) -> int:
    addresses = {f"data.{split}": f"file:{tables}/{{task}}/{split}.jsonl" for split in ("train", "valid", "test")}
    fields = addresses | {
        "train.batch_size": 8, "train.epochs": 1, "report.tensorboard": False, "study.tasks": tasks,
        "study.variants": variants,
    }  # fmt: skip
    overrides = [f"--config.{name}={value}" for name, value in fields.items()]
    first = f"--config=configs/finetune.py:study,init_from={pretrained}"
    return main(["main", first, f"--workdir={workdir}", *overrides, *flags])


@pytest.fixture(scope="module")
def done(pretrained, tables, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("study") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        assert study(workdir, pretrained, tables) == 0
    return workdir


def test_every_task_and_variant_is_in_the_table(done):
    tables = json.loads((done / "table.json").read_text())
    assert set(tables) == {"valid", "test"}
    assert set(tables["valid"]) == {"full", "1 of 2 layers transferred", "without pretraining"}
    assert all(set(row) == {"sst2", "cola"} for row in tables["valid"].values())
    assert all(set(row) == {"sst2"} for row in tables["test"].values())
    text = (done / "table.md").read_text()
    own = json.loads((done / "sst2" / "full" / "seed-0" / "scores.json").read_text())["test"]["accuracy"]
    assert f"| full | {100 * own:.1f} |" in text and "| GPT-1 (paper) | 91.3 |" in text
    assert (done / "layers.png").read_bytes().startswith(b"\x89PNG")
    assert not list(done.rglob("checkpoints"))


def test_a_seed_more_does_only_the_new_runs(done, pretrained, tables, monkeypatch, tmp_path):
    ran = []
    run_seed = finetune.run_seed
    monkeypatch.setattr(finetune, "run_seed", lambda config, folder: ran.append(folder) or run_seed(config, folder))
    before = (done / "cola" / "full" / "seed-0" / "scores.json").stat().st_mtime_ns
    assert study(done, pretrained, tables, "--config.seeds=2", variants=("full",)) == 0
    assert [folder.relative_to(done).as_posix() for folder in ran] == ["sst2/full/seed-1", "cola/full/seed-1"]
    assert (done / "cola" / "full" / "seed-0" / "scores.json").stat().st_mtime_ns == before
    assert json.loads((done / "table.json").read_text())["valid"]["full"]["cola"]["seeds"] == 2


def test_runs_with_the_same_step_compile_it_once(done, pretrained, tables, tmp_path):
    finetune.make_program.cache_clear()
    assert study(tmp_path / "run", pretrained, tables, variants=("full",)) == 0
    assert finetune.make_program.cache_info().misses == 1


def test_workdirs_are_gathered_and_told_apart_by_what_differs(done, pretrained, tables, tmp_path):
    one = dict(tasks=("sst2",), variants=("full",))
    assert study(tmp_path / "other", pretrained, tables, "--config.schedule.peak=0.001", **one) == 0
    command = ["main", f"--config=configs/gather.py:{done},{tmp_path}/oth*", f"--workdir={tmp_path / 'table'}"]
    assert main(command) == 0
    rows = json.loads((tmp_path / "table" / "table.json").read_text())["valid"]
    assert {"full, schedule.peak=0.001", "full, schedule.peak=6.25e-05"} <= set(rows)
    assert "1 of 2 layers transferred" in rows


@pytest.mark.slow
def test_what_differs_is_never_taken_for_another_seed(done, pretrained, tables, tmp_path, capsys):
    """An other weight of the auxiliary model, and fewer examples; and the same run twice."""
    one = dict(tasks=("sst2",), variants=("full",))
    assert study(tmp_path / "a", pretrained, tables, "--config.objective.language_model_weight=0.25", **one) == 0
    assert study(tmp_path / "b", pretrained, tables, "--config.data.max_train=16", **one) == 0
    assert main(["main", f"--config=configs/gather.py:{tmp_path}", f"--workdir={tmp_path / 'table'}"]) == 0
    rows = json.loads((tmp_path / "table" / "table.json").read_text())["valid"]
    assert len(rows) == 2 and all(row["sst2"]["seeds"] == 1 for row in rows.values())
    assert any("language_model_weight=0.25" in way for way in rows) and any("max_train=16" in way for way in rows)
    shutil.copytree(tmp_path / "a", tmp_path / "c")
    assert main(["main", f"--config=configs/gather.py:{tmp_path}", f"--workdir={tmp_path / 'table'}"]) == 2
    assert "the same run, seed and all" in capsys.readouterr().err


def test_the_words_of_the_papers_table():
    config = {
        "model": {"core": "transformer", "num_layers": 12}, "objective": {"language_model_weight": 0.5},
        "transfer": {"layers": None, "freeze": 0, "adapters": {"rank": 0}},
    }  # fmt: skip
    assert gather.way_of(config) == "full"
    assert gather.way_of(config | {"objective": {"language_model_weight": 0.0}}) == "without auxiliary LM"
    lstm = config | {"model": {"core": "lstm", "num_layers": 1}}
    assert gather.way_of(lstm) == "LSTM"
    assert gather.way_of(config | {"transfer": config["transfer"] | {"layers": -1}}) == "without pretraining"
    assert gather.way_of(config | {"transfer": config["transfer"] | {"layers": 0}}) == "embeddings transferred"
    adapted = config["transfer"] | {"adapters": {"rank": 8}}
    assert gather.way_of(config | {"transfer": adapted}) == "adapters of rank 8"


@pytest.mark.parametrize(
    ("runs", "words"),
    [
        (dict(variants=("half",)), ["'half'", "without-pretraining", "layers-K"]),
        (dict(variants=("lstm",)), ["study.lstm is missing"]),
        (dict(tasks=()), ["at least one of study.tasks"]),
        (dict(tasks=("sst2", "sst3")), ["sst3", "sst2"]),
        (dict(tasks=("sst2", "rte")), ["rte/train.jsonl"]),
        (dict(variants=("full", "layers-3")), ["transfer.layers=3"]),
        (dict(variants=("freeze-0",)), ["'freeze-0'", "from 1 on"]),
    ],
)
def test_what_cannot_be_is_said_before_the_first_run(runs, words, pretrained, tables, tmp_path, capsys):
    assert study(tmp_path / "run", pretrained, tables, **runs) == 2
    error = capsys.readouterr().err
    assert all(word in error for word in words), error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("argument", ["nowhere-at-all", "configs"])
def test_nothing_to_gather_is_one_message(argument, tmp_path, capsys):
    assert main(["main", f"--config=configs/gather.py:{argument}", f"--workdir={tmp_path / 'table'}"]) == 2
    assert argument in capsys.readouterr().err
