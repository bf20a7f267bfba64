"""Ranking answers: orders that people type, orders of scores, and which of two models is preferred."""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gpt_jax.errors import UserError

LONGEST = 9  # digits of an answer's number: int() refuses thousands of them


def parse_order(text: str, count: int) -> list[int]:
    """The ranks of `count` answers, 1 the best, of an order such as `2 1=3 4`: the best first, `=` between equals.

    Raises:
      UserError: it is no order of 1 to `count`.
    """
    ranks: dict[int, int] = {}
    groups = re.sub(r"\s*=\s*", "=", re.sub(r"[>,]", " ", text)).split()
    for rank, group in enumerate(groups, 1):
        for word in group.split("="):
            if not word.isdecimal() or len(word) > LONGEST or not 1 <= int(word) <= count:
                raise UserError(f"{word[:LONGEST]!r} is none of the answers 1 to {count}.")
            if int(word) in ranks:
                raise UserError(f"{word} stands there twice.")
            ranks[int(word)] = rank
    if missing := [str(number) for number in range(1, count + 1) if number not in ranks]:
        raise UserError(f"{', '.join(missing)} is missing: all {count} answers, the best first.")
    return [ranks[number] for number in range(1, count + 1)]


def ranks_of_scores(scores: Sequence[float]) -> list[int]:
    """Ranks by scores, the highest 1; equal scores are ties."""
    order = sorted(set(scores), reverse=True)
    return [order.index(score) + 1 for score in scores]


def is_comparison(ranks: Sequence[int] | None) -> bool:
    """Whether something can be learnt from the ranks: not from one answer alone, nor from equal ones."""
    return ranks is not None and len(set(ranks)) > 1


class Preference(NamedTuple):
    """How often one model's answers are ranked above another's.

    Attributes:
      won, tied, lost: prompts, by whether the one's answers win more than half of their pairs with the other's.
      share: the mean over prompts of the share of pairs that are won, ties counting half; low, high: its 95% interval.
    """

    one: str
    other: str
    won: int
    tied: int
    lost: int
    share: float
    low: float
    high: float


def preferences(rankings: Sequence[Mapping[str, Any]]) -> list[Preference]:
    """Every two models compared, over the prompts that both have answered.

    Args:
      rankings: rows with `ranks`, one an answer, or None, and `models`, for each answer who gave it.
    """
    judged = [row for row in rankings if row["ranks"] is not None]
    names = list(dict.fromkeys(name for row in judged for answer in row["models"] for name in answer))
    found = []
    for one, other in itertools.combinations(names, 2):
        shares = np.array([share for row in judged if (share := _share(row, one, other)) is not None])
        if len(shares):
            counts = (int(np.sum(shares > 0.5)), int(np.sum(shares == 0.5)), int(np.sum(shares < 0.5)))
            found.append(Preference(one, other, *counts, float(shares.mean()), *wilson(shares.mean(), len(shares))))
    return found


def _share(row: Mapping[str, Any], one: str, other: str) -> float | None:
    """Of a prompt, the share of pairs that `one` wins; None: they have not both answered."""
    ranks = {
        name: [rank for rank, given in zip(row["ranks"], row["models"], strict=True) for by in given if by == name]
        for name in (one, other)
    }
    if not all(ranks.values()):
        return None
    differences = np.subtract.outer(ranks[other], ranks[one])
    return float(np.mean((np.sign(differences) + 1) / 2))


def wilson(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """The interval of a mean of `count` numbers between 0 and 1 (Wilson 1927; 95% by default).

    Made for yes and no; numbers in between vary less about the same mean, so for them it is rather too wide.
    """
    shrunk = 1 + z * z / count
    centre = (share + z * z / (2 * count)) / shrunk
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / shrunk
    return max(centre - half, 0.0), min(centre + half, 1.0)
