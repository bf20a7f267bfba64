"""What PPO's and GRPO's runs share: weights and prompts in; a policy that pleases a reward, and what it cost, out."""

import contextlib
import dataclasses
import functools
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from gpt_jax import configuration
from gpt_jax.alignment.grpo import GRPO
from gpt_jax.alignment.policy import Policy
from gpt_jax.alignment.policy_gradient import Judge, Penalty, PolicyGradient
from gpt_jax.alignment.ppo import PPO
from gpt_jax.alignment.rollouts import Truncation, spelled
from gpt_jax.disk import write_atomically
from gpt_jax.errors import UserError
from gpt_jax.inference.sampling import Sampling
from gpt_jax.models import decoder
from gpt_jax.models.adapters import adapter_specs
from gpt_jax.models.config import ModelConfig
from gpt_jax.models.flops import training_flops_per_token
from gpt_jax.models.heads import head_specs
from gpt_jax.models.parameters import init_parameters
from gpt_jax.models.presets import adapt, model_config
from gpt_jax.parallel.devices import peak_flops
from gpt_jax.parallel.mesh import make_mesh
from gpt_jax.parallel.runtime import announce, do_on_main_process, is_main_process
from gpt_jax.progress import StepProgress
from gpt_jax.runs.chat_model import open_template
from gpt_jax.runs.policy_prompts import Prompts, is_table, open_prompts
from gpt_jax.runs.policy_report import finish
from gpt_jax.runs.pretrained import CHAT_TEMPLATE, Pretrained, abstract_parameters, open_pretrained
from gpt_jax.runs.pretraining_text import open_pretraining_text, windows_an_update
from gpt_jax.runs.recipe import (
    check_adapters,
    check_batch,
    check_config,
    check_counts,
    check_model_fits,
    has_begun,
    schedule_and_optimizer,
)
from gpt_jax.runs.rewards import open_reward
from gpt_jax.runs.workdir import cache_folder, environment, open_workdir
from gpt_jax.text.chat_template import ChatTemplate
from gpt_jax.text.tokenizer import Tokenizer, load_tokenizer
from gpt_jax.training.checkpoints import Checkpoints, restore_parameters
from gpt_jax.training.frozen import frozen_mask, without_frozen
from gpt_jax.training.loop import Intervals, Loop
from gpt_jax.training.metrics_log import MetricsLog
from gpt_jax.training.optimizers import make_optimizer
from gpt_jax.training.profiling import Profile, parse_steps
from gpt_jax.training.startup import Startup
from gpt_jax.training.state import TrainState, abstract_state, create_state, initial_state
from gpt_jax.training.step import compile_train_step

COUNTS = (
    "train.log_every",
    "train.eval_every",
    "checkpoint.every",
    "report.sample_every",
    "report.samples",
    "rollout.truncate_after",
    "train.max_kl",
)
REFERENCE = "reference"  # in the workdir, what the KL is measured from, where it is not the policy's own base


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


def run(config: ConfigDict, workdir: Path, objective: PPO | GRPO, penalty: Penalty | None = None) -> dict[str, float]:
    """The run of `ppo.py` and `grpo.py`.

    Args:
      penalty: of the KL inside the rewards, PPO's; None: the objective has its own.
    """
    began, startup = time.monotonic(), Startup()
    config, start = resolve(config, workdir)
    mesh = make_mesh(config.mesh)
    check_batches(config, mesh)
    check_model_fits(model_config(None, **config.model), mesh)
    schedule_and_optimizer(config, config.train.steps)  # refuses what cannot be, before any work
    with open_workdir(workdir):
        do_on_main_process(lambda: check_config(config, workdir))
        startup.end("start")
        prompts = open_prompts(config, start.tokenizer, start.template)
        reward, facts = open_reward(config.reward, mesh)
        judge = Judge(
            reward, config.reward.source, truncation_of(config, start.tokenizer),
            config.reward.missing_end_score, config.reward.missing_end_penalty,
        )  # fmt: skip
        text = open_pretraining_text(config, start.tokenizer) if objective_reads_text(objective) else None
        do_on_main_process(lambda: record(config, start, {"prompts": prompts.facts, "reward": facts}, workdir))
        startup.end("data")
        log = train(config, mesh, start, prompts, judge, objective, penalty, text, workdir, startup)
        return finish(config, workdir, log, began) if is_main_process() else {}


