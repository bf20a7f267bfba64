"""The training that reward models and DPO share: steps over prompts with their ranked answers."""

import contextlib
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from gpt_jax import configuration
from gpt_jax.data.example_batches import TrainingPlan, training_batches
from gpt_jax.data.ranked_batches import RankedSet
from gpt_jax.errors import UserError
from gpt_jax.models.config import ModelConfig
from gpt_jax.models.flops import training_flops_per_token
from gpt_jax.parallel.devices import peak_flops
from gpt_jax.parallel.rules import sharding
from gpt_jax.parallel.runtime import announce, is_main_process
from gpt_jax.progress import StepProgress
from gpt_jax.runs.aligning.comparisons import Split
from gpt_jax.runs.aligning.start import Start, open_learner, resolve_start
from gpt_jax.runs.recipe import check_counts, schedule_and_optimizer
from gpt_jax.training.checkpoints import Checkpoints
from gpt_jax.training.loop import Intervals, Loop
from gpt_jax.training.metrics_log import MetricsLog
from gpt_jax.training.profiling import Profile, parse_steps
from gpt_jax.training.startup import Startup
from gpt_jax.training.state import TrainState
from gpt_jax.training.step import LossFunction, compile_train_step

COUNTS = (
    "data.last_messages",
    "train.log_every",
    "train.eval_every",
    "checkpoint.every",
    "report.sample_every",
    "report.samples",
    "report.sample_tokens",
    "report.temperature",
)


def resolve(config: ConfigDict, workdir: Path) -> tuple[ConfigDict, Start]:
    """A copy in which nothing is left to a default, and what the run begins with.

    Raises:
      UserError: when fields contradict each other or the weights.
    """
    config, start = resolve_start(config, workdir, texts=True)
    freeze, layers = config.transfer.freeze, config.model.num_layers
    if not 0 <= freeze <= layers or (freeze and config.transfer.adapters.rank):
        raise UserError(
            f"transfer.freeze={freeze}: expected 0 to {layers} layers, and 0 beside adapters, with which all of them "
            "stay as they are."
        )
    check_counts(config, tuple(name for name in COUNTS if name in configuration.flatten(config.to_dict())))
    return config.lock(), start


def number_of_steps(config: ConfigDict, data: RankedSet) -> int:
    """How many steps the run takes: `train.steps`, or those of `train.epochs`."""
    per_epoch = TrainingPlan(data, config.train.batch_size, config.seed).steps_per_epoch
    return config.train.steps or max(round(config.train.epochs * per_epoch), 1)


def train(
    config: ConfigDict,
    model: ModelConfig,
    mesh: jax.sharding.Mesh,
    data: Split,
    *,
    draw: Callable[[jax.Array], dict],
    given: Callable[[], dict],
    loss: LossFunction,
    evaluate: Callable[[TrainState], dict[str, float]],
    sample: Callable[[TrainState], list[dict[str, str]]],
    steps: int,
    workdir: Path,
    startup: Startup,
) -> tuple[Any, MetricsLog]:
    """From the ranked answers to the last checkpoint; returns its parameters, and the record of the run, closed.

    Args:
      draw, given: as of `open_learner`.
      loss: of batches that `RankedSet` makes; evaluate, sample: as of `Loop`.
    """
    c, batch = config, config.train.batch_size
    plan = TrainingPlan(data.encoded, batch, c.seed)
    padding = plan.padding()
    announce(
        f"{len(data.rows):,} prompts, {plan.steps_per_epoch:,} steps of {batch} an epoch, {steps:,} in all; "
        f"{padding.share:.0%} of positions are padding; the first step of each length takes a while: it is compiled"
    )
    schedule, optimizer = schedule_and_optimizer(config, steps)
    checkpoints = Checkpoints(workdir / "checkpoints", keep=c.checkpoint.keep)
    learner = open_learner(draw, given, optimizer, checkpoints, mesh, c.seed, freeze=c.transfer.freeze)
    first = int(learner.state.step)
    step = compile_train_step(
        learner.abstract, mesh, loss_fn=loss, optimizer=learner.optimizer, schedule=schedule,
        accumulation=c.train.accumulation, frozen=learner.frozen,
    )  # fmt: skip
    tokens = sum(len(sequence) for own in data.encoded.sequences for sequence in own)
    tokens_per_step = max(round(tokens / len(data.rows) * batch), 1)
    log = MetricsLog(workdir, resume_step=first, main_process=is_main_process(), tensorboard=c.report.tensorboard)
    progress = StepProgress(total=steps, start=first, main_process=is_main_process())
    profile = Profile(parse_steps(c.report.profile_steps, steps), workdir / "profile", progress.say)
    startup.end("state")
    with contextlib.ExitStack() as stack:
        for closed_at_the_end in (checkpoints, log, progress, profile):
            stack.callback(closed_at_the_end.close)
        loop = Loop(
            train_step=startup.watch(functools.partial(step, seed=c.seed), progress.say),
            batches=training_batches(
                plan,
                first_step=first,
                steps=steps,
                sharding=sharding((batch,), ("batch",), mesh),
                prefetch=c.data.prefetch,
            ),
            steps=steps,
            intervals=Intervals(
                log=c.train.log_every,
                evaluate=c.train.eval_every,
                sample=c.report.get("sample_every", 0),
                checkpoint=c.checkpoint.every,
            ),
            tokens=lambda step: step * tokens_per_step,
            flops_per_token=training_flops_per_token(model, max(round(tokens / data.encoded.counts.sum()), 1)),
            peak_flops=peak_flops(),
            evaluate=evaluate,
            sample=sample,
            describe_batch=lambda step: f"{[data.rows[index].place for index in plan.indices(step)]}",
            checkpoints=checkpoints,
            log=log,
            progress=progress,
            profile=profile,
            evaluate_first=True,  # what the model could do before
        )
        state = loop.fit(learner.state)
    return state.params, log
