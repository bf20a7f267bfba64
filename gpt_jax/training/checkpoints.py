"""Checkpoints: Orbax saves them, a digest of every array proves them."""

import errno
import functools
import shutil
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from absl import logging as absl_logging
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec
from orbax.checkpoint import checkpoint_managers

from gpt_jax.errors import UserError
from gpt_jax.parallel.rules import path_string
from gpt_jax.parallel.runtime import is_main_process, on_every_process
from gpt_jax.progress import say
from gpt_jax.training.state import TrainState


class Checkpoints:
    """The checkpoints of one run: written in the background, the last `keep` and the best one kept.

    A checkpoint appears under its step only when it is whole (Orbax writes beside it and renames). With it stands a
    digest of every array's bits, so that one which was damaged later is noticed when it is read, on any mesh.
    """

    def __init__(self, folder: Path, *, keep: int):
        """Opens `folder`, creating it where it is absent; what a killed process left half-written is removed."""
        # Orbax logs a failed write with a traceback from every thread that meets it, and raises it all the same; it is
        # the exception that we explain.
        absl_logging.set_verbosity(absl_logging.FATAL)
        self.folder = folder.absolute()
        policies = checkpoint_managers.preservation_policy
        # Two policies, either of which keeps: `best_fn` with `max_to_keep` would delete the newest for the best.
        preserve = policies.AnyPreservationPolicy(
            [
                policies.LatestN(n=keep),
                policies.BestN(
                    get_metric_fn=lambda metrics: next(iter(metrics.values())),  # there is one, whatever its name
                    reverse=True,
                    n=1,
                    keep_checkpoints_without_metrics=False,
                ),
            ]
        )
        options = ocp.CheckpointManagerOptions(preservation_policy=preserve, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(self.folder, options=options)
        self._last_saved = self.latest_step()
        self._failed = False

    def latest_step(self) -> int | None:
        """The step of the newest whole checkpoint; None without one."""
        return self._manager.latest_step()

    def save(self, state: TrainState, *, objective: float | None = None) -> None:
        """Saves `state` under its step; returns once the arrays are copied, the writing goes on in the background.

        Args:
          objective: of this very state, where it was measured; the checkpoint with the lowest is kept.

        Raises:
          UserError: when the disk was full, for this checkpoint or the one before.
        """
        step = int(state.step)
        if step == self._last_saved:
            return
        self.wait()
        self._check_space(state)
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(_as_dict(state)), digests=ocp.args.JsonSave(digests(state))
                ),
                metrics=None if objective is None else {"objective": objective},
                force=True,
            )
        except Exception as error:
            self._explain(error)
        self._last_saved = step

    def wait(self) -> None:
        """Returns when everything is on the disk.

        Raises:
          UserError: when the disk was full.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            self._explain(error)

    def restore(self, abstract: TrainState) -> TrainState | None:
        """The newest sound checkpoint in the shardings of `abstract`; None where there is no checkpoint at all.

        A damaged checkpoint is named and passed over for the one before it.

        Raises:
          UserError: when there are checkpoints and every one is damaged.
        """
        damaged = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            state = self._restore_sound(step, abstract)
            if on_every_process(state is not None):
                self._set_aside(damaged)
                return state
            damaged.append(step)
        if damaged:
            raise UserError(
                f"checkpoints: every one in {self.folder} is damaged ({', '.join(map(str, damaged))}; see above). "
                "Restore the folder from a copy, or delete it to start the run anew."
            )
        return None

    def _restore_sound(self, step: int, abstract: TrainState) -> TrainState | None:
        """The checkpoint of `step`, or None and a warning where it is damaged."""
        try:
            return self._restore_step(step, abstract)
        except (MemoryError, PermissionError, ConnectionError, TimeoutError):
            raise  # of the machine, not of the checkpoint
        except Exception as error:  # whatever Orbax, TensorStore or a JSON parser says of damaged files
            if "RESOURCE_EXHAUSTED" in str(error):
                raise
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
            say(f"warning: checkpoint {self.folder / str(step)} is damaged: {reason}")
            return None

    def _set_aside(self, steps: list[int]) -> None:
        """Moves damaged checkpoints out of the way of those that will be saved under the same steps."""
        if not steps:
            return
        aside = self.folder.parent / "damaged_checkpoints"
        if is_main_process():
            aside.mkdir(exist_ok=True)
            for step in steps:
                (self.folder / str(step)).rename(aside / f"{step}-{time.time_ns()}")
            say(f"warning: moved to {aside}: {', '.join(map(str, steps))}")
        multihost_utils.sync_global_devices("damaged checkpoints set aside")
        self._manager.reload()
        self._last_saved = self.latest_step()

    def close(self) -> None:
        """Waits for what is being written and lets go of the folder."""
        try:
            self._manager.close()
        except Exception as error:
            if not self._failed:
                self._explain(error)

    def _restore_step(self, step: int, abstract: TrainState) -> TrainState:
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(state=ocp.args.StandardRestore(_as_dict(abstract)), digests=ocp.args.JsonRestore()),
        )
        state = TrainState(**restored["state"])
        recorded, found = restored["digests"], digests(state)
        wrong = [name for name in found if found[name] != recorded.get(name)]
        if wrong:
            raise ValueError(f"the bits of {', '.join(wrong[:3])}{' ...' if wrong[3:] else ''} are not those saved")
        return state

    def _check_space(self, state: TrainState) -> None:
        """Looks before it writes: most full disks are met here, before anything is half-written."""
        try:
            free = shutil.disk_usage(self.folder).free
        except OSError:  # no local folder
            return
        needed = sum(x.nbytes for x in jax.tree.leaves(state))
        if free < needed:
            self._explain(OSError(errno.ENOSPC, f"a checkpoint takes {needed:,} bytes, {free:,} are free"))

    def _explain(self, error: Exception) -> None:
        self._failed = True
        text = str(error)
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or "No space left" in text or "Disk quota" in text:
            good = self.latest_step()
            detail = f" ({error.strerror})" if isinstance(error, OSError) else ""
            raise UserError(
                f"checkpoints: no space left on the disk of {self.folder}{detail}. The last good checkpoint is "
                f"{'none' if good is None else good}; free some space and start again to go on from it."
            ) from error
        raise error


def restore_parameters(
    folder: Path, abstract: dict, *, step: int | None = None, place: tuple[str, ...] = ("params",)
) -> dict:
    """The parameters alone of a checkpoint in `folder` (by default the newest), in the shardings of `abstract`.

    Args:
      place: where in the state they stand; `("aux", "average")`: the average of the weights.

    Raises:
      UserError: when there is none, it is damaged, or its parameters are not those of `abstract`.
    """
    absl_logging.set_verbosity(absl_logging.FATAL)  # it warns of being read-only, as it was asked to be
    folder = folder.absolute()
    manager = ocp.CheckpointManager(folder, options=ocp.CheckpointManagerOptions(read_only=True))
    steps = manager.all_steps() if folder.exists() else []
    step = max(steps, default=None) if step is None else step
    if step not in steps:
        raise UserError(f"{folder}: no checkpoint{'' if step is None else f' of step {step}'}. Steps: {sorted(steps)}.")
    item = abstract
    for name in reversed(place):
        item = {name: item}
    arguments = ocp.args.PyTreeRestore(
        item, ocp.checkpoint_utils.construct_restore_args(item), partial_restore=True
    )  # fmt: skip
    try:
        restored = manager.restore(
            step, args=ocp.args.Composite(state=arguments, digests=ocp.args.JsonRestore())
        )  # fmt: skip
    except (MemoryError, PermissionError, ConnectionError, TimeoutError):
        raise  # of the machine, not of the checkpoint
    except Exception as error:  # whatever Orbax, TensorStore or a JSON parser says of damaged files
        if "RESOURCE_EXHAUSTED" in str(error):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise UserError(
            f"{folder / str(step)} is damaged or of another model: {reason}. Steps: {sorted(steps)}; name one as "
            f"{folder}/STEP."
        ) from error
    finally:
        manager.close()
    params, recorded = restored["state"], restored["digests"]
    wrong = [name for name, found in digests(params).items() if found != recorded.get(name)]
    if wrong:
        raise UserError(
            f"{folder / str(step)} is damaged: the bits of {', '.join(wrong[:3])} are not those saved. Take another "
            f"step: {sorted(steps)}."
        )
    for name in place:
        params = params[name]
    return params


def _as_dict(state: TrainState) -> dict[str, Any]:
    return {"step": state.step, "params": state.params, "opt_state": state.opt_state, "aux": state.aux}


def digests(tree) -> dict[str, int]:
    """A 32-bit digest of every array's bits, by path; the same however the array is divided over devices.

    The sum of (bits · (2·index + 1)) modulo 2³²: integer sums do not depend on their order, and a change of any one
    element always changes the sum.
    """
    tree = _as_dict(tree) if isinstance(tree, TrainState) else tree
    mesh = next((x.sharding.mesh for x in jax.tree.leaves(tree) if isinstance(x.sharding, NamedSharding)), None)
    sums = jax.device_get(_digest_program(mesh)(tree))
    return {path_string(path): int(value) for path, value in jax.tree_util.tree_leaves_with_path(sums)}


@functools.cache
def _digest_program(mesh: jax.sharding.Mesh | None):
    """The jitted digest of a tree; one for a mesh, since making it anew would compile it at every checkpoint."""
    replicated = None if mesh is None else NamedSharding(mesh, PartitionSpec())
    return jax.jit(lambda tree: jax.tree.map(_digest, tree), out_shardings=replicated)


def _digest(x: jax.Array) -> jax.Array:
    width = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
    bits = jax.lax.bitcast_convert_type(x, width).astype(jnp.uint32)  # 8-byte types become pairs of words
    index, stride = jnp.zeros((), jnp.uint32), 1
    for axis in reversed(range(bits.ndim)):
        index = index + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= bits.shape[axis]
    return jnp.sum(bits * (2 * index + 1), dtype=jnp.uint32)
