"""Texts that continue prompts: the engine's tokens, as text, up to the first stop string."""

import dataclasses
from collections.abc import Iterator, Sequence

from gpt_jax.inference.engine import Engine
from gpt_jax.inference.sampling import Sampling
from gpt_jax.inference.streaming import TextStream
from gpt_jax.text.tokenizer import Tokenizer

STEPS = 16  # tokens between two looks at the text, where nobody waits for each of them


@dataclasses.dataclass
class Continuation:
    """How one prompt goes on.

    Attributes:
      text: without the stop string that ended it.
      ids: the tokens, to the one that completed the stop string.
      logprobs, alternatives: as of `engine.Event`, one a token.
      finished: "stop" (the end of text, or a stop string), "length", or None: it is not done.
    """

    text: str = ""
    ids: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)
    alternatives: list[list[tuple[int, float]]] = dataclasses.field(default_factory=list)
    finished: str | None = None


@dataclasses.dataclass
class Piece:
    """What has become known of the `sample`-th continuation of prompt number `prompt`; `so_far` is all of it."""

    prompt: int
    sample: int
    text: str
    so_far: Continuation


def continue_prompts(
    engine: Engine,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    stop: Sequence[str] = (),
    samples: Sequence[Sequence[int]] | None = None,
    steps: int = STEPS,
) -> Iterator[Piece]:
    """Continues all prompts together and yields what they become, piece by piece, in no order among prompts.

    Args:
      prompts: ids.
      samples: of each prompt, the numbers of the continuations that are wanted; by default one, whose number is the
        prompt's own. A continuation depends on its prompt, the seed and this number, not on its company.
      steps: tokens of a piece; 1 to see each as it is made.

    Raises:
      UserError: when a prompt does not fit, or a stop string is empty; before any piece.
    """
    if samples is None:
        samples = [[number] for number in range(len(prompts))]
    TextStream(tokenizer, stop)  # refuses what cannot be
    for prompt in prompts:
        engine.check_prompt(prompt, sampling.max_new_tokens)
    at_work: dict[int, tuple[TextStream, Piece]] = {}
    for number, (prompt, own) in enumerate(zip(prompts, samples, strict=True)):
        for sample in own:
            request = engine.submit(prompt, sampling, sample)
            at_work[request] = TextStream(tokenizer, stop, prompt), Piece(number, sample, "", Continuation())
    try:
        yield from _pieces(engine, at_work, steps)
    finally:  # whoever stops listening leaves nothing behind in the engine
        for request in at_work:
            engine.cancel(request)


def _pieces(engine: Engine, at_work: dict[int, tuple[TextStream, Piece]], steps: int) -> Iterator[Piece]:
    """The pieces of the requests `at_work`, which leave it as they are done."""
    while at_work:
        for event in engine.step(steps):
            if event.request not in at_work:
                continue
            stream, piece = at_work[event.request]
            found = piece.so_far
            piece.text = ""
            for place, id in enumerate(event.tokens):
                found.ids.append(id)
                found.logprobs += event.logprobs[place : place + 1]
                found.alternatives += event.alternatives[place : place + 1]
                piece.text += stream.push([id])
                if stream.stopped is not None:
                    break
            found.finished = event.finished
            if stream.stopped is not None:
                found.finished = "stop"
                engine.cancel(event.request)
            elif event.finished:
                piece.text += stream.finish()
                found.finished = "stop" if stream.stopped is not None else found.finished
            found.text = stream.text
            if found.finished:
                del at_work[event.request]
            yield piece
