"""What PPO's and GRPO's runs share: weights and prompts in; a policy that pleases a reward, and what it cost, out."""

import contextlib
import functools
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from gpt_jax.alignment.grpo import GRPO
from gpt_jax.alignment.policy import Policy
from gpt_jax.alignment.policy_gradient import Judge, Penalty, PolicyGradient
from gpt_jax.alignment.ppo import PPO
from gpt_jax.alignment.rollouts import Answer, Truncation, spelled
from gpt_jax.errors import UserError
from gpt_jax.inference.sampling import Sampling
from gpt_jax.models import decoder
from gpt_jax.models.config import ModelConfig
from gpt_jax.models.flops import training_flops_per_token
from gpt_jax.models.presets import model_config
from gpt_jax.parallel.devices import peak_flops
from gpt_jax.parallel.mesh import make_mesh
from gpt_jax.parallel.runtime import announce, do_on_main_process, is_main_process
from gpt_jax.progress import StepProgress
from gpt_jax.runs.aligning.policy_prompts import Prompts, open_prompts
from gpt_jax.runs.aligning.policy_report import finish
from gpt_jax.runs.aligning.policy_start import PolicyStart, answers_a_prompt, check_batches, resolve, value_config
from gpt_jax.runs.aligning.policy_state import (
    first_state,
    fresh_parameters,
    kept_reference,
    make_policy_optimizer,
    make_state,
)
from gpt_jax.runs.aligning.pretraining_text import open_pretraining_text
from gpt_jax.runs.aligning.reward_model import check_value_function
from gpt_jax.runs.aligning.rewards import open_reward
from gpt_jax.runs.aligning.start import record
from gpt_jax.runs.recipe import check_config, check_model_fits, schedule_and_optimizer
from gpt_jax.runs.workdir import open_workdir
from gpt_jax.text.tokenizer import Tokenizer
from gpt_jax.training.checkpoints import Checkpoints
from gpt_jax.training.frozen import frozen_mask
from gpt_jax.training.loop import Intervals, Loop
from gpt_jax.training.metrics_log import MetricsLog
from gpt_jax.training.profiling import Profile, parse_steps
from gpt_jax.training.startup import Startup
from gpt_jax.training.state import TrainState, abstract_state
from gpt_jax.training.step import compile_train_step


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
        own, length = value_config(config), prompts.longest + config.rollout.max_new_tokens
        if own is not None and own.context_length < length:
            raise UserError(
                f"value.model.context_length={own.context_length}: prompts with their answers have up to {length}."
            )
        if start.value not in (None, start.pretrained):
            check_value_function(start.value, start.tokenizer, prompts.longest + config.rollout.max_new_tokens)
        reward, facts = open_reward(config.reward, mesh)
        judge = Judge(
            reward, config.reward.source, truncation_of(config, start.tokenizer),
            config.reward.missing_end_score, config.reward.missing_end_penalty,
        )  # fmt: skip
        tried = prompts.valid[:2]  # what a reward cannot do is known before anything is written
        judge.scores(tried, [Answer([], True) for _ in tried], start.tokenizer)
        facts, text = {"prompts": prompts.facts, "reward": facts}, None
        if objective_reads_text(objective):
            text, facts["pretraining"] = open_pretraining_text(config, start.tokenizer)
        do_on_main_process(lambda: record(config, start, facts, workdir))
        startup.end("data")
        log = train(config, mesh, start, prompts, judge, objective, penalty, text, workdir, startup)
        return finish(config, workdir, log, began) if is_main_process() else {}


def objective_reads_text(objective: PPO | GRPO) -> bool:
    """Whether it learns from text beside its answers."""
    return isinstance(objective, PPO) and objective.pretraining_coefficient > 0


def truncation_of(config: ConfigDict, tokenizer: Tokenizer) -> Truncation:
    """Where what is judged of an answer ends."""
    token = config.rollout.truncate_token
    return Truncation(frozenset() if token is None else spelled(tokenizer, token), config.rollout.truncate_after)


def train(
    config: ConfigDict,
    mesh: jax.sharding.Mesh,
    start: PolicyStart,
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
        penalty=penalty or Penalty(c.objective.beta),  # GRPO's: told, not taken off its rewards
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

    @staticmethod
    def _result(state: TrainState) -> TrainState:
        """`state` with the average of the weights, where there is one, as its policy: that is what the run leaves."""
        return state.replace(params=state.params | state.aux.get("average", {}))

    def _drawn(self, state: TrainState) -> list:
        if int(state.step) != self._step:
            self._step, model = int(state.step), self._iteration.decoder(self._result(state))
            self._answers = self._iteration.answers(model, self._prompts, first=0)
        return self._answers

    def metrics(self, state: TrainState) -> dict[str, float]:
        """`score`, `kl`, `reward` (score less what the KL costs), `entropy`, `length`, `ended`, ... of all of them."""
        _, metrics = self._iteration.judged(self._result(state).params, self._prompts, self._drawn(state))
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


def positions(least: int, mesh: jax.sharding.Mesh, model: ModelConfig) -> int:
    """T: `least`, and so much more that it divides over the devices along `sequence`."""
    parts = mesh.shape["sequence"]
    return min(-(-least // parts) * parts, model.context_length)


def last_before(folder: Path, step: int) -> str:
    """The newest checkpoint before `step`, in words."""
    steps = [int(path.name) for path in folder.iterdir() if path.name.isdigit()] if folder.is_dir() else []
    good = max((one for one in steps if one < step), default=None)
    return "none" if good is None else f"{folder / str(good)}"
