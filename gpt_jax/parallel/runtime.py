"""Starts JAX for a run: its processes, and the switches that guard against silent errors.

Several processes find each other from the environment (cluster.py), meet and agree (roll_call.py, agreement.py), are
joined by JAX, and are watched from then on (watch.py): none waits for ever for one that is gone.
"""

import atexit
import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from gpt_jax.errors import UserError
from gpt_jax.parallel import agreement, cluster, roll_call
from gpt_jax.parallel.watch import Watch
from gpt_jax.progress import say

TIME_LIMIT = "GPT_JAX_JOIN_SECONDS"
_watch: Watch | None = None
_kept: list[subprocess.Popen] = []  # a relay ends when the pipe to it is closed


def start(config: Mapping[str, Any] | None = None) -> None:
    """Joins the processes of this run and sets JAX's switches; call it before the first array is made.

    Several processes are found by the first of these that the environment has: `JAX_COORDINATOR_ADDRESS` (host:port of
    process 0), `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`; a Slurm step of several tasks; a TPU pod on GKE; a TPU VM;
    an indexed Kubernetes job. `JAX_COORDINATOR_PORT` overrides a port that is not given; `GPT_JAX_JOIN_SECONDS` (300)
    is how long processes wait for each other. Without any of these the run is one process. `JAX_NUM_CPU_DEVICES` and
    `JAX_PLATFORMS` are JAX's own.

    Args:
      config: what the run was asked to do, nested; all processes must have been asked the same.

    Raises:
      UserError: when the environment contradicts itself, processes do not come, or they do not agree.
    """
    # Random numbers that do not depend on how an array is divided: JAX's default, and ours to insist on.
    jax.config.update("jax_threefry_partitionable", True)
    if jax.distributed.is_initialized():
        return
    time_limit = _time_limit()
    place = cluster.recognise(time_limit=time_limit)
    if place is not None:
        _join(place, agreement.facts(config), time_limit)


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Tells the other processes of an error that ends this one, and lets one of theirs explain it."""
    try:
        yield
    except BaseException as error:
        if _watch is not None:
            _watch.stopped_by(error)
        raise
    if _watch is not None:
        _watch.goes_on()


def _join(place: cluster.Place, facts: dict[str, str], time_limit: int) -> None:
    """Meets the other processes, has JAX join them, and watches over them until the end of this process."""
    global _watch
    hosts, connections = roll_call.join(place, facts, time_limit)
    if place.process == 0:
        say(f"{place.environment}: {place.processes} processes, coordinator {place.coordinator}")
    if jax.config.jax_platforms == "cpu":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # JAX would catch SIGTERM from here on, and a run that is still preparing its data could not be ended by it.
    jax.config.update("jax_enable_preemption_service", False)
    _watch = Watch(place.process, hosts, connections)
    atexit.register(_leave)
    jax.distributed.initialize(
        place.coordinator if place.process == 0 else _relay(place.coordinator),
        num_processes=place.processes,
        process_id=place.process,
        local_device_ids=place.local_devices,
        cluster_detection_method="deactivate",  # it would give every process of Slurm one GPU
        initialization_timeout=time_limit,
        heartbeat_timeout_seconds=24 * 60 * 60,  # it ends a process with a stack trace; ours are the sockets of _watch
    )


def _leave() -> None:
    """At the end of the process, while the relay is still there: all wait for all, then JAX lets go of them."""
    _watch.leave()
    jax.distributed.shutdown()


def _relay(coordinator: str) -> str:
    """The loopback address of a program that carries JAX's connection to `coordinator` (relay.py says why)."""
    host, _, port = coordinator.rpartition(":")
    command = [sys.executable, "-I", "-S", str(Path(__file__).with_name("relay.py")), host.strip("[]"), port]
    # In a session of its own: Ctrl-C on a terminal is not meant for it.
    relay = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
    _kept.append(relay)
    return f"127.0.0.1:{int(relay.stdout.readline())}"


def _time_limit() -> int:
    text = os.environ.get(TIME_LIMIT, "300")
    if not (text.isdecimal() and int(text)):
        raise UserError(f"{TIME_LIMIT}={text}: expected whole seconds.")
    return int(text)


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
