"""The loop: steps, and what is due between them, in an order that survives a kill at any moment.

At a checkpoint: the metrics row of that step, then the evaluation and the samples that are due, then the files are
flushed to the disk, then the checkpoint commits. So a checkpoint is never ahead of the record, and a resume only has
to cut the record back to the checkpoint.
"""

import contextlib
import dataclasses
import math
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from gpt_jax.errors import Interrupted, UserError
from gpt_jax.parallel.runtime import from_main_process
from gpt_jax.progress import StepProgress
from gpt_jax.training.checkpoints import Checkpoints
from gpt_jax.training.metrics_log import MetricsLog
from gpt_jax.training.profiling import Profile
from gpt_jax.training.state import TrainState
from gpt_jax.training.step import Batch, StepFunction


@dataclasses.dataclass(frozen=True)
class Intervals:
    """How often things are due, in steps; 0 switches one off. The last step is always evaluated and saved.

    save_evaluated: whether every state that is evaluated is saved too, so that the best of them can be read again.
    """

    log: int
    evaluate: int
    sample: int
    checkpoint: int
    save_evaluated: bool = False


class StopSignals:
    """Within its `with` block SIGTERM and Ctrl-C are remembered instead of ending the process; a second one ends it."""

    def __init__(self):
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame) -> None:
        self.received = number
        signal.signal(number, self._previous[number])

    def agreed(self, step: int, every: int) -> int | None:
        """The signal to stop by, the same on every process; several processes ask each other each `every` steps."""
        if jax.process_count() == 1:
            return self.received
        if step % max(every, 1):
            return None
        return int(np.max(multihost_utils.process_allgather(np.int32(self.received or 0)))) or None


