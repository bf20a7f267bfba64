"""Continues many prompts at once, each from the moment there is room for it (continuous batching, Yu et al. 2022).

The rows of one batch are different requests at different places, drawn in different ways. A row that is done makes
room for the next in the queue. Two programs do all the work: `prefill` takes a prompt in, `decode` adds tokens to
every row. Shapes are powers of two, so that few of each are compiled. Shape suffixes as in layers.py; A: alternatives.
"""

import dataclasses
import functools
import itertools
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax.errors import UserError
from gpt_jax.inference.sampling import MOST_LOGPROBS, Choosers, Sampling, choose
from gpt_jax.models import decoder, incremental
from gpt_jax.models.config import ModelConfig
from gpt_jax.parallel.rules import constrain

CHUNK = 1024  # tokens of a prompt that are taken in at once; their scores with all keys stand in memory together
MOST_STEPS = 64  # tokens that one call of `decode` adds to a row
LEAST_LENGTH = 64
ENTERING = 2  # prompts that are taken in before each step of those at work


@dataclasses.dataclass
class Event:
    """What one step added to one request.

    Attributes:
      logprobs: in nats, one a token, where they were asked for; alternatives: (id, log-probability) of the likeliest.
      finished: "stop" (the model ended the text; its end is none of `tokens`), "length", or None: it goes on.
      end: the id that ended the text.
    """

    request: int
    tokens: list[int]
    logprobs: list[float]
    alternatives: list[list[tuple[int, float]]]
    finished: str | None
    end: int | None = None


class Rows(NamedTuple):
    """What the devices hold of the requests at work; a row whose `left_B` is 0 is nobody's."""

    cache: incremental.Cache
    tokens_B: jax.Array  # int32, the last one, which the cache does not hold yet
    lengths_B: jax.Array  # int32, tokens in the cache
    made_B: jax.Array  # int32, tokens that were added
    left_B: jax.Array  # int32, tokens that may still be added
    seen_BV: jax.Array  # bool, tokens of prompt and continuation
    choosers: Choosers


