"""What a pretraining run leaves behind, and every shipped config."""

import importlib.util
import json
import math

import jax
import numpy as np
import pytest
from conftest_runs import ROOT, read_metrics

import gpt_jax
from gpt_jax import configuration
from gpt_jax.data.sources import open_source
from gpt_jax.data.token_store import open_or_build
from gpt_jax.errors import UserError
from gpt_jax.main import parse_flags
from gpt_jax.models import decoder
from gpt_jax.models.presets import model_config
from gpt_jax.parallel.mesh import make_mesh, single_device_mesh
from gpt_jax.parallel.rules import sharding
from gpt_jax.runs import pretrain
from gpt_jax.text.tokenizer import load_tokenizer
from gpt_jax.training.checkpoints import Checkpoints
from gpt_jax.training.losses import language_model_loss
from gpt_jax.training.optimizers import make_optimizer
from gpt_jax.training.state import abstract_state, state_builder
from gpt_jax.training.step import train_step


def shipped(name: str):
    """The module of a file in configs/."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "configs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PRETRAIN = shipped("pretrain")


SCRATCH = [preset for preset in PRETRAIN.PRESETS if preset != "weights"]  # that one needs init_from
TRACED = ["books", "gpt1", "gpt2-small"]
SLOWLY_TRACED = ("gpt1-released", "gpt3-125M", "llama1-7B", "llama3.2-1B", "qwen2.5-0.5B")
TRACED += [pytest.param(preset, marks=pytest.mark.slow) for preset in SLOWLY_TRACED]


@pytest.mark.parametrize("preset", SCRATCH)
def test_every_shipped_config_resolves(preset):
    config = pretrain.resolve(PRETRAIN.get_config(preset))[0]
    pretrain.check_batch(config.train.batch_size, make_mesh(config.mesh), accumulation=config.train.accumulation)
    schedule, _ = pretrain.schedule_and_optimizer(config, config.train.steps or 10_000)
    assert float(schedule(0)) > 0
    assert config.model.vocab_size == config.tokenizer.vocab_size


@pytest.mark.parametrize("preset", TRACED)
def test_every_family_builds_and_traces(preset):
    """Resolves the config and traces its whole train step, sharded over eight devices, without running it."""
    config = pretrain.resolve(PRETRAIN.get_config(preset))[0]
    mesh = make_mesh(config.mesh)
    pretrain.check_batch(config.train.batch_size, mesh, accumulation=config.train.accumulation)
    model = model_config(**config.model)
    optimizer = make_optimizer(schedule=lambda count: 1e-3, **config.optimizer)
    abstract = abstract_state(state_builder(lambda key: decoder.init(model, key), optimizer, 0), mesh)
    shape = (config.train.batch_size, config.data.sequence_length)
    rows = sharding(shape, ("batch", "time"), mesh)
    batch = {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=rows)
        for name, dtype in (("tokens", "int32"), ("targets", "int32"), ("loss_mask", "float32"))
    }
    with jax.set_mesh(mesh):
        state, metrics = jax.eval_shape(
            lambda state, batch: train_step(
                state, batch, 0, loss_fn=lambda params, batch, key: language_model_loss(params, model, batch, key),
                optimizer=optimizer, schedule=lambda count: 1e-3, accumulation=config.train.accumulation,
            ),
            abstract, batch,
        )  # fmt: skip
    shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)  # noqa: E731
    assert shapes(state) == shapes(abstract)
    assert set(metrics) == {"loss", "gradient_norm", "learning_rate"}


def test_the_gpt1_preset_is_the_papers_recipe():
    config = pretrain.resolve(PRETRAIN.get_config("gpt1"))[0]
    assert (config.train.batch_size, config.data.sequence_length, config.train.epochs) == (64, 512, 100)
    assert (config.schedule.name, config.schedule.peak, config.schedule.warmup_steps) == ("warmup_cosine", 2.5e-4, 2000)
    assert config.optimizer.name == "openai_adam" and config.optimizer.clip_norm == 0
    assert config.schedule.final_fraction == 0 and config.optimizer.weight_decay == 0.01
    assert config.model.dropout == 0.1 and config.model.vocab_size == 40_478
    assert pretrain.total_steps(config, num_windows=6400) == 100 * 6400 // 64


def test_the_gpt3_recipe_is_table_2_1s():
    config = pretrain.resolve(PRETRAIN.get_config("gpt3,size=1.3B"))[0]
    tokens_per_step = config.train.batch_size * config.data.sequence_length
    assert config.model.preset == "gpt3-1.3B" and tokens_per_step == 2**20 and config.schedule.peak == 2e-4
    sizes, steps = pretrain.batch_sizes(config), pretrain.planned_steps(config)
    assert sizes.examples(steps - 1) * 2048 < 300e9 <= sizes.examples(steps) * 2048
    assert (sizes.sizes[0] * 2048, sizes.full * 2048) == (32_768, 2**20) and len(sizes.sizes) == 9
    assert sizes.examples(sizes.first_steps[-1]) * 2048 == pytest.approx(6.6e9, rel=1e-4)
    assert config.schedule.warmup_steps == math.ceil(375e6 / 32_768) and config.schedule.final_fraction == 0.1
    assert (config.model.attention_pattern, config.model.attention_window) == ("alternating", 256)


@pytest.mark.parametrize(
    ("argument", "words"),
    [("gpt1,size=1.3B", "size=1.3B stands behind gpt3"), ("gpt3,size=3B", "no such preset.*gpt3-13B")],
)
def test_a_size_that_is_not_there_is_refused(argument, words):
    with pytest.raises(UserError, match=words):
        PRETRAIN.get_config(argument)


def test_arguments_behind_the_colon_set_the_listed_fields():
    config = PRETRAIN.get_config("gpt2-small,batch=32,steps=7,source=file:a.txt")
    assert config.model.preset == "gpt2-small" and config.data.source == "file:a.txt"
    assert (config.train.batch_size, config.train.steps, config.train.epochs) == (32, 7, 0)


def test_tokens_become_steps():
    config = PRETRAIN.get_config("gpt2-small").unlock()
    config.schedule.warmup_tokens = 512 * 1024 * 10 + 1
    assert pretrain.resolve(config)[0].schedule.warmup_steps == 11


def test_a_run_leaves_what_the_contract_says(undisturbed):
    names = {path.name for path in undisturbed.iterdir()}
    assert names >= {
        "config.json", "data.json", "environment.json", "metrics.jsonl", "samples.jsonl", "report.md", "loss.png",
        "checkpoints", "tokenizer",
    }  # fmt: skip
    rows = read_metrics(undisturbed)
    assert [step for step, split in rows if split == "train"] == list(range(1, 13))
    assert [step for step, split in rows if split == "valid"] == [4, 8, 12]
    fields = ["step", "split", "loss", "bits_per_byte", "tokens", "tokens_per_second", "mfu", "learning_rate"]
    assert list(rows[12, "train"]) == [*fields, "gradient_norm"]
    assert rows[12, "train"]["tokens"] == 12 * 8 * 32 and rows[12, "train"]["mfu"] is None
    assert json.loads((undisturbed / "config.json").read_text())["model"]["norm_epsilon"] is not None
    assert {"python", "packages", "devices"} <= set(json.loads((undisturbed / "environment.json").read_text()))
    report = (undisturbed / "report.md").read_text()
    assert f"{rows[12, 'valid']['bits_per_byte']:.4f}" in report and "loss.png" in report
    assert (undisturbed / "loss.png").read_bytes().startswith(b"\x89PNG")
    samples = [json.loads(line) for line in (undisturbed / "samples.jsonl").read_text().splitlines()]
    assert {row["step"] for row in samples} == {6, 12} and all(row["prompt"] for row in samples)


def test_bits_per_byte_are_the_nats_of_the_held_out_text(undisturbed, runs):
    """Scored again in plain NumPy from the last checkpoint: every token but the first, over the bytes they spell."""
    config = json.loads((undisturbed / "config.json").read_text())
    model = model_config(**config["model"])
    mesh = single_device_mesh()
    optimizer = make_optimizer(schedule=lambda count: 1e-3, **config["optimizer"])
    abstract = abstract_state(state_builder(lambda key: decoder.init(model, key), optimizer, 0), mesh)
    params = Checkpoints(undisturbed / "checkpoints", keep=2).restore(abstract).params
    tokenizer = load_tokenizer(undisturbed / "tokenizer")
    source = open_source(config["data"]["source"], cache_dir=runs.cache)
    store = open_or_build(source, "valid", tokenizer, cache_dir=runs.cache, progress=False)
    ids, length = store.read(0, len(store)), 32
    nats = 0.0
    with jax.set_mesh(mesh):
        for start in range(0, len(ids) - 1, length):
            window = ids[start : start + length + 1]
            padded = np.zeros((1, length), np.int32)
            padded[0, : len(window) - 1] = window[:-1]
            logits = np.asarray(decoder.Decoder(model).apply({"params": params}, padded)[0], np.float64)
            scores = logits[np.arange(len(window) - 1), window[1:]]
            nats += (np.log(np.exp(logits[: len(window) - 1]).sum(-1)) - scores).sum()
    text = "".join(piece.text for piece in source.pieces("valid")).encode()
    spelled = len(text) - tokenizer.token_bytes[ids[0]]  # the first token is given, not predicted
    row = read_metrics(undisturbed)[12, "valid"]
    assert row["loss"] == pytest.approx(nats / (len(ids) - 1), rel=1e-6)
    assert row["bits_per_byte"] == pytest.approx(nats / math.log(2) / spelled, rel=1e-6)


def test_fields_that_change_no_number_may_change(tmp_path):
    first = {"mesh": {"data": -1}, "seed": 0, "checkpoint": {"every": 3}}
    configuration.write_json(tmp_path / "config.json", first)
    second = {"mesh": {"data": 4}, "seed": 0, "checkpoint": {"every": 5}, "a_field_of_a_later_version": 1}
    configuration.check_same(tmp_path, "config.json", second, what="config", free=configuration.FREE_TO_CHANGE)
    with pytest.raises(UserError, match="seed: 0 there, 1 here"):
        configuration.check_same(tmp_path, "config.json", second | {"seed": 1}, what="config")


def test_the_packages_function_does_what_the_command_does(runs, tmp_path):
    arguments = runs.arguments(tmp_path, **{"train.steps": 3, "train.eval_every": 0, "report.sample_every": 0})
    config, workdir, *_ = parse_flags(["main", *arguments])
    result = gpt_jax.run(config, workdir)
    row = read_metrics(tmp_path)[3, "valid"]
    assert result == {"loss": row["loss"], "bits_per_byte": row["bits_per_byte"]}
