"""Starts JAX for a run: its processes, and the switches that guard against silent errors."""

import os
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

from gpt_jax.errors import UserError
from gpt_jax.progress import say


def start() -> None:
    """Joins the processes of this run and sets JAX's switches; call it before the first array is made.

    Several processes are started by the environment: `JAX_COORDINATOR_ADDRESS` (host:port of process 0),
    `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`. Without them the run is one process. `JAX_NUM_CPU_DEVICES` and
    `JAX_PLATFORMS` are JAX's own.

    Raises:
      UserError: when only some of the three variables are set, or one is not a number.
    """
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    values = [os.environ.get(name) for name in names]
    if any(values) and not jax.distributed.is_initialized():
        missing = [name for name, value in zip(names, values, strict=True) if not value]
        if missing:
            raise UserError(
                f"several processes: {', '.join(missing)} not set. All of {', '.join(names)} are needed; "
                "unset them all to run as one process."
            )
        if not (values[1].isdigit() and values[2].isdigit() and int(values[2]) < int(values[1])):
            raise UserError(
                f"several processes: JAX_NUM_PROCESSES={values[1]}, JAX_PROCESS_ID={values[2]}: expected whole "
                "numbers, the id from 0 to one less than the number of processes."
            )
        if jax.config.jax_platforms == "cpu":
            jax.config.update("jax_cpu_collectives_implementation", "gloo")
        # JAX would catch SIGTERM from here on, and a run that is still preparing its data could not be ended by it.
        jax.config.update("jax_enable_preemption_service", False)
        jax.distributed.initialize(values[0], num_processes=int(values[1]), process_id=int(values[2]))
    # Random numbers that do not depend on how an array is divided: JAX's default, and ours to insist on.
    jax.config.update("jax_threefry_partitionable", True)


def is_main_process() -> bool:
    """Whether this process writes the files that are written once: process 0."""
    return jax.process_index() == 0


def announce(text: str) -> None:
    """Prints a line, once for all processes."""
    if is_main_process():
        say(text)


def from_main_process(value: bool) -> bool:
    """The first process's `value`, on every process."""
    if jax.process_count() == 1:
        return value
    return bool(multihost_utils.broadcast_one_to_all(np.int32(value)))


def on_every_process(value: bool) -> bool:
    """Whether `value` is true on every process, on every process."""
    if jax.process_count() == 1:
        return value
    return bool(np.min(multihost_utils.process_allgather(np.int32(value))))


def do_on_main_process(action: Callable[[], None]) -> None:
    """Does `action` on the first process; where it refuses, every process does.

    Raises:
      UserError: that of `action` on the first process; on the others one that points to it.
    """
    error = None
    if is_main_process():
        try:
            action()
        except UserError as refused:
            error = refused
    if not from_main_process(error is None):
        raise error or UserError("process 0 does not go on; its output says why.")
