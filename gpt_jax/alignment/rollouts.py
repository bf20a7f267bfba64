"""Answers that a policy draws, and the arrays that it learns from them.

An answer is what was drawn, with the symbol that ends it. What is judged of it may be less: up to a full stop, say.
B: answers of a batch, T: positions of a prompt with its answer, R: tokens of an answer.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gpt_jax.errors import UserError
from gpt_jax.inference.engine import Engine
from gpt_jax.inference.sampling import Sampling
from gpt_jax.text.tokenizer import Tokenizer

STEPS = 64  # tokens between two looks at what is done


class Answer(NamedTuple):
    """Ids that were drawn; `ended`: whether the policy ended the answer, the last of them being the symbol for that."""

    ids: list[int]
    ended: bool


def draw_answers(
    engine: Engine, prompts: Sequence[Sequence[int]], sampling: Sampling, *, first: int = 0
) -> list[Answer]:
    """An answer to each prompt; the draws of prompt i follow from `sampling.seed` and the number `first` + i alone.

    Raises:
      UserError: a prompt is empty, or leaves no room for an answer.
    """
    numbers = {engine.submit(prompt, sampling, (first + i) % 2**32): i for i, prompt in enumerate(prompts)}
    answers = [Answer([], False) for _ in prompts]
    while engine.busy:
        for event in engine.step(STEPS):
            answer = answers[numbers[event.request]]
            answer.ids.extend(event.tokens)
            if event.end is not None:
                answers[numbers[event.request]] = Answer([*answer.ids, event.end], True)
    return answers


@dataclasses.dataclass(frozen=True)
class Truncation:
    """Where what is judged of an answer ends: with the first of `ids` from token number `after` (0 the first) on.

    Without `ids` it ends where the policy ended it. (Ziegler et al. 2019, lm_tasks.py: a full stop after 16 tokens.)
    Learnt from, and counted in the KL, is the whole answer, as there.
    """

    ids: frozenset[int] = frozenset()
    after: int = 0

    def judged(self, answer: Answer) -> tuple[list[int], bool]:
        """The ids that are judged, without the symbol of the end; and whether the answer is complete."""
        said = answer.ids[:-1] if answer.ended else answer.ids
        if not self.ids:
            return said, answer.ended
        place = next((place for place, id in enumerate(said) if place >= self.after and id in self.ids), None)
        return (said, False) if place is None else (said[: place + 1], True)


def spelled(tokenizer: Tokenizer, text: str) -> frozenset[int]:
    """The ids of all tokens that spell `text`, with spaces around it or without.

    Raises:
      UserError: there is none.
    """
    found = frozenset(id for id in range(tokenizer.vocab_size) if tokenizer.decode([id]).strip() == text)
    if not found or not text:
        raise UserError(
            f"rollout.truncate_token={text!r}: no token of the vocabulary spells that. Expected a text of one token, "
            "such as '.'."
        )
    return found


def answer_arrays(
    prompts: Sequence[Sequence[int]], answers: Sequence[Answer], *, positions: int, longest: int, pad: int
) -> dict[str, np.ndarray]:
    """Prompts with their answers as a batch.

    Args:
      positions: T, at least the tokens of a prompt with its answer but one; longest: R.

    Returns:
      tokens int32 [B, T]; targets int32 [B, R], the answers' tokens, and mask bool [B, R], where there are any; starts
      int32 [B], the position whose state draws the first of them.
    """
    tokens = np.full((len(prompts), positions), pad, np.int32)
    targets = np.full((len(prompts), longest), pad, np.int32)
    mask = np.zeros((len(prompts), longest), bool)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        ids = [*prompt, *answer.ids][:-1]
        tokens[row, : len(ids)] = ids
        targets[row, : len(answer.ids)] = answer.ids
        mask[row, : len(answer.ids)] = True
    starts = np.array([len(prompt) - 1 for prompt in prompts], np.int32)
    return {"tokens": tokens, "targets": targets, "mask": mask, "starts": starts}