@dataclasses.dataclass
class Loop:
    """Everything that happens between the first step and the last.

    Attributes:
      train_step: (state, batch) -> (state, metrics); batches: yields the batch of the first step first.
      steps: length of the run; flops_per_token, peak_flops: for the rows of metrics.
      tokens: of the number of steps made, the tokens they took.
      evaluate: metrics of a state, `loss` among them.
      sample: texts of a state, rows of `prompt` and `continuation`.
      evaluate_first: whether the state of step 0 is evaluated and sampled too.
      objective: of the metrics of an evaluation and its `step`, the number that is smallest in the best checkpoint.
      columns: what else a row of training says, by name, when so many steps are made.
      describe_batch: what step t (counted from 0) was fed with, for the message about a loss that is not finite.
    """

    train_step: StepFunction
    batches: Iterator[Batch]
    steps: int
    intervals: Intervals
    tokens: Callable[[int], int]
    flops_per_token: float
    peak_flops: float | None
    evaluate: Callable[[TrainState], dict[str, float]]
    sample: Callable[[TrainState], list[dict[str, str]]]
    describe_batch: Callable[[int], str]
    checkpoints: Checkpoints
    log: MetricsLog
    progress: StepProgress
    profile: Profile
    evaluate_first: bool = False
    objective: Callable[[dict[str, float]], float] = lambda metrics: metrics["loss"]
    columns: Callable[[int], dict[str, float]] = lambda step: {}

    def fit(self, state: TrainState) -> TrainState:
        """Trains from `state` to the last step.

        Raises:
          Interrupted: after SIGTERM or Ctrl-C, the state saved.
          UserError: when the loss or a gradient is not finite, or the disk is full.
        """
        start = int(state.step)
        self._rate = _Rate(self.tokens, start)
        if start or self.evaluate_first:
            self._evaluate_and_sample(start, state)  # in case a kill, or a hand, took what was due at this checkpoint
            self.log.flush()
        with StopSignals() as signals:
            pending = None  # metrics of the step before: read only when the next is under way, so no device waits
            for step in range(start + 1, self.steps + 1):
                self.profile.before(step, state)
                with jax.profiler.StepTraceAnnotation("train", step_num=step):
                    state, metrics = self.train_step(state, next(self.batches))
                with self._rate.paused():
                    self.profile.after(step, state)
                if pending is not None:
                    self._record(*pending)
                pending = (step, metrics)
                stop = signals.agreed(step, self.intervals.log)
                save = step == self.steps or _due(step, self.intervals.checkpoint) or stop is not None
                save |= self.intervals.save_evaluated and _due(step, self.intervals.evaluate)
                if save or _due(step, self.intervals.evaluate) or _due(step, self.intervals.sample):
                    self._record(*pending)
                    pending = None
                    with self._rate.paused():
                        objective = self._evaluate_and_sample(step, state)
                        if save:
                            self.log.flush()
                            self.checkpoints.save(state, objective=objective)
                if stop is not None and step < self.steps:
                    self.checkpoints.wait()
                    raise Interrupted(stop, step)
            self.checkpoints.wait()
        return state

    def _record(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Takes note of a step that is done: its row, where one is due, and the progress."""
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if not all(math.isfinite(values[name]) for name in ("loss", "gradient_norm")):
            good = self.checkpoints.latest_step()
            raise UserError(
                f"training: step {step} has loss {values['loss']} and gradient norm {values['gradient_norm']}. "
                f"The batch: {self.describe_batch(step - 1)}. Last good checkpoint: "
                f"{'none' if good is None else good} in {self.checkpoints.folder}. A lower schedule.peak, a longer "
                "schedule.warmup_steps or optimizer.clip_norm usually helps, in a new --workdir."
            )
        if step == 1 or _due(step, self.intervals.log):
            speed = self._rate.at(step)
            mfu = None if self.peak_flops is None else speed * self.flops_per_token / self.peak_flops
            self.log.write(
                {"step": step, "split": "train", "loss": values["loss"], "bits_per_byte": None}
                | {"tokens": self.tokens(step), "tokens_per_second": round(speed, 1), "mfu": mfu}
                | {"learning_rate": values["learning_rate"], "gradient_norm": values["gradient_norm"]}
                | {name: value for name, value in values.items() if name not in _KNOWN}
                | self.columns(step)
            )
        self.progress.update(step, loss=values["loss"])

    def _evaluate_and_sample(self, step: int, state: TrainState) -> float | None:
        """Makes the evaluation and the samples that are due at `step` and not yet on record; the objective."""
        last = step == self.steps
        metrics = next((row for row in self.log.rows("valid") if row["step"] == step), None)
        if (last or _due(step, self.intervals.evaluate)) and from_main_process(metrics is None):
            metrics = self.evaluate(state)
            self.log.write({"step": step, "split": "valid"} | metrics | {"tokens": self.tokens(step)})
            self.progress.say(f"step {step}: valid " + ", ".join(f"{name} {x:.4f}" for name, x in metrics.items()))
        sampled = any(row["step"] == step for row in self.log.samples())
        due = self.intervals.sample and (last or _due(step, self.intervals.sample))
        if due and from_main_process(not sampled):
            for row in self.sample(state):
                self.log.write_sample({"step": step} | row)
                self.progress.say(f"  {row['prompt']!r} ⟶ {row['continuation']!r}")
        return None if metrics is None else self.objective({"step": step} | metrics)


_KNOWN = ("loss", "learning_rate", "gradient_norm")  # what every step tells; a run may tell more


def _due(step: int, every: int) -> bool:
    return bool(every) and step % every == 0


class _Rate:
    """Tokens a second between two calls, without the time that evaluations and checkpoints take."""

    def __init__(self, tokens: Callable[[int], int], start: int):
        self._tokens = tokens
        self._step, self._since = start, time.monotonic()

    @contextlib.contextmanager
    def paused(self):
        began = time.monotonic()
        yield
        self._since += time.monotonic() - began

    def at(self, step: int) -> float:
        now = time.monotonic()
        rate = (self._tokens(step) - self._tokens(self._step)) / max(now - self._since, 1e-9)
        self._step, self._since = step, now
        return rate
