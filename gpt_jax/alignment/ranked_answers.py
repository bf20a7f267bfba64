"""What people, or a reward, prefer: a prompt's answers with their ranks, as tables have them and as tokens."""

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from gpt_jax.alignment.conversations import SKIP, Left, read_messages, text_of
from gpt_jax.data.packing import MarkedText
from gpt_jax.data.rows import Row
from gpt_jax.data.tables import Table
from gpt_jax.errors import UserError
from gpt_jax.text.chat_template import ChatTemplate, Message
from gpt_jax.text.tokenizer import Tokenizer

Prompt = str | tuple[Message, ...]  # a text that answers go on from, or what was said before them
COLUMNS = ("prompt", "answers", "ranks", "reference", "chosen", "rejected")
LARGEST_RANK = 1e30  # of either sign; a float32 holds it
_TURN = re.compile(r"\n\n(Human|Assistant):")  # of the transcripts of Bai et al. 2022
_ROLES = {"Human": "user", "Assistant": "assistant"}


@dataclasses.dataclass(frozen=True)
class RankedAnswers:
    """A prompt with at least two answers, no two of the same text and not all of the same rank.

    Attributes:
      ranks: one an answer, the lower the better; equal ones are ties.
      reference: the number of the answer that is a demonstration; None: none is.
      place: where it stands, for messages.
    """

    prompt: Prompt
    answers: tuple[str, ...]
    ranks: tuple[float, ...]
    reference: int | None
    place: str

    @property
    def prompt_text(self) -> str:
        """By which prompts are told."""
        if isinstance(self.prompt, str):
            return self.prompt
        return "\n\n".join(f"{message['role']}: {message['content']}" for message in self.prompt)

    @property
    def references(self) -> tuple[int, ...]:
        """The answers that a good one is like: the demonstration, else those of the best rank."""
        if self.reference is not None:
            return (self.reference,)
        return tuple(number for number, rank in enumerate(self.ranks) if rank == min(self.ranks))

    def best_and_worst(self) -> "RankedAnswers":
        """The first of the best answers against the last of the worst."""
        best = self.ranks.index(min(self.ranks))
        worst = len(self.ranks) - 1 - self.ranks[::-1].index(max(self.ranks))
        return dataclasses.replace(
            self,
            answers=(self.answers[best], self.answers[worst]),
            ranks=(0, 1),
            reference={best: 0, worst: 1}.get(self.reference),
        )


# --- from tables


def read_ranked_answers(
    table: Table, columns: Mapping[str, str], *, as_text: bool, skip_bad_rows: bool, left: Left
) -> Iterator[RankedAnswers]:
    """The rows of a table as ranked answers, of any of these forms; further columns are passed over.

    {"prompt": text or messages, "answers": [...], "ranks": [...], "reference": number}: without ranks the best comes
    first; the reference may be missing.
    {"prompt": text or messages, "chosen": text, "rejected": text}
    {"chosen": messages, "rejected": messages}: the same but for the last one; `prompt` may hold those before
    (or some of them once more).
    {"chosen": transcript, "rejected": transcript}: "\\n\\nHuman: ...\\n\\nAssistant: ...", to the answer.

    Args:
      columns: what the table calls each of `COLUMNS`.
      as_text: prompts are texts that answers go on from, and stay as they are; messages are refused. Else a prompt that
        is a text is a user's message, and a transcript is taken apart.
      left: counts the rows that are passed over.

    Raises:
      UserError: a row that is none of these, with its place, unless `skip_bad_rows`.
    """
    for row in table:
        try:
            yield _ranked(row, columns, as_text)
        except UserError:
            if not skip_bad_rows:
                raise
            left.broken += 1


def _ranked(row: Row, columns: Mapping[str, str], as_text: bool) -> RankedAnswers:
    prompt, answers, chosen, rejected = (columns[name] for name in ("prompt", "answers", "chosen", "rejected"))
    reference = None
    if answers in row.fields and prompt in row.fields:
        asked, said = read_prompt(row, prompt, as_text), read_answers(row, answers)
        ranks, reference = _ranks(row, columns["ranks"], len(said)), _reference(row, columns["reference"], len(said))
    elif chosen in row.fields and rejected in row.fields:
        (asked, *said), ranks = _pair(row, prompt, chosen, rejected, as_text), (0, 1)
    else:
        raise UserError(
            f"{row.place}: there is no column {prompt!r} with {answers!r}, nor {chosen!r} with {rejected!r}. There "
            f"are: {', '.join(row.fields)}. Say what yours are called: data.columns.answers and so on."
        )
    _check_answers(row, said)
    return RankedAnswers(asked, tuple(said), tuple(ranks), reference, row.place)


