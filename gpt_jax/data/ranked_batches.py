"""Prompts with their ranked answers to batches: all answers of a prompt in one row, so that each is read once."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from gpt_jax.data.example_batches import ExampleSet


@dataclass(frozen=True)
class RankedSet(ExampleSet):
    """One prompt an example; its sequences are the prompt with each of its answers, S at most.

    starts: int [n, S], where in a sequence the answer begins.
    columns: what else is known of each answer, float32 [n, S] by name: `ranks`, log-probabilities.

    Of both, what stands where a prompt has no answer does not matter.
    """

    starts: np.ndarray = field(kw_only=True)
    columns: Mapping[str, np.ndarray] = field(kw_only=True)

    @functools.cached_property
    def counts(self) -> np.ndarray:
        """int [n]: the answers of each prompt."""
        return np.array([len(own) for own in self.sequences])

    @property
    def mask(self) -> np.ndarray:
        """Bool [n, S]: whether there is such an answer."""
        return np.arange(self.choices) < self.counts[:, None]

    def by_prompt(self, values: np.ndarray) -> np.ndarray:
        """[n, S] of one value for each answer, those of the first prompt first; 0 where there is no answer."""
        found = np.zeros(self.mask.shape, values.dtype)
        found[self.mask] = values
        return found

    @property
    def sizes(self) -> np.ndarray:
        """int [n]: prompts with as many answers share a batch, and among them those of about the same length."""
        return self.counts * (self.context_length + 1) + self.lengths

    def bucket(self, indices: np.ndarray) -> tuple[int, int]:
        """(T, S): the bucket length of a batch of the prompts `indices`, and the most answers that one of them has."""
        return super().bucket(indices), int(self.counts[indices].max())

    def positions(self, indices: np.ndarray) -> int:
        """How many there are in a batch of the prompts `indices`."""
        length, answers = self.bucket(indices)
        return length * answers * len(indices)

    def batch(self, indices: np.ndarray, weights: np.ndarray, length: tuple[int, int]) -> dict[str, np.ndarray]:
        """The prompts `indices` [R] as arrays; `length` is (T, S).

        Returns:
          What `ExampleSet` does, but for loss_mask float32 [R, S, T], 1 where the next token is one of the answer (or
          its end); and the `columns`, float32 [R, S].
        """
        length, answers = length
        batch = super().batch(indices, weights, length)
        places = np.arange(1, length + 1)
        batch["loss_mask"] *= places >= self.starts[indices][..., None]
        batch |= {name: column[indices] for name, column in self.columns.items()}
        by_answer = ("tokens", "targets", "loss_mask", "sequence_mask", "extract_positions", *self.columns)
        return batch | {name: batch[name][:, :answers] for name in by_answer}
