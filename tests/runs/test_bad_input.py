"""What a user can get wrong: one clear message, exit code 2, nothing half-written."""

import json
import math
import os
import re
import shutil
import subprocess

import pytest
from conftest_runs import hex_numbers, kill_when

from gpt_jax.main import main, parse_flags


@pytest.fixture
def refused(runs, capsys):
    """Runs the command line in this process; asserts exit code 2 and one message; returns it."""

    def run(workdir, *, config="configs/pretrain.py", extra=(), **overrides) -> str:
        _, *flags = runs.arguments(workdir, **overrides)
        code = main(["main", f"--config={config}", *flags, *extra])
        message = capsys.readouterr().err
        assert code == 2
        assert message.count("error: ") == 1 and "Traceback" not in message
        return message[message.index("error: ") :]

    return run


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"model.num_lyers": 3}, ["num_lyers", "num_layers"]),
        ({"modle.num_layers": 3}, ["modle", "model"]),
        ({"model.num_layers": "three"}, ["model.num_layers=three"]),
        ({"train.batch_size": 2.5}, ["train.batch_size=2.5"]),
        ({"model.preset": "gpt2-smal"}, ["'gpt2-smal'", "'gpt2-small'"]),
        ({"model.num_heads": 5}, ["num_heads=5 does not divide embed_dim=32"]),
        ({"train.batch_size": 12}, ["train.batch_size=12", "8 devices", "nearest that does: 16"]),
        ({"train.accumulation": 2}, ["train.accumulation=2", "nearest that does: 16"]),
        ({"mesh.data": 3}, ["data=3", "there are 8"]),
        ({"mesh.slices": 2}, ["mesh.slices=2", "--config.mesh.slices=1"]),
        ({"mesh.data": 1, "mesh.tensor": 8}, ["mesh.tensor=8", "num_heads=", "Sizes that work: 1, "]),
        ({"data.sequence_length": 64}, ["data.sequence_length=64", "context_length=32"]),
        ({"train.epochs": 2.0}, ["train.steps=12", "train.epochs=2.0", "exactly one"]),
        ({"train.steps": 0}, ["train.steps=0", "exactly one"]),
        ({"checkpoint.keep": 0}, ["checkpoint.keep=0"]),
        ({"seed": -1}, ["seed=-1"]),
        ({"run": "pretrian"}, ["run='pretrian'", "expected one of", "pretrain"]),
        ({"train.log_every": -1}, ["train.log_every=-1", "0 or more"]),
        ({"report.temperature": -0.5}, ["report.temperature=-0.5"]),
        ({"report.profile_steps": "6:5"}, ["report.profile_steps='6:5'", "FIRST:LAST"]),
        ({"report.profile_steps": "10:13"}, ["report.profile_steps='10:13'", "the last step of this run is 12"]),
        ({"optimizer.mu_dtype": "float8"}, ["'float8'"]),
        ({"schedule.warmup_steps": 12}, ["warmup_steps=12"]),
        ({"schedule.name": "cosin"}, ["'cosin'", "cosine, linear, constant"]),
        ({"optimizer.name": "adam"}, ["'adam'", "adamw"]),
        ({"tokenizer.kind": "bpe"}, ["tokenizer.kind='bpe'", "sentencepiece"]),
        ({"tokenizer.vocab_size": 5_000_000}, ["tokenizer.vocab_size=5000000"]),
        ({"model.vocab_size": 100}, ["model.vocab_size=100", "tokenizer.vocab_size=512"]),
        ({"data.source": "file:nowhere/*.txt"}, ["nowhere"]),
        ({"data.source": "bookz"}, ["bookz", "books"]),
        ({"model.dropout": 1.5}, ["model.dropout=1.5"]),
        ({"schedule.peak": "nan"}, ["schedule.peak=nan: expected a finite number"]),
        ({"model.key_value_heads": -2}, ["model.key_value_heads=-2"]),
        ({"model.rope_theta": -1.0}, ["model.rope_theta=-1.0"]),
        ({"train.batch_size": 0}, ["train.batch_size=0"]),
        ({"schedule.decay_steps": 0}, ["decay_steps=0"]),
        ({"train.steps": 0, "train.epochs": 0.001, "schedule.warmup_steps": 500}, ["warmup_steps=500"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_fields_that_cannot_be_are_named(overrides, words, refused, tmp_path):
    message = refused(tmp_path / "run", **overrides)
    assert all(word in message for word in words), message
    assert not (tmp_path / "run").exists()  # nothing that would bind the corrected command


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("configs/pretrain.py:gpt4", ["'gpt4'", "books", "gpt1"]),
        ("configs/pretrain.py:books,bath=3", ["'bath=3'", "Did you mean 'batch'?"]),
        ("configs/pretrain.py:books,batch=many", ["'batch=many'", "batch=int"]),
        ("configs/pretran.py", ["configs/pretran.py", "configs/pretrain.py"]),
    ],
)
def test_a_config_that_does_not_exist_is_named(config, words, refused, tmp_path):
    message = refused(tmp_path, config=config)
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("extra", "words"), [(["--workdirr=x"], ["workdirr", "workdir"]), (["extra"], ["unexpected arguments: extra"])]
)
def test_flags_that_do_not_exist_are_named(extra, words, refused, tmp_path):
    assert all(word in refused(tmp_path, extra=extra) for word in words)