def read_prompt(row: Row, column: str, as_text: bool) -> Prompt:
    """The prompt in a column of a row; UserError: it is none, or messages although prompts are to be texts."""
    value = row.fields[column]
    if isinstance(value, list):
        _check_not_text(row, as_text)
        return read_messages(row, column)
    text = text_of(value, f"{row.place}: {column}")
    return text if as_text else ({"role": "user", "content": text},)


def _check_not_text(row: Row, as_text: bool) -> None:
    if as_text:
        raise UserError(
            f"{row.place}: messages, and with template=none prompts are texts that answers go on from. Leave template "
            "empty, or name one."
        )


def read_answers(row: Row, column: str) -> list[str]:
    """The texts in a column of a row; UserError: it is no list of texts."""
    value = row.fields[column]
    if not isinstance(value, list):
        raise UserError(f"{row.place}: {column} is {str(value)[:80]!r}. Expected a list of texts. {SKIP}")
    return [text_of(answer, f"{row.place}: answer {number}") for number, answer in enumerate(value, 1)]


def _ranks(row: Row, column: str, count: int) -> Sequence[float]:
    ranks = row.fields.get(column)
    if ranks is None:
        return range(count)
    if not isinstance(ranks, list) or len(ranks) != count or not all(map(_is_finite, ranks)):
        raise UserError(
            f"{row.place}: {column} is {str(ranks)[:80]!r}. Expected {count} numbers, one for each answer, the lower "
            f"the better. {SKIP}"
        )
    if len(set(ranks)) == 1 and count > 1:
        raise UserError(f"{row.place}: all answers have the rank {ranks[0]}, which prefers none. {SKIP}")
    return ranks


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST_RANK


def _reference(row: Row, column: str, count: int) -> int | None:
    number = row.fields.get(column)
    if number is not None and (type(number) is not int or not 0 <= number < count):
        raise UserError(
            f"{row.place}: {column} is {str(number)[:80]!r}. Expected the number of an answer, 0 to {count - 1}. {SKIP}"
        )
    return number


def _pair(row: Row, prompt: str, chosen: str, rejected: str, as_text: bool) -> tuple[Prompt, str, str]:
    """The prompt, the chosen answer, the rejected one."""
    sides = row.fields[chosen], row.fields[rejected]
    if all(isinstance(side, list) for side in sides):
        _check_not_text(row, as_text)
        before = read_prompt(row, prompt, as_text) if prompt in row.fields else ()
        (*asked, one), (*also, other) = read_messages(row, chosen), read_messages(row, rejected)
        if asked != also or not (before or asked) or {one["role"], other["role"]} != {"assistant"}:
            raise UserError(
                f"{row.place}: {chosen} and {rejected} are to be the same messages up to the last, which is an answer "
                f"of the role 'assistant'. {SKIP}"
            )
        if tuple(asked[: len(before)]) == before:  # as where the prompt stands in a column of its own once more
            before = ()
        return (*before, *asked), one["content"], other["content"]
    texts = tuple(text_of(side, f"{row.place}: {name}") for side, name in zip(sides, (chosen, rejected), strict=True))
    if prompt in row.fields:
        return read_prompt(row, prompt, as_text), *texts
    (asked, one), (also, other) = (_taken_apart(text, row, as_text) for text in texts)
    if asked != also:
        raise UserError(f"{row.place}: {chosen} and {rejected} are transcripts that differ before the answer. {SKIP}")
    return asked, one, other


def _taken_apart(transcript: str, row: Row, as_text: bool) -> tuple[Prompt, str]:
    """What was said before the last answer of a transcript, and the answer."""
    before, *turns = _TURN.split(transcript)
    if before.strip() or len(turns) < 4 or turns[-2] != "Assistant":
        raise UserError(
            f"{row.place}: two texts without a prompt, and no transcripts that begin with '\\n\\nHuman:' and end with "
            f"an answer behind '\\n\\nAssistant:'. {SKIP}"
        )
    if as_text:
        return transcript[: len(transcript) - len(turns[-1])], turns[-1]
    said = tuple(
        {"role": _ROLES[name], "content": text.strip()} for name, text in zip(turns[::2], turns[1::2], strict=True)
    )
    return said[:-1], said[-1]["content"]