def objective_reads_text(objective: PPO | GRPO) -> bool:
    """Whether it learns from text beside its answers."""
    return isinstance(objective, PPO) and objective.pretraining_coefficient > 0


# --- what is asked


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


def truncation_of(config: ConfigDict, tokenizer: Tokenizer) -> Truncation:
    """Where what is judged of an answer ends."""
    token = config.rollout.truncate_token
    return Truncation(frozenset() if token is None else spelled(tokenizer, token), config.rollout.truncate_after)


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


# --- the state


def fresh_parameters(config: ConfigDict, head: bool, key: jax.Array) -> dict:
    """The parameters of policy and value function (see alignment/policy.py), drawn.

    Args:
      head: whether the policy bears a value head. It is 0 at first, as in lm-human-preferences.
    """
    model, adapters, value = model_config(None, **config.model), config.transfer.adapters, value_config(config)
    params = {"model": decoder.init(model, key)}
    if adapters.rank:
        specs = adapter_specs(model, adapters.rank, tuple(adapters.targets))
        params["adapters"] = init_parameters(specs, key, jnp.dtype(model.param_dtype))
    if value is not None:
        params["value"] = {"model": decoder.init(value, key), "head": zero_head(value)}
    elif head:
        params["head"] = zero_head(model)
    return params


def zero_head(model: ModelConfig) -> dict:
    """A head of one output, all 0."""
    return jax.tree.map(jnp.zeros_like, init_parameters(head_specs(model, 1), jax.random.key(0), jnp.float32))


def make_state(
    config: ConfigDict, params: dict, optimizer: optax.GradientTransformation, penalty: Penalty | None
) -> TrainState:
    """The state of step 0 with these parameters."""
    aux = {} if penalty is None else {"coefficient": jnp.float32(penalty.coefficient)}
    if config.train.average_decay:
        name = "adapters" if "adapters" in params else "model"
        aux["average"] = {name: jax.tree.map(jnp.copy, params[name])}
    return initial_state(params, optimizer).replace(aux=aux)


