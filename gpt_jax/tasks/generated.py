"""Tasks that are generated, as the GPT-3 paper describes them: arithmetic (§3.9.1) and scrambled words (§3.9.2)."""

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable

from gpt_jax.errors import UserError

EXAMPLES = 2000  # of each arithmetic task
WORDS = 10_000  # the most frequent ones, of more than 4 letters and less than 15
_SIGNS = (*"!#$%&'()*+,-./:;<=>?@[]^_`{|}~", " ")


def generated_rows(task: str, words: Iterable[str], seed: int, split: str) -> list[dict[str, str]]:
    """The rows of `task`, one of `GENERATED`; every seed and split gives others of the same kind.

    Args:
      words: a text's words, for scrambled ones, of which the most frequent are used; "train" and "test" share none.

    Raises:
      UserError: the text has hardly any word of that length.
    """
    draw = random.Random(f"{seed}/{task}/{split}")  # of Python's own generator the sequence is promised
    if task in _ARITHMETIC:
        return [dict(zip(("question", "answer"), _ARITHMETIC[task](draw), strict=True)) for _ in range(EXAMPLES)]
    scramble = _SCRAMBLES[task]
    chosen = _frequent(words)
    own = [word for number, word in enumerate(chosen) if (number % 10 == 9) == (split == "train")]
    return [{"scrambled": scramble(word, draw), "word": word} for word in own]


def _frequent(words: Iterable[str]) -> list[str]:
    counts = Counter(word.lower() for word in words if re.fullmatch(r"[A-Za-z]{5,14}", word))
    chosen = [word for word, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:WORDS]]
    if len(chosen) < 20:
        raise UserError(
            f"data.words: {len(chosen)} words of 5 to 14 letters are in that text. Name a longer one: books, file:PATH."
        )
    return chosen


# --- arithmetic


def _sum_or_difference(digits: int, name: str, sign: int) -> Callable[[random.Random], tuple[str, str]]:
    def question(draw: random.Random) -> tuple[str, str]:
        first, second = draw.randrange(10**digits), draw.randrange(10**digits)
        return f"What is {first} {name} {second}?", str(first + sign * second)

    return question


def _product(draw: random.Random) -> tuple[str, str]:
    first, second = draw.randrange(100), draw.randrange(100)
    return f"What is {first} times {second}?", str(first * second)


def _composite(draw: random.Random) -> tuple[str, str]:
    """Three digits, two operations, the last two digits in brackets."""
    results = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b}
    first, second, third = (draw.randrange(10) for _ in range(3))
    outer, inner = draw.choice("+-*"), draw.choice("+-*")
    value = results[outer](first, results[inner](second, third))
    return f"What is {first}{outer}({second}{inner}{third})?", str(value)


_ARITHMETIC = {
    **{f"arithmetic-{digits}da": _sum_or_difference(digits, "plus", 1) for digits in (2, 3, 4, 5)},
    **{f"arithmetic-{digits}ds": _sum_or_difference(digits, "minus", -1) for digits in (2, 3, 4, 5)},
    "arithmetic-2dm": _product,
    "arithmetic-1dc": _composite,
}


# --- scrambled words


def _cycled(word: str, draw: random.Random) -> str:
    start = draw.randrange(1, len(word))
    return word[start:] + word[:start]


def _anagram(kept: int) -> Callable[[str, random.Random], str]:
    """All letters but the first and the last `kept` in another order."""

    def scramble(word: str, draw: random.Random) -> str:
        inner = list(word[kept:-kept])
        draw.shuffle(inner)
        return word[:kept] + "".join(inner) + word[-kept:]

    return scramble


def _inserted(word: str, draw: random.Random) -> str:
    """A random sign of punctuation or a space between any two letters."""
    return word[0] + "".join(draw.choice(_SIGNS) + letter for letter in word[1:])


_SCRAMBLES = {
    "words-cycled": _cycled,
    "words-anagram1": _anagram(1),
    "words-anagram2": _anagram(2),
    "words-inserted": _inserted,
    "words-reversed": lambda word, draw: word[::-1],
}

GENERATED = (*_ARITHMETIC, *_SCRAMBLES)
GROUPS = {"arithmetic": tuple(_ARITHMETIC), "words": tuple(_SCRAMBLES)}
