"""Windows to global batches: in which order, which rows this process reads, and ahead of the step that needs them.

The data's position is one integer, the step. Step s trains on `order[e : e + size]`, e the examples of all steps before
it, on any number of hosts: a process reads the rows that its devices hold under the batch's sharding, which JAX says;
process numbers do not enter.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import grain
import jax
import numpy as np

from gpt_jax.data.batch_sizes import BatchSizes
from gpt_jax.data.windows import Batch, EvaluationWindows


class TrainingWindows(Protocol):
    """Examples by number: of one source (windows.py) or of several (mixed_windows.py)."""

    length: int

    def __len__(self) -> int:
        """How many there are."""

    def batch(self, indices: Sequence[int]) -> Batch:
        """Those with these numbers, as inputs and targets."""

    def describe(self, indices: Sequence[int]) -> str:
        """The same in words, for messages."""


def window_order(num_windows: int, seed: int) -> grain.MapDataset:
    """`order[g]` is the window of global example g: in every epoch another permutation, without end, in O(1)."""
    return grain.MapDataset.range(num_windows).seed(seed).shuffle().repeat()


def batch_indices(order: grain.MapDataset, sizes: BatchSizes, step: int) -> list[int]:
    """The windows that step `step` trains on, in the order of the batch's rows."""
    return [order[example] for example in range(sizes.examples(step), sizes.examples(step + 1))]


def training_batches(
    windows: TrainingWindows,
    order: grain.MapDataset,
    *,
    sizes: BatchSizes,
    first_step: int,
    sharding: jax.sharding.NamedSharding,
    prefetch: int = 2,
) -> Iterator[dict[str, jax.Array]]:
    """The batches of step `first_step` and all that follow, `prefetch` of them read ahead by as many threads.

    Each is a dict of tokens int32, targets int32 and loss_mask float32, global arrays [B, T] laid out by `sharding`,
    with the B of its step.
    """
    rows = {size: local_rows(sharding, (size, windows.length)) for size in sizes.sizes}
    indices = _RowsOfSteps(order, sizes, rows)

    def batch(step_and_indices: tuple[int, list[int]]) -> dict[str, jax.Array]:
        step, indices = step_and_indices
        size = sizes.size(step)
        return _global_arrays(windows.batch(indices), size, rows[size], sharding)

    return _read_ahead(indices[first_step:].map(batch), prefetch)


def evaluation_batches(
    windows: EvaluationWindows,
    *,
    batch_size: int,
    sharding: jax.sharding.NamedSharding,
    prefetch: int = 2,
) -> Iterator[dict[str, jax.Array]]:
    """All windows once, in order; rows missing from the last batch count nothing. As many batches on every host."""
    shape = (batch_size, windows.length)
    rows = local_rows(sharding, shape)
    steps = grain.MapDataset.range(-(-len(windows) // batch_size))
    batches = steps.map(lambda step: windows.batch([step * batch_size + row for row in rows]))
    return global_batches(batches, batch_size, rows, sharding, prefetch)


class _RowsOfSteps(grain.MapDataset[tuple[int, list[int]]]):
    """Element s: s, and the windows of the rows that this process holds of step s's batch; `rows` by its size."""

    def __init__(self, order: grain.MapDataset, sizes: BatchSizes, rows: dict[int, list[int]]):
        super().__init__(order)
        self._order = order
        self._sizes = sizes
        self._rows = rows

    def __len__(self) -> int:
        return len(self._order) // self._sizes.full

    def __getitem__(self, step):
        if isinstance(step, slice):
            return self.slice(step)
        first = self._sizes.examples(step)
        return step, [self._order[first + row] for row in self._rows[self._sizes.size(step)]]


def local_rows(sharding: jax.sharding.Sharding, shape: tuple[int, ...]) -> list[int]:
    """The rows of which this process's devices hold at least a part, ascending."""
    held = {
        row
        for rows, *_ in sharding.addressable_devices_indices_map(shape).values()
        for row in range(*rows.indices(shape[0]))
    }
    return sorted(held)


def global_batches(
    batches: grain.MapDataset,
    batch_size: int,
    rows: list[int],
    sharding: jax.sharding.Sharding,
    prefetch: int,
) -> Iterator[dict[str, jax.Array]]:
    """`batches` of the `rows` that this process holds, as global arrays [batch_size, ...], `prefetch` read ahead."""
    return _read_ahead(batches.map(lambda batch: _global_arrays(batch, batch_size, rows, sharding)), prefetch)


def _read_ahead(batches: grain.MapDataset, prefetch: int) -> Iterator[Any]:
    return iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=prefetch, prefetch_buffer_size=prefetch)))


def _global_arrays(
    batch: dict[str, np.ndarray], batch_size: int, rows: list[int], sharding: jax.sharding.Sharding
) -> dict[str, jax.Array]:
    """The global arrays [batch_size, ...] of which `batch` holds the `rows`."""
    position = {row: number for number, row in enumerate(rows)}

    def global_array(local: np.ndarray) -> jax.Array:
        def part(index: tuple[slice, ...]) -> np.ndarray:
            first, stop, _ = index[0].indices(batch_size)
            start = position[first]
            return local[start : start + stop - first, *index[1:]]  # a device's rows are neighbours, so here too

        return jax.make_array_from_callback((batch_size, *local.shape[1:]), sharding, part, dtype=local.dtype)

    return {name: global_array(local) for name, local in batch.items()}
