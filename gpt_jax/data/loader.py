"""Windows to global batches: in which order, which rows this process reads, and ahead of the step that needs them.

The data's position is one integer, the step. Step s trains on `window_order[s*B : (s+1)*B]`, on any number of hosts:
a process reads the rows that its devices hold under the batch's sharding, which JAX says; process numbers do not enter.
"""

from collections.abc import Iterator

import grain
import jax
import numpy as np

from gpt_jax.data.windows import EvaluationWindows, Windows


def window_order(num_windows: int, seed: int) -> grain.MapDataset:
    """`order[g]` is the window of global example g: in every epoch another permutation, without end, in O(1)."""
    return grain.MapDataset.range(num_windows).seed(seed).shuffle().repeat()


def batch_indices(num_windows: int, seed: int, batch_size: int, step: int) -> list[int]:
    """The windows that step `step` trains on, in the order of the batch's rows."""
    order = window_order(num_windows, seed)
    return [order[example] for example in range(step * batch_size, (step + 1) * batch_size)]


def training_batches(
    windows: Windows,
    *,
    batch_size: int,
    seed: int,
    first_step: int,
    sharding: jax.sharding.NamedSharding,
    prefetch: int = 2,
) -> Iterator[dict[str, jax.Array]]:
    """The batches of step `first_step` and all that follow, `prefetch` of them read ahead by as many threads.

    Each is a dict of tokens int32, targets int32 and loss_mask float32, global arrays [B, T] laid out by `sharding`.
    """
    shape = (batch_size, windows.length)
    rows = local_rows(sharding, shape)
    indices = _RowsOfSteps(window_order(len(windows), seed), batch_size, rows)
    batches = indices[first_step:].map(windows.batch)
    return global_batches(batches, batch_size, rows, sharding, prefetch)


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


class _RowsOfSteps(grain.MapDataset[list[int]]):
    """Element s: the windows of the rows that this process holds of step s's batch."""

    def __init__(self, order: grain.MapDataset, batch_size: int, rows: list[int]):
        super().__init__(order)
        self._order = order
        self._batch_size = batch_size
        self._rows = rows

    def __len__(self) -> int:
        return len(self._order) // self._batch_size

    def __getitem__(self, step):
        if isinstance(step, slice):
            return self.slice(step)
        return [self._order[step * self._batch_size + row] for row in self._rows]


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
    position = {row: number for number, row in enumerate(rows)}

    def global_array(local: np.ndarray) -> jax.Array:
        def part(index: tuple[slice, ...]) -> np.ndarray:
            first, stop, _ = index[0].indices(batch_size)
            start = position[first]
            return local[start : start + stop - first, *index[1:]]  # a device's rows are neighbours, so here too

        return jax.make_array_from_callback((batch_size, *local.shape[1:]), sharding, part, dtype=local.dtype)

    arrays = batches.map(lambda batch: {name: global_array(local) for name, local in batch.items()})
    return iter(arrays.to_iter_dataset(grain.ReadOptions(num_threads=prefetch, prefetch_buffer_size=prefetch)))
