"""Rewards by their address: a Python function, a fine-tuned classifier, a reward model."""

import contextlib
import hashlib
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from gpt_jax.alignment.rewards import Episodes, Reward
from gpt_jax.data.example_batches import ExampleSet
from gpt_jax.errors import UserError, did_you_mean
from gpt_jax.models.presets import adapt
from gpt_jax.runs.aligning.reward_model import REWARD, open_reward_model
from gpt_jax.runs.predict import fine_tuned_task, open_fine_tuned
from gpt_jax.runs.pretrained import open_pretrained
from gpt_jax.runs.problem import answer_of, make_predict
from gpt_jax.tasks.examples import Classification, Example
from gpt_jax.tasks.transforms import encode

TEXTS = ("answer", "both")
ADDRESSES = (
    "FILE.py:FUNCTION, a function (prompts, answers, **columns) -> a list of numbers; the workdir of a fine-tuning run "
    "whose task labels a text, with label=LABEL; or the workdir of a reward model"
)


def open_reward(config: ConfigDict, mesh: jax.sharding.Mesh) -> tuple[Reward, dict[str, Any]]:
    """The reward at `config.source`, and the facts by which a resumed run knows it again.

    Args:
      config: `source`, `label` (of a classifier: whose probability is the reward), `text` (what it reads).

    Raises:
      UserError: there is none, or it cannot judge texts.
    """
    if config.source is None:
        raise UserError(f"reward is missing: reward=ADDRESS behind the preset. Expected {ADDRESSES}.")
    if config.text not in TEXTS:
        raise UserError(f"reward.text={config.text!r}: expected one of {', '.join(TEXTS)}.")
    if function := re.fullmatch(r"(.+\.py):(\w+)", config.source):
        return function_reward(Path(function[1]).expanduser(), function[2])
    if config.source.endswith(".py"):
        raise UserError(f"reward.source={config.source}: which function of it? Say {config.source}:FUNCTION.")
    if not Path(config.source).expanduser().exists():
        raise UserError(f"reward.source={config.source}: no such file or folder. Expected {ADDRESSES}.")
    opened = open_pretrained(config.source)
    if opened.recorded.get("run") == "reward":
        reward = open_reward_model(config.source, mesh)
        content = (opened.source.parent / REWARD).read_bytes()
        return reward, {"reward_model": hashlib.sha256(content).hexdigest()}
    if not opened.fine_tuned:
        what = f"the workdir of a {opened.recorded['run']} run" if opened.recorded else "other people's weights"
        raise UserError(f"reward.source={config.source}: {what}, which gives no scores. Expected {ADDRESSES}.")
    return classifier_reward(config, mesh)


def function_reward(path: Path, name: str) -> tuple[Reward, dict[str, Any]]:
    """The function `name` of the Python file `path`; several processes each call it, and must get the same.

    Raises:
      UserError: there is no such file, or no such function in it.
    """
    if not path.is_file():
        raise UserError(f"reward.source={path}:{name}: no such file (looked for {path.absolute()}).")
    spec = importlib.util.spec_from_file_location(f"reward_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    with told_where(f"reward.source={path}"):
        spec.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        there = [other for other, value in vars(module).items() if callable(value) and not other.startswith("_")]
        raise UserError(
            f"reward.source: {path} has no function {name!r}.{did_you_mean(name, there)} There are: "
            f"{', '.join(there) or 'none'}."
        )

    first = ("prompts", "answers")  # a row's columns of these names stand aside

    def reward(episodes: Episodes) -> np.ndarray:
        named = {name for name in episodes.columns if name.isidentifier()}.difference(first)
        columns = {name: values for name, values in episodes.columns.items() if name in named}
        try:
            inspect.signature(function).bind(episodes.prompts, episodes.answers, **columns)
        except TypeError as error:
            raise UserError(
                f"reward.source={path}:{name}: {error}. It is called as {name}(prompts, answers, **columns), and the "
                f"columns are: {', '.join(columns) or 'none'}. One that it does not need goes into its own **columns."
            ) from None
        with told_where(f"reward.source={path}:{name}"):
            return function(episodes.prompts, episodes.answers, **columns)

    return reward, {"function": name, "digest": hashlib.sha256(path.read_bytes()).hexdigest()}


@contextlib.contextmanager
def told_where(what: str) -> Iterator[None]:
    """Code of the user's: where it fails, its traceback is printed, and a UserError ends the run."""
    try:
        yield
    except Exception as error:
        traceback.print_exc()
        raise UserError(f"{what} failed, see above: {type(error).__name__}: {error}") from None


def classifier_reward(config: ConfigDict, mesh: jax.sharding.Mesh) -> tuple[Reward, dict[str, Any]]:
    """The probability that a fine-tuned classifier of single texts gives `config.label`.

    It has a tokenizer of its own: it reads the text. Of a text beyond its context it reads the beginning, but of a
    prompt with its answer, with `config.text` "both", the end.

    Raises:
      UserError: its task does not label a text, or not with that label.
    """
    source = open_fine_tuned(config.source)
    task, tokenizer = fine_tuned_task(source, {})
    if task.kind != "classification" or task.score_range:
        raise UserError(
            f"reward.source={config.source}: learnt {task.name}, a task of the kind {task.kind}. Expected one that "
            "gives a single text a label, as sst2 and cola do."
        )
    if config.label not in task.labels:
        near = did_you_mean(str(config.label), task.labels)
        raise UserError(
            f"reward.label={config.label!r}: {config.source} gives none such.{near} Its labels: "
            f"{', '.join(task.labels)}."
        )
    model, answer = adapt(source.config), answer_of(task, "score")
    params = source.parameters_with_head(mesh, model, outputs=answer.outputs)
    label, most = task.labels.index(config.label), model.context_length - 2
    rows = mesh.shape["data"] * mesh.shape["fsdp"]
    predict = make_predict(answer, model, mesh, -(-64 // rows) * rows)

    def text(prompt: str, answered: str) -> str:
        ids = tokenizer.encode(answered if config.text == "answer" else prompt + answered)
        kept = ids[:most] if config.text == "answer" else ids[-most:]
        return tokenizer.decode(kept)  # "" where the tokenizer spells nothing of it

    def reward(episodes: Episodes) -> np.ndarray:
        texts = map(text, episodes.prompts, episodes.answers)
        examples = [Example(Classification(one), None, str(number), "an answer") for number, one in enumerate(texts)]
        sequences = encode(examples, tokenizer, model.context_length).sequences
        found = predict(params, ExampleSet(sequences, None, tokenizer.specials.pad, model.context_length))
        return found[:, label].astype(np.float64)

    return reward, {"classifier": task.name, "step": source.step, "tokenizer": tokenizer.fingerprint}
