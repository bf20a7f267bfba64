"""Encoded examples to batches: which examples a step trains on, padded to what, laid out over which devices.

Examples of about the same length share a batch, and a batch is as long as the nearest of a few bucket lengths, so that
short texts do not pay for the whole context and few shapes are compiled. As in `gpt_jax.data.loader`, the data's
position is one integer, the step: any step's batch follows from the seed alone.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import grain
import jax
import numpy as np

from gpt_jax.data.loader import global_batches, local_rows

SORTED_TOGETHER = 50  # batches: the more, the less padding; the fewer, the more chance in who shares a batch


@dataclass(frozen=True)
class ExampleSet:
    """Examples as token sequences.

    sequences: of each example, int32 [length] arrays: the texts' own, both orders, or one for each answer.
    targets: [n], int32 label numbers or float32 scores; None where they are to be predicted.
    pad: the id that fills up.
    context_length: the longest sequence that the model takes.
    """

    sequences: Sequence[Sequence[np.ndarray]]
    targets: np.ndarray | None
    pad: int
    context_length: int

    def __len__(self) -> int:
        return len(self.sequences)

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """int [n]: of each example's longest sequence."""
        return np.array([max(map(len, own)) for own in self.sequences])

    @property
    def sizes(self) -> np.ndarray:
        """int [n]: examples of about the same one share a batch."""
        return self.lengths

    @functools.cached_property
    def choices(self) -> int:
        """S: the sequences of the example that has the most."""
        return max(map(len, self.sequences))

    def bucket(self, indices: np.ndarray) -> int:
        """T: the bucket length of a batch of the examples `indices`."""
        longest = self.lengths[indices].max()
        return next(length for length in bucket_lengths(self.context_length) if length >= longest)

    def positions(self, indices: np.ndarray) -> int:
        """How many there are in a batch of the examples `indices`."""
        return self.bucket(indices) * self.choices * len(indices)

    def batch(self, indices: np.ndarray, weights: np.ndarray, length: int) -> dict[str, np.ndarray]:
        """The examples `indices` [R] as arrays; `length` is T.

        Returns:
          tokens int32 [R, S, T]; targets int32 [R, S, T], the token after each; loss_mask float32 [R, S, T], 1 where
          there is one (so every real token but the first is a target once, and no pad ever); sequence_mask float32
          [R, S], 1 for sequences that exist; extract_positions int32 [R, S], each sequence's last token; labels int32
          [R] or scores float32 [R] (left out where unknown); weights float32 [R]; index int32 [R].
        """
        shape = (len(indices), self.choices, length)
        tokens = np.full(shape, self.pad, np.int32)
        lengths = np.zeros(shape[:2], np.int32)
        for row, example in enumerate(indices):
            for choice, sequence in enumerate(self.sequences[example]):
                tokens[row, choice, : len(sequence)] = sequence
                lengths[row, choice] = len(sequence)
        targets = np.full(shape, self.pad, np.int32)
        targets[..., :-1] = tokens[..., 1:]
        batch = {
            "tokens": tokens,
            "targets": targets,
            "loss_mask": (np.arange(1, length + 1) < lengths[..., None]).astype(np.float32),
            "sequence_mask": (lengths > 0).astype(np.float32),
            "extract_positions": np.maximum(lengths - 1, 0),
            "weights": np.asarray(weights, np.float32),
            "index": np.asarray(indices, np.int32),
        }
        if self.targets is not None:
            own = np.asarray(self.targets)[indices]
            if np.issubdtype(own.dtype, np.floating):
                batch["scores"] = own.astype(np.float32)
            else:
                batch["labels"] = own.astype(np.int32)
        return batch


@dataclass(frozen=True)
class Padding:
    """What padding costs.

    share: of the positions of all batches, those that hold padding.
    of_context: all positions, relative to as many sequences padded to the whole context.
    """

    share: float
    of_context: float


def bucket_lengths(context_length: int) -> list[int]:
    """16, 24, 32, 48, 64, 96, ... below `context_length`, and that itself."""
    ladder = (size * 2**doubling for doubling in range(64) for size in (16, 24))
    lengths = []
    for length in ladder:
        if length >= context_length:
            break
        lengths.append(length)
    return [*lengths, context_length]