def make_policy_optimizer(config: ConfigDict, frozen) -> tuple[optax.Schedule, optax.GradientTransformation]:
    """Schedule and optimizer of the updates, whose rate is that of their iteration."""
    by_step, _ = schedule_and_optimizer(config, config.train.steps)
    updates = config.objective.epochs * config.objective.minibatches
    schedule = lambda count: by_step(count // updates)  # noqa: E731
    optimizer = make_optimizer(schedule=schedule, **config.optimizer)
    if "value" in config and config.value.peak is not None:
        ratio = config.value.peak / config.schedule.peak

        def scaled(updates: dict, _: dict | None = None) -> dict:
            factors = {name: ratio if name in ("head", "value") else 1.0 for name in updates}
            return {name: jax.tree.map(lambda x, f=factors[name]: x * f, room) for name, room in updates.items()}

        optimizer = optax.chain(optimizer, optax.stateless(scaled))
    return schedule, without_frozen(optimizer, frozen)


def first_state(
    config: ConfigDict,
    mesh: jax.sharding.Mesh,
    start: Start,
    abstract: TrainState,
    draw: Callable[[jax.Array], dict],
    make: Callable[[dict], TrainState],
    workdir: Path,
) -> TrainState:
    """The state of step 0; what the KL is measured from is kept, unless it stays in the state beside adapters."""
    model = model_config(None, **config.model)
    given = {"model": start.pretrained.parameters(mesh, model)}
    if not config.transfer.adapters.rank:
        shutil.rmtree(workdir / REFERENCE, ignore_errors=True)
        reference = Checkpoints(workdir / REFERENCE, keep=1)
        reference.save(initial_state(given, optax.identity()))
        reference.close()
    if start.value is not None:
        own = value_config(config)
        if start.value.recorded.get("run") == "reward":
            given["value"] = start.value.parameters_with_head(mesh, own, outputs=1)
        else:
            given["value"] = {"model": start.value.parameters(mesh, own)}

    def begin(given: dict) -> TrainState:
        params = draw(jax.random.key(config.seed))
        value = {"value": params["value"] | given["value"]} if "value" in given else {}
        return make(params | given | value)

    return create_state(begin, abstract, mesh, given)


# --- the run


def train(
    config: ConfigDict,
    mesh: jax.sharding.Mesh,
    start: Start,
    prompts: Prompts,
    judge: Judge,
    objective: PPO | GRPO,
    penalty: Penalty | None,
    text: Callable[[int], dict[str, np.ndarray]] | None,
    workdir: Path,
    startup: Startup,
) -> MetricsLog:
    """From the opened prompts to the last checkpoint; returns the record of the run, closed."""
    c, batch, model = config, config.train.batch_size, model_config(None, **config.model)
    draw = functools.partial(fresh_parameters, config, isinstance(objective, PPO))
    with jax.set_mesh(mesh):
        frozen = frozen_mask(jax.eval_shape(draw, jax.random.key(0)))
    schedule, optimizer = make_policy_optimizer(config, frozen)
    make = functools.partial(make_state, config, optimizer=optimizer, penalty=penalty)
    abstract = abstract_state(lambda: make(draw(jax.random.key(c.seed))), mesh)
    checkpoints = Checkpoints(workdir / "checkpoints", keep=c.checkpoint.keep)
    state = checkpoints.restore(abstract)
    if state is None:
        state = first_state(config, mesh, start, abstract, draw, make, workdir)
    else:
        announce(f"going on from the checkpoint of step {int(state.step)}")
    first = int(state.step)
    policy = Policy(
        model, start.tokenizer.vocab_size, c.rollout.temperature, c.transfer.adapters.alpha, value_config(config)
    )
    minibatch = batch // c.objective.minibatches
    iteration = PolicyGradient(
        policy,
        objective,
        compile_train_step(
            abstract, mesh, optimizer=optimizer, schedule=schedule, accumulation=c.train.accumulation, frozen=frozen,
            loss_fn=lambda params, part, key: objective.loss(policy, params, part, len(part["starts"]) / minibatch),
        ),
        judge,
        None if c.transfer.adapters.rank else kept_reference(model, mesh, workdir),
        start.tokenizer,
        mesh,
        Sampling(c.rollout.max_new_tokens, c.rollout.temperature, seed=c.seed),
        tuple(c.rollout.ends) if c.rollout.stop else (),
        positions=positions(prompts.longest + c.rollout.max_new_tokens - 1, mesh, model),
        longest=c.rollout.max_new_tokens,
        epochs=c.objective.epochs,
        minibatches=c.objective.minibatches,
        rows=minibatch // c.train.accumulation,
        slots=c.rollout.slots,
        penalty=penalty or Penalty(0.0),
        average_decay=c.train.average_decay,
        max_kl=c.train.max_kl,
        pretraining=text,
        last_good=lambda step: last_before(workdir / "checkpoints", step),
    )  # fmt: skip
    log = MetricsLog(workdir, resume_step=first, main_process=is_main_process(), tensorboard=c.report.tensorboard)
    progress = StepProgress(total=c.train.steps, start=first, main_process=is_main_process())
    profile = Profile(parse_steps(c.report.profile_steps, c.train.steps), workdir / "profile", progress.say)
    k = answers_a_prompt(config)
    announce(
        f"{decoder.parameter_count(model):,} parameters; {len(prompts.train):,} prompts, of which a step takes "
        f"{batch // k:,}; {c.train.steps:,} steps of {batch:,} answers; the first step takes a while: it is compiled"
    )
    fresh = FreshAnswers(iteration, prompts, c.objective.get("beta", c.get("kl", {}).get("coefficient", 0.0)))
    startup.end("state")
    with contextlib.ExitStack() as stack:
        for closed_at_the_end in (checkpoints, log, progress, profile):
            stack.callback(closed_at_the_end.close)
        Loop(
            train_step=startup.watch(shown(iteration, c.train.log_every, progress.say), progress.say),
            batches=prompts.of_steps(first, prompts=batch // k, answers=k, seed=c.seed),
            steps=c.train.steps,
            intervals=Intervals(
                log=c.train.log_every,
                evaluate=c.train.eval_every,
                sample=c.report.sample_every,
                checkpoint=c.checkpoint.every,
            ),
            tokens=lambda step: step * batch * iteration.positions,
            flops_per_token=training_flops_per_token(model, iteration.positions) * c.objective.epochs,
            peak_flops=peak_flops(),
            evaluate=fresh.metrics,
            sample=lambda state: fresh.samples(state, c.report.samples),
            describe_batch=lambda step: f"the answers of step {step + 1}",
            checkpoints=checkpoints,
            log=log,
            progress=progress,
            profile=profile,
            evaluate_first=True,  # what the policy said before
            objective=lambda metrics: -metrics["reward"],
        ).fit(state)
    return log


def shown(iteration: PolicyGradient, every: int, say: Callable[[str], None]) -> PolicyGradient:
    """`iteration`, which every so often says what came of it, and where its time went."""

    def step(state: TrainState, prompts: list) -> tuple[TrainState, dict[str, float]]:
        state, m = iteration(state, prompts)
        number = int(state.step)
        if number == 1 or (every and number % every == 0):
            say(
                f"step {number}: score {m['score']:.4f}, KL {m['kl']:.3f} nats an answer, entropy {m['entropy']:.3f}, "
                f"length {m['length']:.1f}, clipped {m['clip_fraction']:.1%}; rollout {m['seconds_rollout']:.2f} s, "
                f"scoring {m['seconds_scoring']:.2f} s, learning {m['seconds_learning']:.2f} s"
            )
        return state, m

    return step


class FreshAnswers:
    """What the policy answers to held-out prompts, by draws that are the same at every evaluation."""

    def __init__(self, iteration: PolicyGradient, prompts: Prompts, coefficient: float):
        """`coefficient`: what a nat of KL takes off the reward that the best checkpoint is chosen by."""
        self._iteration, self._prompts, self._coefficient = iteration, prompts.valid, coefficient
        self._step, self._answers = -1, []

    def _drawn(self, state: TrainState) -> list:
        if int(state.step) != self._step:
            self._step, model = int(state.step), self._iteration.decoder(state)
            self._answers = self._iteration.answers(model, self._prompts, first=0)
        return self._answers

    def metrics(self, state: TrainState) -> dict[str, float]:
        """`score`, `kl`, `reward` (score less what the KL costs), `entropy`, `length`, `ended`, ... of all of them."""
        _, metrics = self._iteration.judged(state.params, self._prompts, self._drawn(state))
        return metrics | {"reward": metrics["score"] - self._coefficient * metrics["kl"]}

    def samples(self, state: TrainState, number: int) -> list[dict]:
        """The first of them as rows of `prompt`, `continuation` and `score`."""
        prompts, answers = self._prompts[:number], self._drawn(state)[:number]
        if not prompts:
            return []
        iteration = self._iteration
        scores, _, texts = iteration.judge.scores(prompts, answers, iteration.tokenizer)
        rows = zip(prompts, texts, scores.tolist(), strict=True)
        return [{"prompt": prompt.text, "continuation": text, "score": value} for prompt, text, value in rows]


def kept_reference(model: ModelConfig, mesh: jax.sharding.Mesh, workdir: Path) -> dict:
    """The decoder that the run began with."""
    return restore_parameters(workdir / REFERENCE, {"model": abstract_parameters(model, mesh)})["model"]


def positions(least: int, mesh: jax.sharding.Mesh, model: ModelConfig) -> int:
    """T: `least`, and so much more that it divides over the devices along `sequence`."""
    parts = mesh.shape["sequence"]
    return min(-(-least // parts) * parts, model.context_length)


def last_before(folder: Path, step: int) -> str:
    """The newest checkpoint before `step`, in words."""
    steps = [int(path.name) for path in folder.iterdir() if path.name.isdigit()] if folder.is_dir() else []
    good = max((one for one in steps if one < step), default=None)
    return "none" if good is None else f"{folder / str(good)}"
