"""What SFT, reward models and DPO begin with: weights, their tokenizer and a chat template; and the record of it."""

import dataclasses
import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from gpt_jax import configuration
from gpt_jax.disk import write_atomically
from gpt_jax.errors import UserError
from gpt_jax.models import decoder
from gpt_jax.models.adapters import adapter_specs
from gpt_jax.models.config import ModelConfig
from gpt_jax.models.parameters import init_parameters
from gpt_jax.models.presets import adapt
from gpt_jax.parallel.runtime import announce
from gpt_jax.runs.chat_model import open_template
from gpt_jax.runs.pretrained import CHAT_TEMPLATE, Pretrained, open_pretrained
from gpt_jax.runs.recipe import check_adapters, has_begun
from gpt_jax.runs.workdir import environment
from gpt_jax.text.chat_template import ChatTemplate, plain_template
from gpt_jax.text.tokenizer import Tokenizer, load_tokenizer
from gpt_jax.training.checkpoints import Checkpoints
from gpt_jax.training.frozen import frozen_mask, without_frozen
from gpt_jax.training.profiling import parse_steps
from gpt_jax.training.state import TrainState, abstract_state, create_state, initial_state, state_builder

LENGTH = 2048  # tokens of a conversation, where neither config nor model says less
NO_TEMPLATE = "none"  # as the field `template`: prompts are texts that answers go on from


@dataclasses.dataclass(frozen=True)
class Start:
    """What the run begins with: weights that are not read yet, their tokenizer, and the template of conversations.

    Attributes:
      template: None: there are no conversations but texts.
      day: on which the run began; a template that writes the date takes it for today.
    """

    pretrained: Pretrained
    tokenizer: Tokenizer
    template: ChatTemplate | None
    day: datetime.date

    @property
    def end_ids(self) -> list[int]:
        """Ids that end an answer."""
        return sorted({*(self.template.end_ids if self.template else ()), self.tokenizer.specials.end_of_text})


def resolve_start(config: ConfigDict, workdir: Path, *, texts: bool = False) -> tuple[ConfigDict, Start]:
    """A copy of the config, unlocked, whose model, length and duration are decided; and what the run begins with.

    Args:
      texts: whether `template` may be `NO_TEMPLATE`.

    Raises:
      UserError: when fields contradict each other or the weights.
    """
    config = config.copy_and_resolve_references().unlock()
    if config.init_from is None or config.data.source is None:
        raise UserError(
            f"init_from or source is missing: --config=configs/{config.run}.py:init_from=PATH,source=file:ROWS.jsonl. "
            "PATH: a Hugging Face folder, a GGUF file, OpenAI's release or a workdir."
        )
    begun = has_begun(workdir)  # then it is its own source: what it began with may be gone
    pretrained = open_pretrained(workdir if begun else config.init_from)
    tokenizer = load_tokenizer(workdir / "tokenizer") if begun else pretrained.tokenizer(config.tokenizer.path)
    template, day = None, first_day(workdir)
    if not texts or config.template != NO_TEMPLATE:
        template = find_template(None if begun else config.template, pretrained, tokenizer, config.init_from, day)
    model = adapt(pretrained.config, **config.model)
    for name in config.model:
        config.model[name] = getattr(model, name)
    length = config.data.sequence_length
    if length is None:
        length = config.data.sequence_length = min(model.context_length, LENGTH)
    if not 1 <= length <= model.context_length:
        raise UserError(f"data.sequence_length={length}: expected 1 to model.context_length={model.context_length}.")
    if (config.train.steps > 0) == (config.train.epochs > 0):
        raise UserError(
            f"train.steps={config.train.steps}, train.epochs={config.train.epochs}: give exactly one of them and set "
            "the other to 0."
        )
    check_adapters(config, model)
    parse_steps(config.report.profile_steps, config.train.steps or None)
    return config, Start(pretrained, tokenizer, template, day)


def first_day(workdir: Path) -> datetime.date:
    """The day on which the run in `workdir` began: today, where it has not."""
    try:
        return datetime.date.fromisoformat(json.loads((workdir / "data.json").read_text())["day"])
    except (OSError, ValueError, LookupError, TypeError):
        return datetime.date.today()


def find_template(
    path: str | None,
    pretrained: Pretrained,
    tokenizer: Tokenizer,
    source: str,
    day: datetime.date | None = None,
) -> ChatTemplate:
    """The template in the file `path`, the one that the weights were taught with, or plain words.

    Raises:
      UserError: it is none, or could not teach a model to end its answers.
    """
    template = open_template(path, tokenizer, source, pretrained.chat_template, day)
    if template is None:
        announce(f"{source}: has no chat template; plain words (User:, Assistant:) take its place")
        template = ChatTemplate(plain_template(tokenizer), tokenizer, "the plain chat template")
    if not template.end_ids:
        raise UserError(
            f"{template.where} writes no symbol behind an answer, from which a model could learn to end it. Name "
            "another: --config.template=FILE."
        )
    return template


def record(config: ConfigDict, start: Start, facts: dict[str, Any], workdir: Path) -> None:
    """Writes what the run is made of, now that nothing is left to refuse; UserError where its data are others."""
    facts = facts | {"day": start.day.isoformat()}
    configuration.check_same(workdir, "data.json", facts, what="data (they have changed since the run began)")
    start.tokenizer.save(workdir / "tokenizer")
    if start.template is not None:
        write_atomically(workdir / CHAT_TEMPLATE, start.template.source.encode())
    configuration.write_json(workdir / "data.json", facts)
    configuration.write_json(workdir / "environment.json", environment())
    configuration.write_json(workdir / "config.json", configuration.as_json(config))


def fresh_parameters(model: ModelConfig, adapters: ConfigDict, key: jax.Array) -> dict:
    """`model`, a decoder, and where their rank is not 0 `adapters`."""
    params = {"model": decoder.init(model, key)}
    if adapters.rank:
        specs = adapter_specs(model, adapters.rank, tuple(adapters.targets))
        params["adapters"] = init_parameters(specs, key, jnp.dtype(model.param_dtype))
    return params


@dataclasses.dataclass(frozen=True)
class Learner:
    """The state that a run goes on from, and what updates it.

    Attributes:
      abstract: the state as shapes and shardings; frozen: as of `train_step`.
    """

    state: TrainState
    abstract: TrainState
    optimizer: optax.GradientTransformation
    frozen: Any


def open_learner(
    draw: Callable[[jax.Array], dict],
    given: Callable[[], dict],
    optimizer: optax.GradientTransformation,
    checkpoints: Checkpoints,
    mesh: jax.sharding.Mesh,
    seed: int,
    *,
    freeze: int = 0,
) -> Learner:
    """The newest checkpoint, or, without one, the decoder that is `given`, with what `draw` puts beside it.

    Args:
      draw: key -> parameters, `model` among them.
      freeze: as `layers` of `frozen_mask`.
    """
    with jax.set_mesh(mesh):
        frozen = frozen_mask(jax.eval_shape(draw, jax.random.key(0)), freeze)
    optimizer = without_frozen(optimizer, frozen)
    abstract = abstract_state(state_builder(draw, optimizer, seed), mesh)
    state = checkpoints.restore(abstract)
    if state is None:

        def begin(model: dict) -> TrainState:
            return initial_state(draw(jax.random.key(seed)) | {"model": model}, optimizer)

        state = create_state(begin, abstract, mesh, given())
    else:
        announce(f"going on from the checkpoint of step {int(state.step)}")
    return Learner(state, abstract, optimizer, frozen)
