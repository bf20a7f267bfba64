"""The corpus as examples of a fixed length, each computed from its index alone."""

from collections.abc import Sequence

import numpy as np

from gpt_jax.data.token_store import TokenStore
from gpt_jax.errors import UserError

Batch = dict[str, np.ndarray]  # tokens int32, targets int32, loss_mask float32, all [rows, T]


class Windows:
    """Training windows: `windows[i]` is the T+1 tokens from i*T on, int32, so every prediction is made in one window.

    The last tokens, too few for a window, are left out. UserError: not even one window.
    """

    def __init__(self, store: TokenStore, length: int):
        self.length = length
        self._store = store
        if len(self) == 0:
            raise UserError(
                f"The training text is {len(store):,} tokens, fewer than one window of "
                f"data.sequence_length={length} and the token after it. Lower data.sequence_length to at "
                f"most {len(store) - 1}, or give more text."
            )

    def __len__(self) -> int:
        return (len(self._store) - 1) // self.length

    def __getitem__(self, i: int) -> np.ndarray:
        return self._read([i])[0]

    def batch(self, indices: Sequence[int]) -> Batch:
        """The windows `indices` as inputs and targets, every position counted."""
        windows = self._read(indices)
        return {
            "tokens": windows[:, :-1],
            "targets": windows[:, 1:],
            "loss_mask": np.ones((len(windows), self.length), np.float32),
        }

    def describe(self, indices: Sequence[int]) -> str:
        """The windows `indices`, for people."""
        return f"windows {list(indices)}"

    def _read(self, indices: Sequence[int]) -> np.ndarray:
        for i in indices:
            if not 0 <= i < len(self):
                raise IndexError(f"window {i} of {len(self)}")
        return self._store.read_many([i * self.length for i in indices], self.length + 1)


class EvaluationWindows:
    """Windows in which every token but the first is predicted exactly once: the last is filled up with `pad`.

    Items are dicts of tokens int32 [T], targets int32 [T], loss_mask float32 [T], the mask 0 where there is no token to
    predict. UserError: fewer than two tokens.
    """

    def __init__(self, store: TokenStore, length: int, pad: int):
        self.length = length
        self._store = store
        self._pad = pad
        if len(store) < 2:
            raise UserError(
                f"The held-out text is {len(store)} token: nothing to predict. Hold out more "
                "(data.validation_fraction) or name other text (data.validation_address)."
            )

    def __len__(self) -> int:
        return -(-(len(self._store) - 1) // self.length)

    def __getitem__(self, i: int) -> Batch:
        if not 0 <= i < len(self):
            raise IndexError(f"window {i} of {len(self)}")
        return {name: rows[0] for name, rows in self.batch([i]).items()}

    def batch(self, indices: Sequence[int]) -> Batch:
        """The windows `indices`; an index past the last gives a row of padding that counts nothing."""
        windows = np.full((len(indices), self.length + 1), self._pad, np.int32)
        loss_mask = np.zeros((len(indices), self.length), np.float32)
        for row, i in enumerate(indices):
            start, stop = (min(position, len(self._store)) for position in (i * self.length, (i + 1) * self.length + 1))
            windows[row, : stop - start] = self._store.read(start, stop)
            loss_mask[row, : max(0, stop - start - 1)] = 1
        return {"tokens": windows[:, :-1], "targets": windows[:, 1:], "loss_mask": loss_mask}
