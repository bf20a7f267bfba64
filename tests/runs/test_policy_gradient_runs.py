"""PPO and GRPO from the command line: what they learn and leave behind, killed anywhere, and what they refuse."""

import json
import runpy
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest_runs import ROOT, Runs, hex_numbers, read_metrics
from small_models import write_model
from test_processes import finish_two

import gpt_jax
from gpt_jax.errors import UserError
from gpt_jax.parallel.mesh import single_device_mesh
from gpt_jax.runs import grpo, ppo
from gpt_jax.runs.pretrained import abstract_parameters, open_pretrained
from gpt_jax.training.checkpoints import restore_parameters

# A reward that also ends its process, as KILL=PHASE:N says: at the N-th time that this phase is reached.
REWARD = """
import os, signal
import gpt_jax.alignment.policy_gradient as loop
from gpt_jax.training.checkpoints import Checkpoints

phase, _, number = os.environ.get("KILL", "none:0").partition(":")
left = [int(number)]

def watched(function, after=False):
    def call(*args, **kwargs):
        left[0] -= 1
        value = function(*args, **kwargs) if after else None
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return value if after else function(*args, **kwargs)
    return call

def low(prompts, answers, **columns):
    return [float(sum(byte < 100 for byte in answer.encode("utf-8", "replace"))) for answer in answers]

if phase == "rollout":
    loop.draw_answers = watched(loop.draw_answers, after=True)
elif phase == "scoring":
    low = watched(low)
elif phase == "learning":
    loop.permutation = watched(loop.permutation)
elif phase == "checkpoint":
    Checkpoints.save = watched(Checkpoints.save, after=True)
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("base") / "model", "gpt2-small", context_length=32)


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    """Prompts with a column beside them, and the reward; two prompts are too long."""
    folder = tmp_path_factory.mktemp("prompts")
    prompts = [{"prompt": f"{a}+{b}=", "answer": str(a + b)} for a in range(8) for b in range(8)]
    prompts += [{"prompt": "x" * 40, "answer": ""}] * 2
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    (folder / "reward.py").write_text(REWARD)
    (folder / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 40)
    return folder


def fields(rows: Path, cache: Path) -> dict:
    return {
        "data.source": f"file:{rows}/sums.jsonl", "data.cache_dir": str(cache), "data.validation_fraction": 0.2,
        "reward.source": f"{rows}/reward.py:low", "rollout.max_new_tokens": 4, "rollout.slots": 8,
        "train.batch_size": 16, "objective.minibatches": 2, "objective.epochs": 2, "kl.target": 1.0, "kl.horizon": 100,
        "train.steps": 4, "train.eval_every": 2, "train.eval_prompts": 8, "train.average_decay": 0.5,
        "checkpoint.every": 2, "report.sample_every": 2, "report.samples": 2, "report.tensorboard": False,
        "schedule.peak": 1e-3, "schedule.warmup_steps": 2, "pretraining.coefficient": 0.1,
        "pretraining.source": f"file:{rows}/text.txt", "pretraining.sequence_length": 16,
    }  # fmt: skip


class PpoRuns(Runs):
    """Starts PPO, or GRPO through adapters, on the sums."""

    def __init__(self, base: Path, rows: Path, cache: Path):
        super().__init__(rows, cache)
        self.base = base

    def arguments(self, workdir: Path, *, grpo: bool = False, **overrides) -> list[str]:
        values = fields(self.text, self.cache) | overrides
        config = f"--config=configs/ppo.py:init_from={self.base}"
        if grpo:
            known = ("data", "reward", "rollout", "train", "checkpoint", "report", "schedule")
            values = {name: value for name, value in values.items() if name.partition(".")[0] in known}
            config = f"--config=configs/grpo.py:adapters,init_from={self.base},answers=4"
        return [config, f"--workdir={workdir}", *(f"--config.{name}={value}" for name, value in values.items())]


@pytest.fixture(scope="module")
def ppo_runs(base, rows, cache) -> PpoRuns:
    return PpoRuns(base, rows, cache)


@pytest.fixture(scope="module")
def finished(ppo_runs, tmp_path_factory) -> tuple[Path, str]:
    workdir = tmp_path_factory.mktemp("ppo")
    return workdir, ppo_runs.finish(workdir)


def test_it_tells_what_everyone_looks_for_and_where_the_time_went(finished):
    workdir, output = finished
    found = read_metrics(workdir)
    assert [step for step, split in found if split == "valid"] == [0, 2, 4]
    told = found[4, "train"]
    for name in ("reward", "score", "kl", "entropy", "clip_fraction", "ratio", "explained_variance", "length",
                 "value_loss", "policy_loss", "pretraining_loss", "coefficient", "seconds_rollout",
                 "seconds_scoring", "seconds_learning"):  # fmt: skip
        assert np.isfinite(told[name]), name
    assert abs(found[1, "train"]["kl"]) < 1e-6 and told["kl"] > 1e-4
    assert "2 of 66 prompts of more than 28 tokens are dropped" in output
    assert "rollout" in output and "scoring" in output and "learning" in output
    report = (workdir / "report.md").read_text()
    assert "| step 0 | score | step 4 | score |" in report and (workdir / "reward.png").stat().st_size > 1000


def killed(ppo_runs, finished, workdir: Path, phase: str) -> None:
    """Asserts that a run which is killed there, and started again, is the undisturbed one."""
    process = ppo_runs.start(workdir, environment={"KILL": phase})
    output, _ = process.communicate(timeout=300)
    assert process.returncode == -9, output
    ppo_runs.finish(workdir)
    assert hex_numbers(workdir) == hex_numbers(finished[0])


def test_a_run_killed_in_a_rollout_resumes_bit_for_bit(ppo_runs, finished, tmp_path):
    killed(ppo_runs, finished, tmp_path, "rollout:6")


@pytest.mark.slow
@pytest.mark.parametrize("phase", ("rollout:1", "scoring:8", "learning:7", "checkpoint:1", "checkpoint:2"))
def test_a_run_killed_anywhere_resumes_bit_for_bit(ppo_runs, finished, tmp_path, phase):
    killed(ppo_runs, finished, tmp_path, phase)


@pytest.mark.slow
def test_a_value_function_of_its_own_is_resumed_with_the_rest(ppo_runs, tmp_path):
    fields = {"value.init_from": "policy", "value.peak": 1e-2}
    ppo_runs.finish(tmp_path / "whole", **fields)
    process = ppo_runs.start(tmp_path / "killed", environment={"KILL": "learning:6"}, **fields)
    process.communicate(timeout=300)
    assert process.returncode == -9
    ppo_runs.finish(tmp_path / "killed", **fields)
    assert hex_numbers(tmp_path / "killed") == hex_numbers(tmp_path / "whole")


@pytest.mark.slow
def test_two_processes_learn_as_one_does(ppo_runs, tmp_path):
    mesh = {"mesh.data": 2, "mesh.fsdp": 2}
    finish_two(ppo_runs, tmp_path / "two", **mesh)
    ppo_runs.finish(tmp_path / "one", devices=4, **mesh)
    two, one = read_metrics(tmp_path / "two"), read_metrics(tmp_path / "one")
    assert two.keys() == one.keys()
    for key, row in one.items():
        for name in ("score", "kl", "reward"):
            np.testing.assert_allclose(two[key][name], row[name], atol=2e-5, err_msg=f"{key} {name}")


def test_its_workdir_is_the_average_of_the_policy(finished, base):
    mesh = single_device_mesh()
    before, after = (open_pretrained(path).parameters(mesh) for path in (base, finished[0]))
    assert jax.tree.structure(before) == jax.tree.structure(after)
    assert jax.tree.all(jax.tree.map(lambda x, y: bool((x != y).any()), before["layers"], after["layers"]))
    abstract = {"model": abstract_parameters(open_pretrained(base).config, mesh)}
    average, newest = (
        restore_parameters(finished[0] / "checkpoints", abstract, place=place)["model"]
        for place in (("aux", "average"), ("params",))
    )
    jax.tree.map(np.testing.assert_array_equal, after, average)
    assert jax.tree.all(jax.tree.map(lambda x, y: bool((x != y).any()), after["layers"], newest["layers"]))
    assert gpt_jax.load(finished[0]).config.num_layers == 2


def config_of(name: str, argument: str, values: dict):
    """The config as the command line would make it, of `values` those fields that it has."""
    config = runpy.run_path(str(ROOT / "configs" / f"{name}.py"))["get_config"](argument)
    flat = {f"{a}.{b}" for a, room in config.items() if hasattr(room, "items") for b in room}
    with config.unlocked():
        config.update_from_flattened_dict({key: x for key, x in values.items() if key in flat or "." not in key})
    return config


@pytest.mark.slow
def test_grpo_through_adapters_learns_beside_the_shared_base(ppo_runs, base, tmp_path):
    fields = {
        "train.batch_size": 8, "train.steps": 1, "train.eval_every": 0, "train.eval_prompts": 8, "schedule.peak": 1e-2,
        "report.sample_every": 0, "schedule.warmup_steps": 0,
    }  # fmt: skip
    ppo_runs.finish(tmp_path, grpo=True, **fields)
    assert not (tmp_path / "reference").exists()
    mesh = single_device_mesh()
    before, after = (open_pretrained(path).parameters(mesh) for path in (base, tmp_path))
    np.testing.assert_array_equal(before["embedding"]["tokens"], after["embedding"]["tokens"])
    assert float(np.abs(before["layers"]["mlp"]["up"]["kernel"] - after["layers"]["mlp"]["up"]["kernel"]).max()) > 1e-5


BAD = {
    "init_from is missing": {"init_from": None},
    "reward is missing": {"reward.source": None},
    "other people's weights, which gives no scores": {"reward.source": "BASE"},
    "expected at least 1 of each, and minibatches that divide": {"objective.minibatches": 3},
    "a policy has to try things out": {"rollout.temperature": 0.0},
    "data.prompt_tokens=30: expected 1 to 27": {"data.source": "books", "data.prompt_tokens": 30},
    "no token of the vocabulary spells that": {"rollout.truncate_token": "full stop"},
    "kl: coefficient=-1": {"kl.coefficient": -1.0},
    "average_decay=1.0: expected 0": {"train.average_decay": 1.0},
    "there is no column 'messages' nor 'question'": {"data.columns.prompt": "question"},
    "every prompt has more than 2 tokens, the shortest 4": {"data.max_prompt_tokens": 2},
    "objective.discount=2.0: expected 0 to 1": {"objective.discount": 2.0},
}


@pytest.mark.parametrize("message", BAD)
def test_what_cannot_be_ends_in_one_message_before_anything_is_written(message, base, rows, cache, tmp_path):
    values = fields(rows, cache) | BAD[message]
    if values["reward.source"] == "BASE":
        values["reward.source"] = str(base)
    config = config_of("ppo", f"init_from={base}", values)
    if "data.columns.prompt" in values:
        with config.unlocked():
            config.data.columns.prompt = values["data.columns.prompt"]
    with pytest.raises(UserError, match=message):
        ppo.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_messages_need_a_template_and_grpo_several_answers(base, rows, cache, tmp_path):
    chat = tmp_path / "chat.jsonl"
    chat.write_text(json.dumps({"messages": [{"role": "user", "content": "hi"}]}) + "\n")
    values = fields(rows, cache) | {"data.source": f"file:{chat}"}
    with pytest.raises(UserError, match="line 1: messages, and the model has no chat template"):
        ppo.run(config_of("ppo", f"init_from={base}", values), tmp_path / "run")
    with pytest.raises(UserError, match="objective.answers=1: expected at least 2"):
        grpo.run(config_of("grpo", f"init_from={base},answers=1", values), tmp_path / "run")


def test_the_presets_are_the_papers():
    instructgpt = config_of("ppo", "instructgpt", {})
    assert instructgpt.train.batch_size * instructgpt.train.steps == 256_000
    assert instructgpt.train.batch_size // instructgpt.objective.minibatches == 64
    assert (instructgpt.kl.coefficient, instructgpt.train.average_decay, instructgpt.objective.epochs) == (
        0.02,
        0.992,
        1,
    )
    assert (instructgpt.pretraining.coefficient, instructgpt.pretraining.examples) == (27.8, 8)
    assert (instructgpt.value.peak, instructgpt.schedule.warmup_steps) == (9e-6, 10)
    books = config_of("ppo", "lm-human-preferences", {})
    assert (books.data.prompt_tokens, books.rollout.max_new_tokens, books.rollout.truncate_after) == (64, 24, 16)
    assert (books.kl.coefficient, books.kl.target, books.objective.value_coefficient) == (0.15, 6.0, 0.1)