class TrainingPlan:
    """Which examples each step trains on.

    Every epoch is another permutation of the examples, cut into stretches of `SORTED_TOGETHER` batches; each stretch is
    sorted by length and cut into batches, and the batches of the epoch are shuffled. The examples at the end of the
    permutation, too few for a batch, are left out of that epoch, as in OpenAI's code. Of fewer examples than one batch
    holds, some come more than once in it.
    """

    def __init__(self, examples: ExampleSet, batch_size: int, seed: int):
        self.examples = examples
        self.batch_size = batch_size
        self.steps_per_epoch = max(len(examples) // batch_size, 1)
        self._seed = seed
        self._epoch = functools.lru_cache(maxsize=2)(self._plan_epoch)  # two: reading ahead crosses an epoch's end

    def indices(self, step: int) -> np.ndarray:
        """int [batch_size]: the examples of step `step`."""
        epoch, place = divmod(step, self.steps_per_epoch)
        return self._epoch(epoch)[place]

    def padding(self, epoch: int = 0) -> Padding:
        """What padding costs in one epoch."""
        return _padding(self.examples, self._epoch(epoch))

    def _plan_epoch(self, epoch: int) -> np.ndarray:
        """int [steps_per_epoch, batch_size]."""
        # The raw bits of a generator are the same in every version of NumPy; its permutations need not be.
        bits = np.random.PCG64(np.random.SeedSequence([self._seed, epoch]))

        def shuffled(count: int) -> np.ndarray:
            return np.argsort(bits.random_raw(count), kind="stable")

        used = self.steps_per_epoch * self.batch_size
        order = np.resize(shuffled(len(self.examples)), used)
        stretch = SORTED_TOGETHER * self.batch_size
        for start in range(0, used, stretch):
            part = order[start : start + stretch]
            order[start : start + stretch] = part[np.argsort(self.examples.sizes[part], kind="stable")]
        return order.reshape(self.steps_per_epoch, self.batch_size)[shuffled(self.steps_per_epoch)]


def training_batches(
    plan: TrainingPlan,
    *,
    first_step: int,
    steps: int,
    sharding: jax.sharding.NamedSharding,
    prefetch: int = 2,
) -> Iterator[dict[str, jax.Array]]:
    """The batches of the steps `first_step` to `steps` - 1, `prefetch` of them read ahead by as many threads.

    Each is a dict of global arrays as `ExampleSet.batch` names them, [B, ...], laid out by `sharding` along B.
    """
    weights = np.ones(plan.batch_size)

    def rows_of_step(step: int) -> tuple[np.ndarray, np.ndarray]:
        return plan.indices(step), weights

    return _batches(plan.examples, rows_of_step, range(first_step, steps), plan.batch_size, sharding, prefetch)


def evaluation_batches(
    examples: ExampleSet,
    *,
    batch_size: int,
    sharding: jax.sharding.NamedSharding,
    prefetch: int = 2,
) -> Iterator[dict[str, jax.Array]]:
    """Every example once, the longest first, so that what does not fit fails at once.

    `index` says which examples a batch holds. The last batch is filled up with one of its own, whose `weights` are 0.
    """
    rows = evaluation_rows(examples, batch_size)
    return _batches(examples, lambda step: rows[step], range(len(rows)), batch_size, sharding, prefetch)


def evaluation_rows(examples: ExampleSet, batch_size: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(indices, weights) of each batch of an evaluation, [batch_size] each."""
    order = np.argsort(-examples.sizes, kind="stable")
    missing = -len(order) % batch_size
    filled = np.pad(order, (0, missing), mode="edge").reshape(-1, batch_size)
    weights = np.pad(np.ones(len(order)), (0, missing)).reshape(-1, batch_size)
    return list(zip(filled, weights, strict=True))


def _batches(
    examples: ExampleSet,
    rows_of_step: Callable[[int], tuple[np.ndarray, np.ndarray]],
    steps: range,
    batch_size: int,
    sharding: jax.sharding.NamedSharding,
    prefetch: int,
) -> Iterator[dict[str, jax.Array]]:
    local = local_rows(sharding, (batch_size,))

    def batch(step: int) -> dict[str, np.ndarray]:
        indices, weights = rows_of_step(step)
        return examples.batch(indices[local], weights[local], examples.bucket(indices))  # T is that of the whole batch

    batches = grain.MapDataset.range(steps.start, steps.stop).map(batch)
    return global_batches(batches, batch_size, local, sharding, prefetch)


def _padding(examples: ExampleSet, batches: np.ndarray) -> Padding:
    tokens = np.array([sum(map(len, own)) for own in examples.sequences])
    positions = sum(examples.positions(indices) for indices in batches)
    whole = batches.size * examples.choices * examples.context_length
    return Padding(share=float(1 - tokens[batches].sum() / positions), of_context=float(positions / whole))
