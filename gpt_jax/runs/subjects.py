"""What is evaluated: models, each at one moment of its training or at several."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from gpt_jax import configuration
from gpt_jax.errors import UserError
from gpt_jax.models import decoder
from gpt_jax.models.config import ModelConfig
from gpt_jax.models.presets import adapt
from gpt_jax.runs.pretrained import Pretrained, abstract_parameters, open_pretrained
from gpt_jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Moment:
    """Weights at one moment of training, maybe its end.

    Attributes:
      step, tokens: seen until then; None where weights do not say.
      load: (config, mesh) -> parameters.
    """

    step: int | None
    tokens: int | None
    load: Callable[[ModelConfig, jax.sharding.Mesh], dict]

    def __str__(self) -> str:
        return "the weights" if self.step is None else f"step {self.step:,}"


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model that is evaluated.

    Attributes:
      name: what tables call it.
      path: as the user named it.
      end_ids: the tokens that end what it writes.
      moments: the oldest first.
      origin: how its weights came about; the same config and seed train the same ones.
    """

    name: str
    path: str
    config: ModelConfig
    tokenizer: Tokenizer
    end_ids: tuple[int, ...]
    moments: list[Moment]
    origin: dict[str, Any]


def open_subjects(config: ConfigDict) -> list[Subject]:
    """The models that `config.models` names; no weights are read yet.

    Raises:
      UserError: there are none, or the same twice; fields do not go with the weights.
    """
    if not config.models:
        raise UserError("model= is missing: a workdir, a Hugging Face folder, a GGUF file or OpenAI's release.")
    if config.batch_size < 1:
        raise UserError(f"batch_size={config.batch_size}: expected at least 1.")
    if config.checkpoints not in ("one", "all"):
        raise UserError(f"checkpoints={config.checkpoints!r}: expected one or all; model=WORKDIR/checkpoints/STEP.")
    if len(set(config.models)) < len(config.models):
        raise UserError(f"models={config.models}: one of them stands there twice.")
    names = [_short(path) for path in config.models]
    names = names if len(set(names)) == len(names) else config.models
    return [_open(name, path, config) for name, path in zip(names, config.models, strict=True)]


def _short(path: str) -> str:
    own = Path(path)
    return f"{own.parent.parent.name}, step {own.name}" if own.parent.name == "checkpoints" else own.name


def _open(name: str, path: str, config: ConfigDict) -> Subject:
    pretrained = open_pretrained(path)
    model = adapt(pretrained.config, **config.model)
    if config.checkpoints == "all":
        moments = _kept_checkpoints(pretrained)
    elif isinstance(pretrained.source, Path):
        step = pretrained.chosen_step
        moments = [_checkpoint(pretrained, _newest_step(pretrained.source) if step is None else step)]
    else:
        moments = [Moment(None, None, lambda model, mesh: pretrained.parameters(mesh, model))]
    # Of other people's weights the model is all that is known.
    origin = configuration.flatten(pretrained.recorded) or dataclasses.asdict(pretrained.config)
    origin = {name: value for name, value in origin.items() if not name.startswith(configuration.FREE_TO_CHANGE)}
    tokenizer = pretrained.tokenizer(config.tokenizer.path)
    return Subject(name, path, model, tokenizer, tuple(pretrained.end_ids(tokenizer)), moments, origin)


def _kept_checkpoints(pretrained: Pretrained) -> list[Moment]:
    """Those of a workdir, and before them the weights that pretraining drew, which are drawn again.

    UserError: no workdir, or no checkpoint in it.
    """
    if not isinstance(pretrained.source, Path) or pretrained.path != pretrained.source.parent:
        raise UserError(
            f"checkpoints=all: {pretrained.path} is no workdir of a pretraining run. Name one as model=DIR."
        )
    _newest_step(pretrained.source)
    steps = sorted(int(path.name) for path in pretrained.source.iterdir() if path.name.isdigit())
    moments = [_checkpoint(pretrained, step) for step in steps]
    recorded = pretrained.recorded
    if recorded.get("run") != "pretrain" or recorded.get("init_from") or steps[0] == 0:
        return moments

    def draw(model: ModelConfig, mesh: jax.sharding.Mesh) -> dict:
        shardings = jax.tree.map(lambda x: x.sharding, abstract_parameters(model, mesh))
        with jax.set_mesh(mesh):
            key = jax.random.key(recorded["seed"])
            return jax.jit(lambda key: decoder.init(model, key), out_shardings=shardings)(key)

    return [Moment(0, 0, draw), *moments]


def _checkpoint(pretrained: Pretrained, step: int) -> Moment:
    """The checkpoint of `step` in the workdir of `pretrained`."""
    own = dataclasses.replace(pretrained, step=step)
    recorded, tokens = pretrained.recorded, None
    if recorded.get("run") == "pretrain":
        tokens = step * recorded["train"]["batch_size"] * recorded["data"]["sequence_length"]
    return Moment(step, tokens, lambda model, mesh: own.parameters(mesh, model))


def _newest_step(folder: Path) -> int:
    """The last of the checkpoints in `folder`. UserError: there is none."""
    steps = [int(path.name) for path in folder.iterdir() if path.name.isdigit()]
    if not steps:
        raise UserError(f"{folder}: no checkpoint is there yet. Wait for the run's first, or name other weights.")
    return max(steps)
