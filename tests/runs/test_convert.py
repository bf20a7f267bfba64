"""Weights from one format to another, and a run that begins with them: through the entry that users call."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from small_models import write_model

import gpt_jax
from gpt_jax.main import main
from gpt_jax.runs.pretrained import open_pretrained


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("gpt2") / "model", "gpt2-small")


@pytest.fixture(scope="module")
def gpt1(tmp_path_factory) -> Path:
    # 12 heads, since OpenAI's release does not say how many there are
    return write_model(tmp_path_factory.mktemp("gpt1") / "model", "gpt1", num_heads=12, embed_dim=48)


def convert(target: Path, argument: str, *flags: str) -> int:
    return main(["main", f"--config=configs/convert.py:{argument}", f"--workdir={target}", *flags])


@pytest.fixture(autouse=True)
def in_the_checkout(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])


def bits_of(path: Path) -> dict[str, bytes]:
    params = gpt_jax.load(path).params
    return {jax.tree_util.keystr(p): np.asarray(x).tobytes() for p, x in jax.tree_util.tree_leaves_with_path(params)}


def test_to_a_workdir_and_back_changes_no_bit(gpt2, tmp_path):
    assert convert(tmp_path / "ours", f"workdir,source={gpt2}") == 0
    assert convert(tmp_path / "theirs", f"huggingface,source={tmp_path / 'ours'}") == 0
    assert bits_of(gpt2) == bits_of(tmp_path / "ours") == bits_of(tmp_path / "theirs")
    assert (tmp_path / "theirs" / "model.safetensors").read_bytes() == (gpt2 / "model.safetensors").read_bytes()
    one, other = gpt_jax.load(gpt2), gpt_jax.load(tmp_path / "ours" / "checkpoints" / "0")
    assert one.tokenizer.fingerprint == other.tokenizer.fingerprint
    tokens = np.arange(48).reshape(2, 24)
    np.testing.assert_array_equal(one.logits(tokens), other.logits(tokens))


def test_to_openais_layout_and_back_changes_no_bit(gpt1, tmp_path):
    assert convert(tmp_path / "openai", f"openai,source={gpt1}") == 0
    files = {path.name for path in (tmp_path / "openai").iterdir()}
    assert files == {"params_shapes.json", *(f"params_{i}.npy" for i in range(10))}
    weights_only = "--config.tokenizer.include=False"
    assert convert(tmp_path / "theirs", f"huggingface,source={tmp_path / 'openai'}", weights_only) == 0
    assert bits_of(gpt1) == bits_of(tmp_path / "openai") == bits_of(tmp_path / "theirs")


def test_half_precision_is_written_where_asked_for(gpt2, tmp_path):
    assert convert(tmp_path / "half", f"huggingface,source={gpt2},dtype=bfloat16") == 0
    size = {path: (path / "model.safetensors").stat().st_size for path in (gpt2, tmp_path / "half")}
    assert size[tmp_path / "half"] < 0.55 * size[gpt2]
    one, half = (np.asarray(gpt_jax.load(path).params["embedding"]["tokens"]) for path in size)
    np.testing.assert_allclose(half, one, rtol=2**-8)


def test_symbols_for_fine_tuning_are_appended_and_said(gpt2, tmp_path, capsys):
    assert convert(tmp_path / "ours", f"workdir,source={gpt2}", "--config.add_symbols=True") == 0
    assert "'start': 257, 'delimiter': 258, 'extract': 259" in capsys.readouterr().err
    before, after = gpt_jax.load(gpt2), gpt_jax.load(tmp_path / "ours")
    assert after.config.vocab_size == after.tokenizer.vocab_size == 260
    old, new = (np.asarray(lm.params["embedding"]["tokens"]) for lm in (before, after))
    np.testing.assert_array_equal(new[:257], old)
    assert 0.01 < new[257:].std() < 0.03  # N(0, 0.02), as OpenAI drew them
    assert after.tokenizer.specials.extract == 259


def pretrain(target: Path, source: Path, text: Path, *flags: str) -> int:
    fields = {
        "data.source": f"file:{text}", "data.cache_dir": target.parent / "cache", "train.batch_size": 8,
        "train.steps": 2, "train.epochs": 0, "train.eval_every": 0, "report.sample_every": 0,
        "schedule.warmup_steps": 0,
    }  # fmt: skip
    overrides = [f"--config.{name}={value}" for name, value in fields.items()]
    argument = f"--config=configs/pretrain.py:weights,init_from={source}"
    return main(["main", argument, f"--workdir={target}", *overrides, *flags])


def test_a_run_begins_with_the_weights_it_is_given(gpt2, text, tmp_path):
    """With a rate of 0 it ends with them too, cut to the shorter context that was asked for; and it resumes."""
    frozen = ("--config.schedule.peak=0.0", "--config.model.context_length=16", "--config.model.dropout=0.0")
    assert pretrain(tmp_path / "run", gpt2, text, *frozen) == 0
    lm, given = gpt_jax.load(tmp_path / "run"), gpt_jax.load(gpt2)
    assert lm.config.context_length == 16 and lm.tokenizer.fingerprint == given.tokenizer.fingerprint
    positions = given.params["embedding"]["positions"][:16]
    expected = given.params | {"embedding": given.params["embedding"] | {"positions": positions}}
    jax.tree.map(np.testing.assert_array_equal, lm.params, expected)
    first = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert pretrain(tmp_path / "run", gpt2, text, *frozen) == 0  # nothing is left to do
    again = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert first["loss"] == again["loss"]


def test_a_run_goes_on_when_the_weights_it_began_with_are_gone(text, tmp_path):
    source = write_model(tmp_path / "model", "gpt2-small")
    assert pretrain(tmp_path / "run", source, text) == 0
    (tmp_path / "model").rename(tmp_path / "elsewhere")
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert pretrain(tmp_path / "run", source, text) == 0
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before
    assert pretrain(tmp_path / "new", source, text) == 2


def test_weights_are_checked_before_anything_is_written(text, tmp_path, capsys):
    source = write_model(tmp_path / "model", "gpt2-small")
    fields = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(fields | {"n_inner": 100}))
    assert pretrain(tmp_path / "run", source, text) == 2
    assert "of another shape" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_init_from_beside_a_preset_says_that_the_weights_decide(gpt2, text, tmp_path, capsys):
    flags = [f"--config.init_from={gpt2}", "--config.train.batch_size=8", "--config.train.steps=1"]
    flags += [f"--config.data.source=file:{text}", f"--config.data.cache_dir={tmp_path / 'cache'}"]
    flags += ["--config.schedule.warmup_steps=0", "--config.report.sample_every=0"]
    assert main(["main", "--config=configs/pretrain.py", f"--workdir={tmp_path / 'run'}", *flags]) == 0
    assert "of the preset books only the recipe counts" in capsys.readouterr().err
    assert gpt_jax.load(tmp_path / "run").config.embed_dim == 32


def test_a_run_learns_on_from_the_weights(gpt2, text, tmp_path):
    assert pretrain(tmp_path / "run", gpt2, text, "--config.mesh.fsdp=4", "--config.train.steps=8") == 0
    after, before = gpt_jax.load(tmp_path / "run"), gpt_jax.load(gpt2)
    sample = text.read_text()[:20]
    assert after.score([sample])[0].sum() > before.score([sample])[0].sum()


@pytest.mark.parametrize(
    ("argument", "flags", "words"),
    [
        ("workdir", [], ["source is missing", "GGUF"]),
        ("tensorflow,source=x", [], ["tensorflow", "huggingface, openai, workdir"]),
        ("workdir,source=/nowhere", [], ["/nowhere", "no such file or folder"]),
        ("openai,source={gpt2}", [], ["GPT-1 only", "norm_position='pre'"]),
        ("huggingface,source={gpt2},dtype=int8", [], ["int8", "bfloat16"]),
        ("workdir,source={gpt2},dtype=float16", [], ["float16", "workdir holds float32"]),
        ("huggingface,source={gpt2}", ["--config.tokenizer.path={empty}"], ["no tokenizer"]),
        ("huggingface,source={big}", ["--config.tokenizer.path={gpt2}"], ["257 ids", "5,000 rows"]),
        (
            "huggingface,source={gpt2}",
            ["--config.tokenizer.include=False", "--config.add_symbols=True"],
            ["add_symbols"],
        ),
    ],
)
def test_what_cannot_be_converted_is_one_message(argument, flags, words, gpt1, gpt2, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    places = {"gpt1": gpt1, "gpt2": gpt2, "empty": tmp_path / "empty", "big": tmp_path / "big"}
    if "{big}" in argument:
        write_model(tmp_path / "big", "gpt2-small", vocab_size=5000)
    assert convert(tmp_path / "new", argument.format(**places), *(flag.format(**places) for flag in flags)) == 2
    error = capsys.readouterr().err
    assert all(word in error for word in words), error
    assert "Traceback" not in error and not (tmp_path / "new").exists()


def test_nothing_is_written_over(gpt2, tmp_path, capsys):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "thesis.txt").write_text("years")
    assert convert(tmp_path / "old", f"workdir,source={gpt2}") == 2
    assert "exists and is not empty" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "old").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--config.model.embed_dim=64"], ["model.embed_dim=64 (the weights have 32)"]),
        (["--config.model.context_length=100"], ["context_length=100", "24 positions"]),
        (["--config.model.norm=rmsnorm"], ["norm='rmsnorm'", "the weights have 'layernorm'"]),
    ],
)
def test_fields_that_do_not_go_with_the_weights_are_named(flags, words, gpt2, text, tmp_path, capsys):
    assert pretrain(tmp_path / "run", gpt2, text, *flags) == 2
    error = capsys.readouterr().err
    assert all(word in error for word in words), error
    assert not (tmp_path / "run" / "config.json").exists()


def test_weights_without_init_from_ask_for_it(tmp_path, capsys):
    assert main(["main", "--config=configs/pretrain.py:weights", f"--workdir={tmp_path / 'run'}"]) == 2
    assert "init_from=PATH" in capsys.readouterr().err


def test_a_foreign_tokenizer_of_the_right_size_does_not_go_with_a_workdir(gpt2, tmp_path, capsys):
    assert convert(tmp_path / "ours", f"workdir,source={gpt2}") == 0
    other = tmp_path / "tokenizer.json"
    document = json.loads((gpt2 / "tokenizer.json").read_text())
    vocabulary = document["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    other.write_text(json.dumps(document))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}')
    flag = f"--config.tokenizer.path={other}"
    assert convert(tmp_path / "theirs", f"huggingface,source={tmp_path / 'ours'}", flag) == 2
    assert "is not the one that" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_named(gpt2, tmp_path, capsys):
    assert convert(tmp_path / "ours", f"workdir,source={gpt2}") == 0
    for path in (tmp_path / "ours" / "checkpoints" / "0" / "state").rglob("*"):
        if path.is_file() and path.stat().st_size > 5000:
            path.write_bytes(path.read_bytes()[:-500])
    assert convert(tmp_path / "theirs", f"huggingface,source={tmp_path / 'ours'}") == 2
    assert "damaged" in capsys.readouterr().err


def test_help_prints_what_the_config_says_of_itself(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["main", "--config=configs/convert.py", "--help"])
    assert stop.value.code == 0 and "FORMAT is what is written" in capsys.readouterr().out


def test_a_workdir_without_its_config_is_named(gpt2, tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(gpt_jax.errors.UserError, match="config.json does not say"):
        open_pretrained(tmp_path / "run")
