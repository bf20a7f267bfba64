"""How likely the model that DPO begins with finds every answer: computed once, kept in the workdir."""

import functools
import io
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from gpt_jax import configuration
from gpt_jax.disk import write_atomically
from gpt_jax.errors import UserError
from gpt_jax.parallel.runtime import do_on_main_process, from_main_process, is_main_process
from gpt_jax.progress import batch_progress
from gpt_jax.runs.aligning.answer_scores import LogLikelihoods
from gpt_jax.runs.aligning.comparisons import Split
from gpt_jax.training.checkpoints import digests

FOLDER = "reference_log_probs"
BLOCK = 64  # batches that are kept together: what a kill costs


def reference_log_probs(
    params: Any | None, log_likelihoods: LogLikelihoods, splits: dict[str, Split], workdir: Path, batch_size: int
) -> dict[str, np.ndarray]:
    """Of each split the log-probability of every answer, float32 [G, K] in nats, 0 where there is none.

    Found in `workdir` as far as an earlier start got; the rest is computed, a block at a time, each kept when it is
    done.

    Args:
      params: the reference model's; None where the run is past its first checkpoint, and everything is known.
      batch_size: answers at once.

    Raises:
      UserError: the weights are not those that the run began with; or a file in the workdir is missing or damaged.
    """
    folder = workdir / FOLDER
    if params is not None:
        facts = {"weights": digests({"params": params})}
        do_on_main_process(lambda: _keep_facts(folder, facts))
    found = {}
    for name, split in splits.items():
        sequences = [ids for own in split.encoded.sequences for ids in own]
        starts = split.encoded.starts[split.encoded.mask]
        blocks = [slice(first, first + BLOCK * batch_size) for first in range(0, len(sequences), BLOCK * batch_size)]
        values = []
        for block in batch_progress(blocks, len(blocks), enabled=is_main_process()):
            path = folder / f"{name}-{block.start:08d}.npy"
            if from_main_process(path.is_file()):
                values.append(_read(path, len(sequences[block])))
                continue
            if params is None:
                raise UserError(f"{path} is missing, and the reference model is gone. Restore it, or begin anew.")
            values.append(log_likelihoods(params, sequences[block], starts[block]))
            do_on_main_process(functools.partial(_write, path, values[-1]))
        found[name] = split.encoded.by_prompt(np.concatenate(values))
    return found


def _keep_facts(folder: Path, facts: dict[str, Any]) -> None:
    configuration.check_same(folder, "facts.json", facts, what="reference model (its weights have changed)")
    configuration.write_json(folder / "facts.json", facts)


def _read(path: Path, count: int) -> np.ndarray:
    """The block at `path`, which the first process alone may have."""
    values = np.zeros(count, np.float32)
    if is_main_process():
        try:
            values[:] = np.load(path)
        except (OSError, ValueError) as error:
            raise UserError(f"{path} is damaged ({error}). Restore it, or begin anew in another --workdir.") from None
    return values if jax.process_count() == 1 else multihost_utils.broadcast_one_to_all(values)


def _write(path: Path, values: np.ndarray) -> None:
    file = io.BytesIO()
    np.save(file, values)
    write_atomically(path, file.getvalue())