class Drawn(NamedTuple):
    """What `decode` adds, a column a step; ids are -1 where a row was idle."""

    ids_BM: jax.Array
    logprobs_BM: jax.Array | None
    alternative_ids_BMA: jax.Array | None
    alternative_logprobs_BMA: jax.Array | None


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Which ids may be drawn (those below `size`), and which of them end a text."""

    size: int
    ends: tuple[int, ...]


@dataclasses.dataclass
class _Request:
    number: int
    prompt: list[int]
    sampling: Sampling
    chooser: Choosers
    left: int


class Engine:
    """Continues prompts with one model. One thread at a time may use it.

    Attributes:
      length: the most tokens of prompt and continuation.
      slots: the most requests that are at work at once; others wait in a queue.
    """

    def __init__(
        self,
        params: dict,
        config: ModelConfig,
        mesh: jax.sharding.Mesh,
        *,
        vocab_size: int | None = None,
        end_ids: Sequence[int] = (),
        slots: int = 8,
        length: int | None = None,
        reuse_prefix: bool = False,
    ):
        """Splits the parameters into layers, which are then held beside the ones given, unless the caller drops them.

        Args:
          vocab_size: the tokenizer's, where the model has more rows than that to round their number up.
          end_ids: ids that end a text.
          length: by default the context's.
          reuse_prefix: where a prompt goes on from the whole of the one before it (the turns of a chat), what that
            left in the cache is kept. Rounding then depends on where a prompt was cut.

        Raises:
          UserError: when `slots` or `length` cannot be.
        """
        length = config.context_length if length is None else length
        if not 2 <= length <= config.context_length or slots < 1:
            raise UserError(
                f"length={length}, slots={slots}: expected a length from 2 to the model's context of "
                f"{config.context_length:,}, and at least one slot."
            )
        self.config, self.mesh, self.slots, self.length = config, mesh, slots, length
        self.vocabulary = Vocabulary(vocab_size or config.vocab_size, tuple(sorted(set(end_ids))))
        self._reuse_prefix = reuse_prefix
        with jax.set_mesh(mesh):
            self.params = _split_layers(params, config)
        self._rows: Rows | None = None
        self._rows_length = 0
        self._at_work: dict[int, _Request] = {}  # by row
        self._queue: deque[_Request] = deque()
        self._next = 0
        self._last_prompt: tuple[list[int], incremental.Cache | None] = ([], None)

    @property
    def busy(self) -> bool:
        """Whether anything is at work or waits."""
        return bool(self._at_work or self._queue)

    @property
    def queued(self) -> int:
        """Requests that wait for a slot."""
        return len(self._queue)

    def submit(self, prompt: Sequence[int], sampling: Sampling, sample: int = 0) -> int:
        """Puts a prompt in the queue; returns the request's number.

        Args:
          sample: which of several continuations of one seed.

        Raises:
          UserError: when the prompt is empty, or leaves no room for the tokens that are asked for.
        """
        prompt = [int(id) for id in prompt]
        self.check_prompt(prompt, sampling.max_new_tokens)
        request = _Request(self._next, prompt, sampling, Choosers.of(sampling, sample), sampling.max_new_tokens)
        self._next += 1
        self._queue.append(request)
        return request.number

    def check_prompt(self, prompt: Sequence[int], max_new_tokens: int) -> None:
        """Raises UserError for a prompt that is empty, or leaves no room for so many tokens."""
        if not len(prompt):
            raise UserError("an empty prompt: give at least one token, such as the end of text.")
        if not 0 <= min(prompt) <= max(prompt) < self.config.vocab_size:
            raise UserError(
                f"a prompt with ids from {min(prompt)} to {max(prompt)}: the vocabulary has 0 to "
                f"{self.config.vocab_size - 1}."
            )
        if len(prompt) + max_new_tokens > self.length:
            room = self.length - len(prompt)
            advice = f"Ask for at most {room:,}, or shorten the prompt." if room > 0 else "Shorten the prompt."
            raise UserError(
                f"a prompt of {len(prompt):,} tokens and max_new_tokens={max_new_tokens:,} do not fit in a context of "
                f"{self.length:,}. {advice}"
            )

    def cancel(self, number: int) -> None:
        """Forgets a request, wherever it is; nothing more is heard of it."""
        self._queue = deque(request for request in self._queue if request.number != number)
        for row, request in list(self._at_work.items()):
            if request.number == number:
                del self._at_work[row]
                with jax.set_mesh(self.mesh):
                    self._rows = _idle(self._rows, row)

    def step(self, most: int = 1) -> list[Event]:
        """Takes in what waits, as far as there is room, and adds up to `most` (at most 64) tokens to every row.

        While rows are at work, no more than two prompts enter at a step: many that come together do not hold them up.
        """
        with jax.set_mesh(self.mesh):
            self._admit()
            if not self._at_work:
                return []
            asked = [r.sampling.logprobs for r in self._at_work.values() if r.sampling.logprobs is not None]
            alternatives = (min(MOST_LOGPROBS, self.vocabulary.size) if max(asked) else 0) if asked else None
            most = min(most, MOST_STEPS, max(request.left for request in self._at_work.values()))
            self._rows, drawn = decode(
                self.params,
                self._rows,
                most,
                config=self.config,
                vocabulary=self.vocabulary,
                alternatives=alternatives,
            )
            drawn = jax.tree.map(np.asarray, drawn)
        return [self._event(row, request, drawn) for row, request in list(self._at_work.items())]

    def _event(self, row: int, request: _Request, drawn: Drawn) -> Event:
        ids = drawn.ids_BM[row]
        ids = ids[ids >= 0].tolist()
        request.left -= len(ids)
        finished = end = None
        if ids[-1] in self.vocabulary.ends:
            *ids, end = ids
            finished = "stop"
        elif request.left == 0:
            finished = "length"
        if finished:
            del self._at_work[row]
        logprobs, alternatives, wanted = [], [], request.sampling.logprobs
        if wanted is not None:
            logprobs = drawn.logprobs_BM[row, : len(ids)].tolist()
            if wanted:
                places = (row, slice(0, len(ids)), slice(0, wanted))
                pairs = zip(drawn.alternative_ids_BMA[places], drawn.alternative_logprobs_BMA[places], strict=True)
                alternatives = [list(zip(i.tolist(), p.tolist(), strict=True)) for i, p in pairs]
        return Event(request.number, ids, logprobs, alternatives, finished, end)

    def _admit(self) -> None:
        """Gives waiting requests the free rows, after making as many and as long ones as are needed."""
        room = self.slots - len(self._at_work)
        entering = min(len(self._queue), room, ENTERING if self._at_work else room)
        if not entering:
            return
        requests = [*self._at_work.values(), *itertools.islice(self._queue, room)]  # those that enter next, too
        new = [self._queue.popleft() for _ in range(entering)]
        self._make_room(
            incremental.power_of_two(len(requests), 1),
            min(
                incremental.power_of_two(
                    max(len(r.prompt) + r.sampling.max_new_tokens for r in requests), LEAST_LENGTH
                ),
                self.length,
            ),
        )
        free = iter(sorted(set(range(len(self._rows.left_B))) - self._at_work.keys()))
        for request, row in zip(new, free, strict=False):
            self._rows = _enter(self._rows, row, self.prefilled(request.prompt[:-1]), self._row_of(request))
            self._at_work[row] = request

    def _row_of(self, request: _Request) -> Rows:
        """The request as a batch of one, but for its cache."""
        seen_BV = np.zeros((1, self.config.vocab_size), bool)
        seen_BV[0, request.prompt] = True
        values = (request.prompt[-1], len(request.prompt) - 1, 0, request.left)
        numbers = (np.array([value], np.int32) for value in values)
        return Rows(None, *numbers, seen_BV, request.chooser)

    def prefilled(self, ids: list[int]) -> incremental.Cache:
        """A cache of one row that holds `ids`, as long as the next power of two."""
        known, cache = self._last_prompt
        if not (cache is not None and (ids == known or self._reuse_prefix and known and ids[: len(known)] == known)):
            known, cache = [], None
        length = min(incremental.power_of_two(len(ids), LEAST_LENGTH), self.length)
        cache = _empty(self.config, length) if cache is None else _lengthened(cache, config=self.config, length=length)
        for start in range(len(known), len(ids), CHUNK):
            chunk = ids[start : start + CHUNK]
            tokens_BT = np.zeros(
                (1, min(incremental.power_of_two(len(chunk), 16), self.config.context_length)), np.int32
            )
            tokens_BT[0, : len(chunk)] = chunk
            cache = prefill(self.params, tokens_BT, cache, np.int32(start), np.int32(len(chunk)), config=self.config)
        self._last_prompt = (ids, cache)
        return cache

    def _make_room(self, count: int, length: int) -> None:
        """Rows for `count` requests of `length` tokens; fewer or shorter ones only where that saves much."""
        if self._rows is None:
            self._rows, self._rows_length = _idle_rows(self.config, count, length), length
        old_count, old_length = len(self._rows.left_B), self._rows_length
        new_count = count if not old_count // 4 < count <= old_count else old_count
        new_length = length if not old_length // 4 < length <= old_length else old_length
        if (new_count, new_length) == (old_count, old_length):
            return
        rows = np.zeros(new_count, np.int32)
        rows[: len(self._at_work)] = list(self._at_work)
        self._rows = _moved(self._rows, rows, np.int32(len(self._at_work)), config=self.config, length=new_length)
        self._rows_length = new_length
        self._at_work = dict(enumerate(self._at_work.values()))


@functools.partial(jax.jit, static_argnames=("config", "vocabulary", "alternatives"), donate_argnames="rows")
def decode(
    params: dict, rows: Rows, most: int, *, config: ModelConfig, vocabulary: Vocabulary, alternatives: int | None
) -> tuple[Rows, Drawn]:
    """Adds up to `most` tokens (at most 64) to every row; stops when all rows are done.

    Args:
      params: of `incremental.split_layers`.
      alternatives: how many likeliest tokens are told with their log-probabilities; None: no log-probabilities.
    """
    matrix_VD = decoder.output_matrix(params, config)
    real_V = jnp.arange(config.vocab_size) < vocabulary.size
    ends_E = jnp.array(vocabulary.ends or (-1,), jnp.int32)
    batch = len(rows.left_B)

    def step(carry: tuple[jax.Array, Rows, Drawn]) -> tuple[jax.Array, Rows, Drawn]:
        i, rows, drawn = carry
        active_B = rows.left_B > 0
        hidden_B1D, cache = incremental.advance(
            params, config, rows.tokens_B[:, None], rows.cache, rows.lengths_B, active_B.astype(jnp.int32)
        )
        logits_BV = decoder.unembed(hidden_B1D, matrix_VD)[:, 0]
        logits_BV = jnp.where(real_V, logits_BV.astype(jnp.promote_types(logits_BV.dtype, jnp.float32)), -jnp.inf)
        ids_B = choose(logits_BV, rows.choosers, rows.made_B, rows.seen_BV)
        ends_B = jnp.any(ids_B[:, None] == ends_E, axis=1)
        rows = rows._replace(
            cache=cache,
            tokens_B=jnp.where(active_B, ids_B, rows.tokens_B),
            lengths_B=rows.lengths_B + active_B,
            made_B=rows.made_B + active_B,
            left_B=jnp.where(active_B & ~ends_B, rows.left_B - 1, 0),
            seen_BV=rows.seen_BV.at[jnp.arange(batch), ids_B].max(active_B),
        )
        told = [jnp.where(active_B, ids_B, -1)]
        if alternatives is not None:
            logprobs_BV = jax.nn.log_softmax(logits_BV)
            told.append(jnp.take_along_axis(logprobs_BV, ids_B[:, None], axis=1)[:, 0])
            likeliest, likeliest_ids = jax.lax.top_k(logprobs_BV, alternatives)
            told += [likeliest_ids.astype(jnp.int32), likeliest]
        told = Drawn(*told, *[None] * (len(Drawn._fields) - len(told)))
        drawn = jax.tree.map(lambda x, new: jax.lax.dynamic_update_index_in_dim(x, new, i, axis=1), drawn, told)
        return i + 1, rows, drawn

    def go_on(carry: tuple[jax.Array, Rows, Drawn]) -> jax.Array:
        i, rows, _ = carry
        return (i < most) & jnp.any(rows.left_B > 0)

    shape = (batch, MOST_STEPS)
    drawn = Drawn(jnp.full(shape, -1, jnp.int32), None, None, None)
    if alternatives is not None:
        wide = jnp.promote_types(config.dtype, jnp.float32)
        more = (*shape, alternatives)
        drawn = Drawn(drawn.ids_BM, jnp.zeros(shape, wide), jnp.zeros(more, jnp.int32), jnp.zeros(more, wide))
    _, rows, drawn = jax.lax.while_loop(go_on, step, (jnp.int32(0), rows, drawn))
    # Whole on every device, so that each host can read it.
    return rows, jax.tree.map(lambda x: constrain(x, *[None] * x.ndim), drawn)


@functools.partial(jax.jit, static_argnames="config", donate_argnames="cache")
def prefill(
    params: dict, tokens_BT: jax.Array, cache: incremental.Cache, start: int, length: int, *, config: ModelConfig
) -> incremental.Cache:
    """The cache with the first `length` of some more tokens of its one row, behind `start` earlier ones."""
    return incremental.advance(params, config, tokens_BT, cache, jnp.array([start]), jnp.array([length]))[1]


_split_layers = jax.jit(incremental.split_layers, static_argnames="config")


@functools.partial(jax.jit, static_argnames=("config", "length"))
def _empty(config: ModelConfig, length: int) -> incremental.Cache:
    return incremental.empty_cache(config, 1, length)


@functools.partial(jax.jit, static_argnames=("config", "length"))
def _lengthened(cache: incremental.Cache, *, config: ModelConfig, length: int) -> incremental.Cache:
    """A copy with room for `length` tokens."""
    return incremental.resized(cache, config, jnp.zeros(1, jnp.int32), length)


@functools.partial(jax.jit, static_argnames=("config", "count", "length"))
def _idle_rows(config: ModelConfig, count: int, length: int) -> Rows:
    numbers = [jnp.zeros(count, jnp.int32)] * 4
    choosers = jax.tree.map(lambda x: jnp.zeros(count, x.dtype), Choosers.of(Sampling(), 0))
    seen_BV = jnp.zeros((count, config.vocab_size), bool)
    return Rows(incremental.empty_cache(config, count, length), *numbers, seen_BV, choosers)


@functools.partial(jax.jit, static_argnames=("config", "length"))
def _moved(rows: Rows, kept: jax.Array, count: int, *, config: ModelConfig, length: int) -> Rows:
    """The rows `kept` (int [new batch]) with room for `length` tokens; those from `count` on are idle."""
    cache = incremental.resized(rows.cache, config, kept, length)
    moved = jax.tree.map(lambda x: x[kept], rows._replace(cache=None))
    left_B = jnp.where(jnp.arange(len(kept)) < count, moved.left_B, 0)
    return moved._replace(cache=cache, left_B=left_B)


@functools.partial(jax.jit, donate_argnames="rows")
def _enter(rows: Rows, row: int, cache: incremental.Cache, new: Rows) -> Rows:
    """`rows` with the batch of one `new`, and its cache, at `row`."""
    place = jnp.array([row])
    values = jax.tree.map(lambda x, y: x.at[place].set(y), rows._replace(cache=None), new)
    return values._replace(cache=incremental.placed(rows.cache, place, cache))


@functools.partial(jax.jit, donate_argnames="rows")
def _idle(rows: Rows, row: int) -> Rows:
    return rows._replace(left_B=rows.left_B.at[row].set(0))