def test_no_config_at_all_prints_the_usage(capsys):
    assert main(["main"]) == 2
    assert "--config is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.txt", b"", ["empty.txt"]),
        ("binary.txt", b"abc\0\1\2" * 100, ["binary.txt", "binary"]),
        ("latin.txt", "caf\xe9 au lait\n".encode("latin-1") * 50, ["latin.txt", "UTF-8", "data.encoding"]),
        (
            "short.txt",
            b"One line of text.\n",
            ["tokenizer.vocab_size=512 is larger", "The largest that works here is 296"],
        ),
        ("broken.jsonl", b'{"text": "a"}\n{"text": \n', ["broken.jsonl, line 2"]),
    ],
)
def test_files_that_cannot_be_read_are_named(name, content, words, refused, tmp_path):
    (tmp_path / name).write_bytes(content)
    message = refused(tmp_path / "run", **{"data.source": f"file:{tmp_path / name}"})
    assert all(word in message for word in words), message


def test_a_corpus_shorter_than_one_window_is_refused(refused, text, tmp_path):
    short = tmp_path / "short.txt"
    short.write_text("".join(text.read_text().splitlines(keepends=True)[:40]))
    message = refused(
        tmp_path / "run", **{"data.source": f"file:{short}", "tokenizer.vocab_size": 300, "model.context_length": 4096}
    )
    assert "fewer than one window" in message and "data.sequence_length" in message


def test_a_workdir_of_another_config_says_what_differs(refused, undisturbed, tmp_path):
    shutil.copytree(undisturbed, tmp_path / "run")
    before = (tmp_path / "run" / "config.json").read_bytes()
    message = refused(tmp_path / "run", **{"optimizer.beta2": 0.9, "train.steps": 20})
    assert "optimizer.beta2: 0.99 there, 0.9 here" in message
    assert "train.steps: 12 there, 20 here" in message
    assert (tmp_path / "run" / "config.json").read_bytes() == before


def test_text_that_changed_since_the_run_began_is_noticed(refused, runs, undisturbed, text, tmp_path):
    shutil.copytree(undisturbed, tmp_path / "run")
    changed = tmp_path / "text.txt"
    changed.write_text(text.read_text().replace("A", "B", 1) + "One more line.\n")
    tokenizer = (tmp_path / "run" / "tokenizer" / "sentencepiece.model").read_bytes()
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    config["data"]["source"] = f"file:{changed}"
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    message = refused(tmp_path / "run", **{"data.source": f"file:{changed}"})
    assert "has changed since the run began" in message and "train.fingerprint" in message
    assert (tmp_path / "run" / "tokenizer" / "sentencepiece.model").read_bytes() == tokenizer


