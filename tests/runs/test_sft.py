"""Supervised fine-tuning, from a file of conversations to a model that answers: what it learns, keeps and refuses."""

import datetime
import json
import random
import runpy
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest_runs import ROOT, Runs, hex_numbers, kill_when, read_metrics
from small_models import write_model

import gpt_jax
from gpt_jax.errors import UserError
from gpt_jax.parallel.mesh import single_device_mesh
from gpt_jax.runs import convert, sft
from gpt_jax.runs.chat_model import open_chat_model
from gpt_jax.runs.pretrained import open_pretrained

pytest.importorskip("jinja2", reason="the extra 'serve' is not installed")


@pytest.fixture(scope="module")
def conversations(tmp_path_factory) -> Path:
    """80 sums, some of them asked twice."""
    draw, rows = random.Random(0), []
    for number in range(80):
        a, b = draw.randint(0, 9), draw.randint(0, 9)
        if number % 3:
            rows.append({"prompt": f"{a}+{b}?", "response": str(a + b)})
        else:
            turns = [("user", f"{a}+{b}?"), ("assistant", str(a + b)), ("user", "sure?"), ("assistant", "yes")]
            rows.append({"messages": [{"role": role, "content": content} for role, content in turns]})
    path = tmp_path_factory.mktemp("conversations") / "sums.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("base") / "model", "gpt2-small", context_length=96)


class SftRuns(Runs):
    """Starts `python -m gpt_jax.main` on the sums, with adapters."""

    def __init__(self, base: Path, conversations: Path, cache: Path):
        super().__init__(conversations, cache)
        self.base = base

    def arguments(self, workdir: Path, **overrides) -> list[str]:
        fields = {
            "data.sequence_length": 96, "train.batch_size": 8, "train.steps": 6, "train.epochs": 0.0,
            "train.log_every": 1, "train.eval_every": 3, "checkpoint.every": 2, "report.sample_every": 3,
            "report.samples": 2, "report.sample_tokens": 4, "report.tensorboard": False, "model.dropout": 0.1,
            "schedule.peak": 1e-2,
        } | overrides  # fmt: skip
        flags = [f"--config.{name}={value}" for name, value in fields.items()]
        config = f"--config=configs/sft.py:adapters,init_from={self.base},source=file:{self.text}"
        return [config, f"--workdir={workdir}", *flags]


@pytest.fixture(scope="module")
def sft_runs(base, conversations, cache) -> SftRuns:
    return SftRuns(base, conversations, cache)


