"""Windows of several sources as one: each source in permutations of its own, mixed by weight, known from the step."""

import bisect
from collections.abc import Mapping, Sequence

import grain
import numpy as np

from gpt_jax.data.batch_sizes import BatchSizes
from gpt_jax.data.loader import window_order
from gpt_jax.data.mixture import Mixture
from gpt_jax.data.proportions import Turns
from gpt_jax.data.windows import Batch, Windows
from gpt_jax.disk import digest


class MixedWindows:
    """The windows of all sources, numbered through, one source behind the other.

    Args:
      sources: {name: its windows}, all of one length.
    """

    def __init__(self, sources: Mapping[str, Windows]):
        self.names = list(sources)
        self.sizes = [len(windows) for windows in sources.values()]
        self._windows = list(sources.values())
        self.length = self._windows[0].length
        self.firsts = np.concatenate([[0], np.cumsum(self.sizes)]).tolist()

    def __len__(self) -> int:
        return self.firsts[-1]

    def locate(self, index: int) -> tuple[int, int]:
        """(number of the source, number of its window)."""
        source = bisect.bisect_right(self.firsts, index) - 1
        return source, index - self.firsts[source]

    def batch(self, indices: Sequence[int]) -> Batch:
        """The windows `indices` as inputs and targets, every position counted."""
        places = [self.locate(index) for index in indices]
        batch: Batch = {}
        for source in sorted({source for source, _ in places}):
            rows = [row for row, (own, _) in enumerate(places) if own == source]
            for name, values in self._windows[source].batch([places[row][1] for row in rows]).items():
                batch.setdefault(name, np.empty((len(indices), self.length), values.dtype))[rows] = values
        return batch

    def describe(self, indices: Sequence[int]) -> str:
        """The windows `indices` by the sources' own numbers, for people."""
        places = [self.locate(index) for index in indices]
        return ", ".join(
            f"{name} {[window for own, window in places if own == source]}"
            for source, name in enumerate(self.names)
            if any(own == source for own, _ in places)
        )


class MixedOrder(grain.MapDataset[int]):
    """`order[g]` is the window of global example g, as `MixedWindows` numbers them; without end, in O(1).

    Which source comes when, `proportions.Turns` says; the n-th example of a source is the n-th of its own permutations,
    one an epoch, which follow from the seed and its fingerprint: another source beside it does not change them.

    Args:
      windows: of all sources; fingerprints: {name: of its training text}; mixture: what is drawn from which step on.
      sizes: examples of each step.
    """

    def __init__(
        self,
        windows: MixedWindows,
        fingerprints: Mapping[str, str],
        mixture: Mixture,
        sizes: BatchSizes,
        seed: int,
    ):
        super().__init__()
        self._windows = windows
        self._orders = [
            window_order(size, int(digest(seed, fingerprints[name])[:8], 16))
            for name, size in zip(windows.names, windows.sizes, strict=True)
        ]
        self._turns = Turns(
            [
                (sizes.examples(phase.step), [phase.weights.get(name, 0.0) for name in windows.names])
                for phase in mixture.phases
            ]
        )

    def __len__(self) -> int:
        return len(self._orders[0])

    def __getitem__(self, example):
        if isinstance(example, slice):
            return self.slice(example)
        source = self._turns.source(example)
        number = int(self._turns.counts(example)[source])
        return self._windows.firsts[source] + self._orders[source][number]

    def epochs(self, examples: int) -> dict[str, float]:
        """How often each source has been read when the first `examples` are drawn."""
        counts = self._turns.counts(examples)
        return {
            name: float(count) / size
            for name, count, size in zip(self._windows.names, counts, self._windows.sizes, strict=True)
        }