def test_a_workdir_that_cannot_be_written_is_refused(refused, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refused(tmp_path / "file" / "run")


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_batch(runs, tmp_path):
    process = runs.start(tmp_path, **{"schedule.peak": 1e30, "schedule.warmup_steps": 6, "checkpoint.every": 1})
    output = process.communicate(timeout=240)[0]
    assert process.returncode == 2 and "Traceback" not in output, output
    found = re.search(r"step (\d+) has loss (\S+) and gradient norm (\S+)\. The batch: windows \[(.*?)\]\.", output)
    assert not (math.isfinite(float(found[2])) and math.isfinite(float(found[3])))
    assert len(found[4].split(",")) == 8
    assert int(re.search(r"Last good checkpoint: (\d+) ", output)[1]) == int(found[1]) - 1
    assert (tmp_path / "checkpoints" / str(int(found[1]) - 1)).is_dir()


def test_a_refused_start_does_not_bind_the_corrected_one(refused, runs, text, tmp_path):
    assert "nowhere" in refused(tmp_path / "run", **{"data.source": "file:nowhere.txt"})
    assert "5000000" in refused(tmp_path / "run", **{"tokenizer.vocab_size": 5_000_000})
    runs.finish(tmp_path / "run")


def test_a_mistake_in_a_config_file_keeps_its_traceback(tmp_path):
    (tmp_path / "broken.py").write_text("def get_config(argument=None):\n    return {}['missing']\n")
    with pytest.raises(KeyError, match="missing"):
        main(["main", f"--config={tmp_path / 'broken.py'}", "--config.seed=1"])


def test_flags_may_be_written_with_a_space_and_the_workdir_has_a_plain_name(monkeypatch):
    config, workdir, *_ = parse_flags(["main", "--config", "configs/pretrain.py:books,source=file:/my/*.txt,epochs=2"])
    assert config.train.epochs == 2 and config.train.steps == 0
    assert str(workdir) == "runs/pretrain-books-source-file-my-.txt-epochs-2"
    assert str(parse_flags(["main", "--config=configs/pretrain.py"])[1]) == "runs/pretrain-books"


def test_two_runs_do_not_share_a_workdir(runs, tmp_path):
    first = runs.start(tmp_path, **{"train.steps": 100_000})
    lock = tmp_path / ".lock"

    def second_is_refused():
        if not lock.exists() or not (tmp_path / "metrics.jsonl").exists():
            return False
        second = runs.start(tmp_path, **{"train.steps": 100_000})
        output = second.communicate(timeout=120)[0]
        assert second.returncode == 2 and "another process is training in this folder" in output, output
        return True

    kill_when(first, second_is_refused)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB; skipped where one cannot be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system takes root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(folder, leave: int):
    """Fills the disk of `folder` but for `leave` bytes."""
    free = shutil.disk_usage(folder).free
    (folder / "filling").write_bytes(b"x" * (free - leave))


def test_a_full_disk_keeps_the_last_good_checkpoint(runs, small_disk, undisturbed):
    workdir, fields = small_disk / "run", {"checkpoint.keep": 100, "checkpoint.every": 1}
    process = runs.start(workdir, **fields)
    output = process.communicate(timeout=240)[0]
    assert process.returncode == 2, output
    assert "no space left" in output and "The last good checkpoint is" in output and "Traceback" not in output
    kept = [int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()]
    assert kept, output
    subprocess.run(["mount", "-o", "remount,size=100m", str(small_disk)], check=True)
    output = runs.finish(workdir, **fields)
    assert f"going on from the checkpoint of step {max(kept)}" in output
    assert hex_numbers(workdir) == hex_numbers(undisturbed)


def test_a_disk_that_is_full_of_other_things_is_named(runs, small_disk):
    fill(small_disk, leave=16_384)
    process = runs.start(small_disk / "run")
    output = process.communicate(timeout=240)[0]
    assert process.returncode == 2, output
    assert "no space left" in output and str(small_disk) in output and "Traceback" not in output


def test_a_read_only_disk_is_refused(refused, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert "cannot be written" in refused(small_disk / "run")