@pytest.fixture(scope="module")
def finished(sft_runs, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("sft")
    sft_runs.finish(workdir)
    return workdir


def test_it_learns_and_says_what_it_could_before(finished):
    rows = read_metrics(finished)
    assert [step for step, split in rows if split == "valid"] == [0, 3, 6]
    assert rows[6, "valid"]["loss"] < rows[0, "valid"]["loss"] - 0.2
    samples = [json.loads(line) for line in (finished / "samples.jsonl").read_text().splitlines()]
    assert {row["step"] for row in samples} == {0, 3, 6}
    assert all(row["prompt"].startswith("User:\n") and row["prompt"].endswith("?\n\nAssistant:\n") for row in samples)
    assert "before" in (finished / "report.md").read_text()


def test_a_killed_run_resumes_bit_for_bit(sft_runs, finished, tmp_path):
    process = sft_runs.start(tmp_path)
    kill_when(process, lambda: (tmp_path / "checkpoints" / "2").exists())
    sft_runs.finish(tmp_path)
    assert hex_numbers(tmp_path) == hex_numbers(finished)


def test_its_workdir_is_the_model_with_its_adapters_merged_and_chats_by_its_template(finished, base):
    mesh = single_device_mesh()
    before, after = (open_pretrained(path).parameters(mesh) for path in (base, finished))
    assert jax.tree.structure(before) == jax.tree.structure(after)
    np.testing.assert_array_equal(before["embedding"]["tokens"], after["embedding"]["tokens"])
    moved = jax.tree.map(lambda x, y: float(np.abs(x - y).max()), before["layers"], after["layers"])
    assert moved["mlp"]["up"]["kernel"] > 1e-4 and moved["mlp"]["up"]["bias"] == 0
    config = config_of("chat", f"model={finished}")
    chat = open_chat_model(config)
    assert chat.template.end_ids == (256,) and "Assistant" in chat.template.source
    assert gpt_jax.load(finished).config.num_layers == 2


def config_of(name: str, argument: str, **fields):
    """The config as the command line would make it."""
    config = runpy.run_path(str(ROOT / "configs" / f"{name}.py"))["get_config"](argument)
    with config.unlocked():
        config.update_from_flattened_dict(fields)
    return config


def test_its_template_goes_with_it_into_a_hugging_face_folder(finished, tmp_path):
    convert.run(config_of("convert", f"huggingface,source={finished}"), tmp_path / "folder")
    exported = open_pretrained(tmp_path / "folder").tokenizer()
    assert exported.chat_template == open_pretrained(finished).chat_template
    convert.run(config_of("convert", f"workdir,source={finished}"), tmp_path / "workdir")
    assert open_pretrained(tmp_path / "workdir").chat_template == open_pretrained(finished).chat_template


def test_without_adapters_all_weights_learn_and_the_next_run_begins_with_them(base, conversations, tmp_path):
    fields = {
        "data.sequence_length": 96, "data.packing": False, "report.sample_every": 0, "report.tensorboard": False,
        "mesh.data": 8,
    }  # fmt: skip
    config = config_of("sft", f"full,init_from={base},source=file:{conversations},steps=1", **fields)
    result = sft.run(config, tmp_path / "run")
    assert result["loss"] > 0
    before, after = (open_pretrained(path).parameters(single_device_mesh()) for path in (base, tmp_path / "run"))
    assert jax.tree.all(jax.tree.map(lambda x, y: bool((x != y).any()), before["layers"], after["layers"]))
    _, start = sft.resolve(config_of("sft", f"init_from={tmp_path / 'run'},source=file:x"), tmp_path / "next")
    assert start.template.where == f"the chat template of {tmp_path / 'run'}"


def test_a_template_that_writes_the_date_goes_on_with_the_day_of_the_beginning(base, conversations, tmp_path):
    template = tmp_path / "dated.jinja"
    template.write_text("{{ strftime_now('%d.%m.%Y') }}{% for m in messages %}{{ m.content }}<|endoftext|>{% endfor %}")
    config = config_of("sft", f"init_from={base},source=file:x,template={template}")
    _, start = sft.resolve(config, tmp_path)
    assert start.template.render([]) == datetime.date.today().strftime("%d.%m.%Y")
    (tmp_path / "data.json").write_text('{"day": "1999-12-31"}')
    _, start = sft.resolve(config, tmp_path)
    assert start.template.render([]) == "31.12.1999" and start.day == datetime.date(1999, 12, 31)


BAD = {
    "init_from or source is missing": dict(init_from=None),
    "sequence_length=97: expected 1 to": {"data.sequence_length": 97},
    "a conversation of 56 tokens, and data.sequence_length=30": {"data.sequence_length": 30},
    "give exactly one of them": {"train.steps": 3, "train.epochs": 2.0},
    "'nowhere' is no kernel of this model": {"transfer.adapters.targets": ("nowhere",)},
    "template=none.jinja: no such file": {"template": "none.jinja"},
    "no column 'turns'": {"data.columns.messages": "turns", "data.columns.prompt": "question"},
    "the split 'train' to learn from|leaves 80 examples|leaves 0 examples": {"data.validation_fraction": 1.0},
    "report.samples=-1: expected 0 or more": {"report.samples": -1},
    "schedule.peak=-1.0: expected 0 or more": {"schedule.peak": -1.0},
    "no row of it is a conversation, and data.skip_bad_rows": {
        "data.skip_bad_rows": True,
        "data.columns.messages": "turns",
        "data.columns.prompt": "question",
    },
}


@pytest.mark.parametrize("message", BAD)
def test_what_cannot_be_ends_in_one_message_before_anything_is_written(message, base, conversations, tmp_path):
    fields = {"data.sequence_length": 96} | BAD[message]
    config = config_of("sft", f"adapters,init_from={base},source=file:{conversations}", **fields)
    with pytest.raises(UserError, match=message):
        sft.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_instructgpts_hyper_parameters_are_the_papers():
    small, largest = config_of("sft", "instructgpt"), config_of("sft", "instructgpt-175B")
    assert (small.schedule.peak, small.train.batch_size) == (9.65e-6, 32)
    assert (largest.schedule.peak, largest.train.batch_size) == (5.03e-6, 8)
    for config in (small, largest):
        assert (config.train.epochs, config.model.residual_dropout, config.schedule.final_fraction) == (16, 0.2, 0.1)
        assert (config.optimizer.beta1, config.optimizer.beta2, config.schedule.warmup_steps) == (0.9, 0.95, 0)