def _check_answers(row: Row, answers: Sequence[str]) -> None:
    if len(answers) < 2:
        raise UserError(f"{row.place}: {len(answers)} answers, and it takes two to compare. {SKIP}")
    for number, answer in enumerate(answers, 1):
        if not answer.strip():
            raise UserError(f"{row.place}: answer {number} is empty. {SKIP}")
    for (number, one), (other_number, other) in itertools.combinations(enumerate(answers, 1), 2):
        if one == other:
            raise UserError(f"{row.place}: answers {number} and {other_number} are the same text. {SKIP}")


# --- as tokens


class AnswerEncoder:
    """Prompts with their answers as tokens: by a chat template, or, without one, as one text.

    An answer ends in the symbol that its template writes there, or in the end of text: at that token a reward model
    reads its reward.

    Args:
      last_messages: how much of a conversation is read: what the system says, and so many of the messages before the
        answer; 0: everything.
    """

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate | None, last_messages: int = 0):
        self._tokenizer, self._template, self._last_messages = tokenizer, template, last_messages

    @property
    def as_text(self) -> bool:
        """Whether prompts are texts."""
        return self._template is None

    def prompt(self, prompt: Prompt) -> np.ndarray:
        """Ids of a prompt up to where its answer begins, int32 [n].

        Raises:
          UserError: the template does not take it.
        """
        if isinstance(prompt, str):
            beginning = self._tokenizer.specials.beginning_of_text
            return self._tokenizer.encode_parts([*([] if beginning is None else [beginning]), prompt])
        return self._template.encode(self._read(prompt))

    def __call__(self, prompt: Prompt, answer: str) -> MarkedText:
        """Prompt, answer and its end; the answer and its end count.

        Raises:
          UserError: the template does not take them.
        """
        if not isinstance(prompt, str):
            ids, answered = self._template.encode_answers(
                [*self._read(prompt), {"role": "assistant", "content": answer}]
            )
            earlier = np.flatnonzero(~answered)  # the answers before the last do not count
            answered[: earlier[-1] + 1 if len(earlier) else 0] = False
            return MarkedText(ids, answered)
        before, whole = self.prompt(prompt), self.prompt(prompt + answer)
        if not np.array_equal(whole[: len(before)], before):  # a token reaches over the answer's beginning
            whole = np.concatenate([before, self._tokenizer.encode(answer)])
        ids = np.append(whole, self._tokenizer.specials.end_of_text).astype(np.int32)
        return MarkedText(ids, np.arange(len(ids)) >= len(before))

    def _read(self, messages: Sequence[Message]) -> list[Message]:
        first = len(messages) - self._last_messages if self._last_messages else 0
        return [message for place, message in enumerate(messages) if place >= first or message["role"] == "system"]


def encode_ranked(
    rows: Iterable[RankedAnswers], encode: Callable[[Prompt, str], MarkedText], length: int, *, skip_bad_rows: bool,
    left: Left,
) -> tuple[list[RankedAnswers], list[tuple[MarkedText, ...]]]:  # fmt: skip
    """The rows that fit, and the tokens of each one's answers; a row with an answer that is too long is left out whole.

    Args:
      length: of prompt and answer, in tokens; left: counts those that are passed over.

    Raises:
      UserError: the template does not take one, or one is too long, unless `skip_bad_rows`.
    """
    kept, tokens, too_long = [], [], []
    for row in rows:
        try:
            texts = tuple(encode(row.prompt, answer) for answer in row.answers)
            if len({text.ids.tobytes() for text in texts}) < len(texts):  # of a template that trims what is said
                raise UserError(f"two of the answers are the same tokens to the model. {SKIP}")
        except UserError as error:
            if skip_bad_rows:
                left.broken += 1
                continue
            raise UserError(f"{row.place}: {error}") from None
        if (longest := max(len(text.ids) for text in texts)) > length:
            too_long.append((row.place, longest))
        else:
            kept.append(row)
            tokens.append(texts)
    left.too_long += len(too_long)
    if too_long and not skip_bad_rows:
        place, longest = too_long[0]
        raise UserError(
            f"{place}: a prompt and an answer of {longest:,} tokens, and data.sequence_length={length}. So it is with "
            f"{len(too_long):,} of {len(kept) + len(too_long):,} prompts, the longest of "
            f"{max(size for _, size in too_long):,} tokens. Raise data.sequence_length, or set data.skip_bad_rows, "
            "which leaves them out and counts them."
        )
    return kept, tokens
