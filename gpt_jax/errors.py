"""The exceptions that are messages to a person, not bugs; `gpt_jax.main` prints them without a traceback."""

import signal


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
