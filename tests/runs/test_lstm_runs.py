"""An LSTM through the entry that users call: pretrained, loaded, fine-tuned, and not exported."""

import json
import random
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest_runs import ROOT

import gpt_jax
from gpt_jax.main import main


@pytest.fixture(autouse=True)
def in_the_checkout(monkeypatch):
    monkeypatch.chdir(ROOT)


def start(config: str, workdir: Path, **fields) -> int:
    flags = [f"--config.{name.replace('__', '.')}={value}" for name, value in fields.items()]
    return main(["main", f"--config=configs/{config}", f"--workdir={workdir}", *flags])


@pytest.fixture(scope="module")
def pretrained(text, cache, tmp_path_factory) -> Path:
    """The workdir of a small LSTM of two layers."""
    workdir = tmp_path_factory.mktemp("lstm") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        code = start(
            "pretrain.py:laptop-lstm,batch=8,steps=40", workdir,
            data__source=f"file:{text}", data__cache_dir=cache, tokenizer__vocab_size=512, train__eval_every=20,
            model__embed_dim=32, model__lstm_units=48, model__num_layers=2, model__context_length=32,
            schedule__peak=1e-2, schedule__warmup_steps=4, checkpoint__every=40, report__sample_every=40,
            report__sample_tokens=4, report__tensorboard=False,
        )  # fmt: skip
        assert code == 0
    return workdir


def test_pretraining_lowers_the_loss_and_leaves_a_report(pretrained):
    rows = [json.loads(line) for line in (pretrained / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if row["split"] == "valid"]
    assert losses[-1] < losses[0] < np.log(512)
    assert (pretrained / "report.md").is_file()
    model = json.loads((pretrained / "config.json").read_text())["model"]
    assert (model["core"], model["lstm_units"], model["positions"]) == ("lstm", 48, "none")


def test_what_was_trained_generates_and_scores(pretrained):
    lm = gpt_jax.load(pretrained)
    assert set(lm.params["layers"]) == {"lstm"}
    [text] = lm.generate(["Once"], max_new_tokens=6)
    assert isinstance(text, str)
    [scores] = lm.score(["Badi gofe."])
    assert (np.asarray(scores) < 0).all()
    ids = np.arange(40, 60)[None]
    np.testing.assert_allclose(lm.logits(ids[:, :7]), lm.logits(ids)[:, :7], atol=1e-5)


def write_examples(folder: Path) -> dict[str, Path]:
    """Two classes that one letter tells apart."""
    draw, paths = random.Random(0), {}
    for split, count in {"train": 48, "valid": 16}.items():
        rows = [
            {"text": "".join(draw.choices("abcd", k=6)) + letter, "label": letter}
            for letter in draw.choices("yn", k=count)
        ]
        paths[split] = folder / f"{split}.jsonl"
        paths[split].write_text("".join(json.dumps(row) + "\n" for row in rows))
    return paths


def test_fine_tuning_keeps_the_frozen_layer_and_moves_the_other(pretrained, tmp_path):
    tables = write_examples(tmp_path)
    code = start(
        f"finetune.py:classification,init_from={pretrained},batch=8,epochs=2", tmp_path / "run",
        data__train=f"file:{tables['train']}", data__valid=f"file:{tables['valid']}", schedule__peak=1e-2,
        transfer__freeze=1, report__tensorboard=False,
    )  # fmt: skip
    assert code == 0
    assert set(json.loads((tmp_path / "run" / "scores.json").read_text())["valid"]) == {"loss", "accuracy"}
    before, after = (gpt_jax.load(path).params["layers"] for path in (pretrained, tmp_path / "run"))
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(new[0], old[0])
        assert np.any(new[1] != old[1])


@pytest.mark.parametrize("target", ["huggingface", "openai"])
def test_an_export_is_refused_in_one_message(target, pretrained, tmp_path, capsys):
    assert start(f"convert.py:{target},source={pretrained}", tmp_path / "out") == 2
    printed = capsys.readouterr().err
    assert "model.core=lstm" in printed and "convert.py:workdir" in printed and "Traceback" not in printed
    assert not list(tmp_path.iterdir())


def test_a_workdir_is_made_of_it_without_a_changed_bit(pretrained, tmp_path):
    assert start(f"convert.py:workdir,source={pretrained}", tmp_path / "out") == 0
    one, other = (gpt_jax.load(path) for path in (pretrained, tmp_path / "out"))
    assert one.config == other.config
    jax.tree.map(np.testing.assert_array_equal, one.params, other.params)
