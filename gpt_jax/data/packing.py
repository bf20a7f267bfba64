"""Short texts that share the rows of a batch, each whole and in one row; what a row holds follows from its index.

Beside its tokens a row says which text each belongs to, so that the model keeps them apart (`decoder.hidden_states`).
"""

import bisect
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Batch = dict[str, np.ndarray]


class MarkedText(NamedTuple):
    """A text of at least two tokens: `ids` int32 [n], and which of them count when they are predicted, bool [n]."""

    ids: np.ndarray
    counted: np.ndarray

    @property
    def positions(self) -> int:
        """How much of a row it takes: its tokens but the last, which is a target only."""
        return len(self.ids) - 1


class PackedTexts:
    """`texts` in rows of `length` positions, as `TrainingWindows` and as `EvaluationWindows`.

    Args:
      texts: none with more positions than `length`; pad: the id that fills up.
      packed: False gives every text a row of its own, and batches without `segments`.
    """

    def __init__(self, texts: Sequence[MarkedText], length: int, pad: int, *, packed: bool = True):
        self.length = length
        self._texts, self._pad, self._packed = texts, pad, packed
        sizes = [text.positions for text in texts]
        self.rows = pack(sizes, length) if packed else [[number] for number in range(len(sizes))]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def filled(self) -> float:
        """The share of all positions that hold text."""
        return sum(text.positions for text in self._texts) / max(len(self) * self.length, 1)

    def describe(self, indices: Sequence[int]) -> str:
        """The rows `indices` in words, for messages."""
        return f"rows {list(indices)}"

    def batch(self, indices: Sequence[int]) -> Batch:
        """The rows `indices`; an index past the last gives a row of padding that counts nothing.

        Returns:
          tokens, targets int32 [R, T]; loss_mask float32 [R, T], 1 where the target counts; if packed, segments int32
          [R, T], the number of the text in its row from 1 on, 0 behind the last.
        """
        shape = (len(indices), self.length)
        batch = {name: np.full(shape, self._pad, np.int32) for name in ("tokens", "targets")}
        batch["loss_mask"] = np.zeros(shape, np.float32)
        segments = np.zeros(shape, np.int32)
        for row, index in enumerate(indices):
            start = 0
            for segment, number in enumerate(self.rows[index] if index < len(self) else (), 1):
                text = self._texts[number]
                place = slice(start, start + text.positions)
                batch["tokens"][row, place], batch["targets"][row, place] = text.ids[:-1], text.ids[1:]
                batch["loss_mask"][row, place] = text.counted[1:]
                segments[row, place] = segment
                start = place.stop
        return batch | {"segments": segments} if self._packed else batch


def pack(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """Which items share a bin of `capacity`: the largest first, each into the fullest bin that has room for it.

    Best-fit decreasing, at most 11/9 of the fewest bins there can be, plus 4 (Johnson 1974). O(n log n), the same for
    the same sizes.
    """
    bins: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (room left, bin), ascending
    for item in sorted(range(len(sizes)), key=lambda item: (-sizes[item], item)):
        place = bisect.bisect_left(rooms, (sizes[item], -1))
        if place == len(rooms):
            room, chosen = capacity, len(bins)
            bins.append([])
        else:
            room, chosen = rooms.pop(place)
        bins[chosen].append(item)
        bisect.insort(rooms, (room - sizes[item], chosen))
    return bins
