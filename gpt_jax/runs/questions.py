"""What every evaluation asks of a model: the log-probability of continuations, and continuations that it writes."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import jax
import numpy as np

from gpt_jax.data.example_batches import ExampleSet, evaluation_batches
from gpt_jax.inference.beam_search import beam_search
from gpt_jax.inference.continuations import compile_continuation_scorer
from gpt_jax.inference.engine import Engine
from gpt_jax.inference.generation import continue_prompts
from gpt_jax.inference.sampling import Sampling
from gpt_jax.inference.streaming import text_of
from gpt_jax.models.config import ModelConfig
from gpt_jax.parallel.rules import sharding
from gpt_jax.runs.pretrained import prompt_ids
from gpt_jax.runs.subjects import Subject
from gpt_jax.text.tokenizer import Tokenizer

Row = dict[str, Any]


@dataclass(frozen=True)
class Texts(ExampleSet):
    """Token sequences of which the tokens from `starts` on are scored, one an example of an `ExampleSet`.

    sequences: as of an `ExampleSet`, without the last token, which the model need not read.
    whole: int32 [length + 1] each, with it.
    """

    whole: Sequence[np.ndarray] = field(kw_only=True)
    starts: np.ndarray = field(kw_only=True)

    @classmethod
    def of(cls, sequences: Sequence[np.ndarray], starts: np.ndarray, pad: int, context_length: int) -> "Texts":
        """`sequences` of at most `context_length` + 1 tokens, each scored from its own of `starts` on."""
        read = [(sequence[:-1],) for sequence in sequences]
        return cls(read, None, pad, context_length, whole=sequences, starts=starts)

    @functools.cached_property
    def scored(self) -> np.ndarray:
        """int [n]: the tokens of each continuation."""
        return np.array([len(sequence) for sequence in self.whole]) - self.starts

    def bucket(self, indices: np.ndarray) -> tuple[int, int]:
        """(T, K): the bucket length of a batch of the texts `indices`, and room for its longest continuation."""
        length, most = super().bucket(indices), self.scored[indices].max()
        room = next((power for power in (4, 8, 16, 32, 64, 128, 256, 512, 1024) if power >= most), length)
        return length, min(room, length)

    def batch(self, indices: np.ndarray, weights: np.ndarray, length: tuple[int, int]) -> dict[str, np.ndarray]:
        """The texts `indices` [R] as arrays: what `compile_continuation_scorer` takes; `length` is (T, K)."""
        length, room = length
        tokens = np.full((len(indices), length + 1), self.pad, np.int32)
        for row, index in enumerate(indices):
            tokens[row, : len(self.whole[index])] = self.whole[index]
        targets_RK = self.starts[indices][:, None] + np.arange(room)
        scored_RK = np.arange(room) < self.scored[indices][:, None]
        targets_RK = np.minimum(targets_RK, length)
        return {
            "tokens": tokens[:, :-1],
            "places": (targets_RK - 1).astype(np.int32),
            "targets": np.take_along_axis(tokens, targets_RK, axis=1),
            "mask": scored_RK.astype(np.float32),
            "weights": np.asarray(weights, np.float32),
            "index": np.asarray(indices, np.int32),
        }


@dataclass(frozen=True)
class Answers:
    """What a model says of a question.

    metrics: for its row of evaluations.jsonl and for scores.json.
    predictions: a row an example; `right` and `margin` (nats between the best wrong candidate and the right one) where
        there are candidates.
    facts: what else belongs into its row.
    """

    metrics: dict[str, float | None]
    predictions: list[Row]
    facts: Row = field(default_factory=dict)


class Question(Protocol):
    """One split of one task, asked in one way.

    name: how scores.json calls it.
    shots: solved examples in the prompt; None where there are no prompts.
    metric: the first, which reports show; all: names of `Answers.metrics` that scores.json has.
    examples: how many there are.
    described: how they are asked, in words.
    chance: the first metric of guessing, where that means something.
    facts: what the asked data are, for data.json.
    """

    name: str
    task: str
    split: str
    shots: int | str | None
    metrics: tuple[str, ...]
    examples: int
    described: str
    chance: float | None
    facts: Row

    def batches(self, size: int) -> int:
        """How many batches of `size` rows it takes."""

    def answer(self, model: "Asked") -> Answers:
        """What `model` says."""


class Asked:
    """A model's weights, ready to be asked. Batches are divided over the mesh, and `on_batch` is told of each."""

    def __init__(
        self,
        subject: Subject,
        mesh: jax.sharding.Mesh,
        batch_size: int,
        on_batch: Callable[[float], None] = lambda loss: None,
    ):
        self.tokenizer: Tokenizer = subject.tokenizer
        self.config: ModelConfig = subject.config
        self._end_ids, self._params, self._engine = subject.end_ids, None, None
        self._mesh, self._batch_size, self._on_batch = mesh, batch_size, on_batch
        self._score = compile_continuation_scorer(self.config, mesh)

    @property
    def params(self) -> Any:
        """Those of the moment that is asked."""
        return self._params

    @params.setter
    def params(self, params: Any) -> None:
        self._params, self._engine = params, None

    def texts(self, sequences: Sequence[np.ndarray], starts: np.ndarray) -> Texts:
        """Sequences of at most the context length and 1, scored from `starts` on."""
        return Texts.of(sequences, starts, self.tokenizer.specials.pad, self.config.context_length)

    def log_probabilities(self, texts: Texts) -> tuple[np.ndarray, np.ndarray]:
        """Of every continuation, float64 [texts] in nats, and whether it is the greedy one, bool [texts]."""
        found, greedy = np.full(len(texts), np.nan), np.zeros(len(texts), bool)
        along_rows = sharding((self._batch_size,), ("batch",), self._mesh)
        batches = evaluation_batches(texts, batch_size=self._batch_size, sharding=along_rows)
        for index, values, hits in self._score(self.params, batches):
            found[index], greedy[index] = values, hits
            self._on_batch(-values.sum() / texts.scored[index].sum())
        return found, greedy

    def continuations(self, prompts: Sequence[str], sampling: Sampling, *, stop: Sequence[str]) -> list[str]:
        """The continuation of each prompt, up to the end of text or the first of `stop`, which is left out.

        A prompt that is too long loses its first tokens.
        """
        if self._engine is None:
            self._engine = self._new_engine(self._end_ids)
        ids = self._cut(prompts, sampling.max_new_tokens)
        written, done = [""] * len(prompts), 0
        for piece in continue_prompts(self._engine, self.tokenizer, ids, sampling, stop=stop):
            written[piece.prompt] = piece.so_far.text
            if piece.so_far.finished:
                done += 1
                if done % self._batch_size == 0 or done == len(prompts):
                    self._on_batch(0.0)
        return written

    def best_beams(
        self, prompts: Sequence[str], beams: int, max_new_tokens: int, length_penalty: float, *, stop: Sequence[str]
    ) -> list[str]:
        """As `continuations`, the best beam of each prompt; see `beam_search`.

        A stop string that is one token ends a beam; a longer one only cuts the text.
        """
        encoded = [self.tokenizer.encode(text).tolist() for text in stop]
        ends = [ids[0] for ids in encoded if len(ids) == 1]
        engine = self._new_engine([*self._end_ids, *ends])
        written = []
        for number, ids in enumerate(self._cut(prompts, max_new_tokens), 1):
            best, *_ = beam_search(
                engine, ids, beams=beams, max_new_tokens=max_new_tokens, length_penalty=length_penalty
            )
            written.append(text_of(self.tokenizer, best.ids, ids, stop))
            if number % self._batch_size == 0 or number == len(prompts):
                self._on_batch(0.0)
        return written

    def _new_engine(self, end_ids: Sequence[int]) -> Engine:
        return Engine(
            self.params,
            self.config,
            self._mesh,
            vocab_size=self.tokenizer.vocab_size,
            end_ids=end_ids,
            slots=self._batch_size,
        )

    def _cut(self, prompts: Sequence[str], max_new_tokens: int) -> list[list[int]]:
        most = self.config.context_length - max_new_tokens
        return [prompt_ids(self.tokenizer, prompt)[-most:] for prompt in prompts]


def batches_of(count: int, size: int) -> int:
    """How many batches of `size` hold `count` rows."""
    return -(-count // size)
