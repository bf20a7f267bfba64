"""A trace of a few steps: what the devices and the host did when, for XProf, TensorBoard and Perfetto."""

import re
from collections.abc import Callable
from pathlib import Path

import jax

from gpt_jax.errors import UserError
from gpt_jax.parallel.runtime import is_main_process
from gpt_jax.training.state import TrainState


def parse_steps(text: str | None, steps: int | None = None) -> range:
    """The steps that `report.profile_steps` names, counted from 1: `10:13` is 10, 11, 12 and 13; None or empty: none.

    Args:
      steps: the length of the run, where it is known.

    Raises:
      UserError: for a text of another form, or one that goes beyond the last step.
    """
    if not text:
        return range(0)
    if (match := re.fullmatch(r"([0-9]+):([0-9]+)", text)) and 1 <= int(match[1]) <= int(match[2]):
        first, last = int(match[1]), int(match[2])
    else:
        raise UserError(
            f"report.profile_steps={text!r}: expected FIRST:LAST, two steps counted from 1, the first not behind the "
            "last; 10:13 profiles four steps."
        )
    if steps is not None and last > steps:
        raise UserError(f"report.profile_steps={text!r}: the last step of this run is {steps}.")
    return range(first, last + 1)


class Profile:
    """Traces those of `steps` that the run comes to, into `folder`; of several processes the first, its own devices."""

    def __init__(self, steps: range, folder: Path, say: Callable[[str], None]):
        """`say`: prints where the trace is and how it is opened."""
        self._steps = steps if is_main_process() else range(0)
        self._folder, self._say = folder, say
        self._first: int | None = None  # of the trace that is being taken

    def before(self, step: int, state: TrainState) -> None:
        """To be called before each step."""
        if self._first is None and step in self._steps:
            jax.block_until_ready(state)  # what the devices still have to do is not part of it
            self._first = step
            jax.profiler.start_trace(self._folder, create_perfetto_trace=True)

    def after(self, step: int, state: TrainState) -> None:
        """To be called after each step."""
        if self._first is not None and step == self._steps[-1]:
            jax.block_until_ready(state)
            self._stop(f"steps {self._first} to {step}")

    def close(self) -> None:
        """Writes the trace of a run that ends before the last of the steps."""
        if self._first is not None:
            self._stop(f"steps from {self._first}")

    def _stop(self, title: str) -> None:
        self._first = None
        jax.profiler.stop_trace()
        trace = max(self._folder.glob("plugins/profile/*/perfetto_trace.json.gz"))  # folders are named by their time
        self._say(
            f"profile of {title}: {self._folder}\n"
            f"  pip install xprof tensorboard; tensorboard --logdir={self._folder}\n"
            f"  or open {trace} in https://ui.perfetto.dev"
        )
