"""What a policy-gradient run begins with: its fields without defaults, its weights, tokenizer and value function."""

import dataclasses
from pathlib import Path

import jax
from ml_collections import ConfigDict

from gpt_jax import configuration
from gpt_jax.data.tables import is_table
from gpt_jax.disk import write_atomically
from gpt_jax.errors import UserError
from gpt_jax.models.config import ModelConfig
from gpt_jax.models.presets import adapt, model_config
from gpt_jax.runs.chat_model import open_template
from gpt_jax.runs.pretrained import CHAT_TEMPLATE, Pretrained, open_pretrained
from gpt_jax.runs.pretraining_text import windows_an_update
from gpt_jax.runs.recipe import check_adapters, check_batch, check_counts, has_begun
from gpt_jax.runs.workdir import cache_folder, environment
from gpt_jax.text.chat_template import ChatTemplate
from gpt_jax.text.tokenizer import Tokenizer, load_tokenizer
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
class Start:
    """What the run begins with: weights that are not read yet, their tokenizer, a template where they chat.

    Attributes:
      value: the weights that the value function begins with, where it is a model of its own; resumed ones need none.
    """

    pretrained: Pretrained
    tokenizer: Tokenizer
    template: ChatTemplate | None
    value: Pretrained | None


def resolve(config: ConfigDict, workdir: Path) -> tuple[ConfigDict, Start]:
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
    tokenizer = load_tokenizer(workdir / "tokenizer") if begun else pretrained.tokenizer(config.tokenizer.path)
    template = open_template(None if begun else config.template, tokenizer, config.init_from, pretrained.chat_template)
    model = adapt(pretrained.config, **config.model)
    for name in config.model:
        config.model[name] = getattr(model, name)
    if begun:
        config.rollout.ends = tuple(pretrained.recorded["rollout"]["ends"])
    elif config.rollout.stop:
        named = config.rollout.ends or pretrained.end_ids(tokenizer)
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
    return config.lock(), Start(pretrained, tokenizer, template, open_value(config, tokenizer, pretrained, begun))


def open_value(config: ConfigDict, tokenizer: Tokenizer, pretrained: Pretrained, begun: bool) -> Pretrained | None:
    """The weights of a value function that is a model of its own, whose fields `config.value.model` then has.

    A run that has `begun` needs none.

    Raises:
      UserError: they read other tokens than the policy.
    """
    if "value" not in config or config.value.init_from is None:
        return None
    if begun:
        config.value.model.update(pretrained.recorded["value"]["model"])
        return None
    address = config.init_from if config.value.init_from == "policy" else config.value.init_from
    value = open_pretrained(address)
    if address != config.init_from and value.tokenizer().fingerprint != tokenizer.fingerprint:
        raise UserError(
            f"value.init_from={address}: has another tokenizer than {config.init_from}, so it cannot judge its tokens. "
            "Take a model with the same one, or leave value.init_from empty: a head on the policy."
        )
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


def record(config: ConfigDict, start: Start, facts: dict, workdir: Path) -> None:
    """Writes what the run is made of, now that nothing is left to refuse; UserError where it was another."""
    configuration.check_same(
        workdir, "data.json", facts, what="prompts or reward (they have changed since the run began)"
    )
    start.tokenizer.save(workdir / "tokenizer")
    if start.template is not None:
        write_atomically(workdir / CHAT_TEMPLATE, start.template.source.encode())
    configuration.write_json(workdir / "data.json", facts)
    configuration.write_json(workdir / "environment.json", environment())
    configuration.write_json(workdir / "config.json", configuration.as_json(config))
