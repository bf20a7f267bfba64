"""What a policy-gradient run begins with: its fields without defaults, its weights, tokenizer and value function."""

import dataclasses
from pathlib import Path

import jax
from ml_collections import ConfigDict

from gpt_jax.data.tables import is_table
from gpt_jax.errors import UserError
from gpt_jax.models.config import ModelConfig
from gpt_jax.models.presets import adapt, model_config
from gpt_jax.runs.aligning.pretraining_text import windows_an_update
from gpt_jax.runs.aligning.start import NO_TEMPLATE, Start, first_day
from gpt_jax.runs.chat_model import open_template
from gpt_jax.runs.pretrained import Pretrained, open_pretrained
from gpt_jax.runs.recipe import check_adapters, check_batch, check_counts, has_begun
from gpt_jax.runs.workdir import cache_folder
from gpt_jax.text.tokenizer import load_tokenizer
from gpt_jax.training.profiling import parse_steps

COUNTS = (
    "train.log_every",
    "train.eval_every",
    "checkpoint.every",
    "report.sample_every",
    "report.samples",
    "rollout.truncate_after",
    "train.max_kl",
)


@dataclasses.dataclass(frozen=True)
class PolicyStart(Start):
    """What the run begins with.

    Attributes:
      value: the weights that the value function begins with, where it is a model of its own; a resumed run needs none.
    """

    value: Pretrained | None


def resolve(config: ConfigDict, workdir: Path) -> tuple[ConfigDict, PolicyStart]:
    """A copy in which nothing is left to a default, and what the run begins with.

    Raises:
      UserError: when fields contradict each other or the weights.
    """
    config = config.copy_and_resolve_references().unlock()
    if config.init_from is None:
        raise UserError(
            f"init_from is missing: --config=configs/{config.run}.py:init_from=PATH,reward=ADDRESS. PATH: a workdir of "
            "pretraining or supervised fine-tuning, a Hugging Face folder, a GGUF file or OpenAI's release."
        )
    begun = has_begun(workdir)  # then it is its own source: what it began with may be gone
    pretrained = open_pretrained(workdir if begun else config.init_from)
    if begun and pretrained.recorded.get("run") != config.run:
        raise UserError(
            f"--workdir={workdir}: holds a run of {pretrained.recorded.get('run')}, and this is one of {config.run}. "
            "Choose another --workdir."
        )
    tokenizer = load_tokenizer(workdir / "tokenizer") if begun else pretrained.tokenizer(config.tokenizer.path)
    template, day = None, first_day(workdir)
    if config.template != NO_TEMPLATE:
        path = None if begun else config.template
        template = open_template(path, tokenizer, config.init_from, pretrained.chat_template, day)
    model = adapt(pretrained.config, **config.model)
    for name in config.model:
        config.model[name] = getattr(model, name)
    if config.rollout.stop:
        known = pretrained.recorded["rollout"]["ends"] if begun else pretrained.end_ids(tokenizer)
        named = config.rollout.ends or known
        config.rollout.ends = tuple(sorted({*named, *(template.end_ids if template else ())}))
    if config.rollout.stop and not config.rollout.ends:
        raise UserError(
            f"{config.init_from}: its tokenizer has no symbol for the end of a text, by which answers end. Begin with "
            "a model that has one, or set rollout.stop=False: then all answers are as long as they may be."
        )
    check_counts(config, COUNTS)
    check_adapters(config, model)
    data, rollout = config.data, config.rollout
    for name, value in (("train.steps", config.train.steps), ("train.eval_prompts", config.train.eval_prompts)):
        if value < 1:
            raise UserError(f"{name}={value}: expected at least 1.")
    if rollout.temperature <= 0:
        raise UserError(f"rollout.temperature={rollout.temperature}: expected above 0; a policy has to try things out.")
    if rollout.slots is not None and rollout.slots < 1:
        raise UserError(f"rollout.slots={rollout.slots}: expected at least 1, or none: all answers of a step.")
    if rollout.max_new_tokens < 1:
        raise UserError(f"rollout.max_new_tokens={rollout.max_new_tokens}: expected at least 1.")
    if not is_table(data.source) and not 1 <= data.prompt_tokens <= model.context_length - 1 - rollout.max_new_tokens:
        raise UserError(
            f"data.prompt_tokens={data.prompt_tokens}: expected 1 to "
            f"{model.context_length - 1 - rollout.max_new_tokens}, so that with rollout.max_new_tokens="
            f"{rollout.max_new_tokens} it fits in a context of {model.context_length}."
        )
    if not 0 <= config.train.average_decay < 1:
        raise UserError(f"train.average_decay={config.train.average_decay}: expected 0 (no average) to below 1.")
    parse_steps(config.report.profile_steps, config.train.steps)
    rollout.slots = rollout.slots or config.train.batch_size
    data.cache_dir = str(cache_folder(data.cache_dir))
    return config.lock(), PolicyStart(pretrained, tokenizer, template, day, open_value(config, pretrained, begun))


def open_value(config: ConfigDict, pretrained: Pretrained, begun: bool) -> Pretrained | None:
    """The weights of a value function that is a model of its own, whose fields `config.value.model` then has.

    A run that has `begun` needs none.
    """
    if "value" not in config or config.value.init_from is None:
        return None
    if begun:
        config.value.model.update(pretrained.recorded["value"]["model"])
        return None
    value = pretrained if config.value.init_from == "policy" else open_pretrained(config.value.init_from)
    model = adapt(value.config, **config.value.model)
    for name in config.value.model:
        config.value.model[name] = getattr(model, name)
    return value


def value_config(config: ConfigDict) -> ModelConfig | None:
    """Which decoder the value function is, where it is one of its own."""
    if "value" not in config or config.value.init_from is None:
        return None
    return model_config(None, **config.value.model)


def check_batches(config: ConfigDict, mesh: jax.sharding.Mesh) -> None:
    """Raises UserError unless the answers of a step divide into minibatches, and these over the devices."""
    train, c = config.train, config.objective
    if c.epochs < 1 or c.minibatches < 1 or train.batch_size % c.minibatches:
        raise UserError(
            f"objective.epochs={c.epochs}, objective.minibatches={c.minibatches}: expected at least 1 of each, and "
            f"minibatches that divide train.batch_size={train.batch_size}."
        )
    check_batch(
        train.batch_size // c.minibatches, mesh, accumulation=train.accumulation,
        field="a minibatch of train.batch_size / objective.minibatches",
    )  # fmt: skip
    if "pretraining" in config and config.pretraining.coefficient:
        check_batch(
            windows_an_update(config), mesh, accumulation=train.accumulation,
            field="pretraining.examples times a minibatch",
        )  # fmt: skip
    answers = answers_a_prompt(config)
    if train.batch_size % answers:
        raise UserError(f"train.batch_size={train.batch_size} does not divide by objective.answers={answers}.")


def answers_a_prompt(config: ConfigDict) -> int:
    """K of GRPO; PPO's answers each have a prompt of their own."""
    return config.objective.get("answers", 1)
