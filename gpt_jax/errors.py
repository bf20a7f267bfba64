"""The exceptions that are messages to a person, not bugs; `gpt_jax.main` prints them without a traceback."""

import difflib
import signal
from collections.abc import Iterable


class UserError(Exception):
    """Something that the user can mend: a field, a file, a device count, a weight file.

    The message says what was wrong, where, what was expected and what to do; the exit code is 2. Every other exception
    is a bug and keeps its traceback.
    """


class Interrupted(Exception):
    """A run was asked to stop (SIGTERM, Ctrl-C) and has saved its state; the exit code is 128 + the signal's number."""

    def __init__(self, signal_number: int, step: int):
        """Stopped by `signal_number` after `step` steps."""
        super().__init__(f"stopped by {signal.Signals(signal_number).name} after step {step}; the state is saved")
        self.signal_number = signal_number


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """The words " Did you mean 'x'?" for the nearest of `names`; nothing where none is near."""
    near = difflib.get_close_matches(str(name), list(names), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""
