"""Ranked answers on the disk: what was answered, how it was ranked, and what of that teaches something."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpt_jax.alignment.questions import Question
from gpt_jax.alignment.rankings import is_comparison, ranks_of_scores
from gpt_jax.alignment.rewards import Episodes, Reward, score
from gpt_jax.disk import write_atomically
from gpt_jax.text.chat_template import Message
from gpt_jax.training.metrics_log import read_rows

Row = dict[str, Any]
TOGETHER = 64  # prompts whose answers are scored at once


@dataclasses.dataclass(frozen=True)
class Candidates:
    """The answers to one prompt, no two of the same text, and of each who gave it (a name for each time).

    `read`: of each answer the prompt as the first who gave it read it, as text and, if it was one to them, as
    conversation; `reference`: the number of the demonstration.
    """

    question: Question
    answers: list[str]
    models: list[list[str]]
    read: list[tuple[str, list[Message] | None]]
    reference: int | None


class Rankings:
    """rankings.jsonl, a line for each prompt that was ranked or skipped; comparisons.jsonl, what of it teaches.

    Both are whole on the disk when `add` returns.
    """

    def __init__(self, workdir: Path, candidates: Sequence[Candidates], *, least: int):
        """Goes on with what an earlier start left. `least`: answers of a prompt that is to be ranked."""
        self._workdir, self._candidates, self._least = workdir, candidates, least
        self.rows: list[Row] = read_rows(workdir / "rankings.jsonl")
        self._write()

    @property
    def prompts(self) -> int:
        """How many there are, ranked or not."""
        return len(self._candidates)

    @property
    def waiting(self) -> list[int]:
        """The prompts with answers enough that are neither ranked nor skipped."""
        done = {row["index"] for row in self.rows}
        return [n for n, one in enumerate(self._candidates) if len(one.answers) >= self._least and n not in done]

    @property
    def alone(self) -> int:
        """How many prompts have fewer than two answers that say something."""
        return sum(sum(map(bool, map(str.strip, one.answers))) < 2 for one in self._candidates)

    @property
    def ties(self) -> list[Row]:
        """The prompts whose one answer nobody had to rank, as rows; only as far as the ranking has come."""
        reached = min(self.waiting, default=self.prompts)
        return [
            {"models": one.models, "ranks": [1]}
            for one in self._candidates[:reached]
            if len(one.answers) == 1 < self._least
        ]

    @property
    def comparisons(self) -> list[Row]:
        """Of the rows that prefer one answer to another what can be learnt: all but empty answers."""
        return [row for row in map(without_empty, self.rows) if is_comparison(row["ranks"])]

    def add(self, found: dict[int, Row]) -> None:
        """What was found out about some prompts: `ranks` of their answers (None: skipped), `ranked_by` and more."""
        for number, told in found.items():
            one = self._candidates[number]
            reference = {} if one.reference is None else {"reference": one.reference}
            self.rows.append(
                {"index": number, "prompt": one.question.prompt, "answers": one.answers, "models": one.models}
                | reference
                | told
            )
        self._write()

    def undo(self) -> int | None:
        """Takes back the last row; returns its prompt's number, None: there was none."""
        if not self.rows:
            return None
        number = self.rows.pop()["index"]
        self._write()
        return number

    def _write(self) -> None:
        for name, rows in (("rankings", self.rows), ("comparisons", self.comparisons)):
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            write_atomically(self._workdir / f"{name}.jsonl", lines.encode())


def without_empty(row: Row) -> Row:
    """A row of rankings.jsonl without its empty answers, which no model can learn to write."""
    kept = [number for number, answer in enumerate(row["answers"]) if answer.strip()]
    if row["ranks"] is None or len(kept) == len(row["answers"]):
        return row
    row = row | {name: [row[name][n] for n in kept] for name in ("answers", "models", "ranks", "scores") if name in row}
    row["ranks"] = ranks_of_scores([-rank for rank in row["ranks"]])
    return row | ({"reference": kept.index(row["reference"])} if "reference" in row else {})


def rank_by_reward(source: str, reward: Reward, candidates: Sequence[Candidates], rankings: Rankings) -> None:
    """Ranks the answers that wait for it by their scores. UserError: a score is none."""
    waiting = rankings.waiting
    names = sorted({name for one in candidates for name in one.question.columns} - {"prompts", "answers"})
    for start in range(0, len(waiting), TOGETHER):
        numbers = waiting[start : start + TOGETHER]
        scores = iter(score(reward, episodes_of([candidates[number] for number in numbers], names), source).tolist())
        found = {}
        for number in numbers:
            own = [next(scores) for _ in candidates[number].answers]
            found[number] = {"ranks": ranks_of_scores(own), "scores": own, "ranked_by": source}
        rankings.add(found)


def episodes_of(candidates: Sequence[Candidates], names: Sequence[str]) -> Episodes:
    """All answers of some prompts, for a reward, with the columns of these names."""
    rows = [one for one in candidates for _ in one.answers]
    columns = {name: [one.question.columns.get(name) for one in rows] for name in names}
    prompts, columns["messages"] = map(list, zip(*(read for one in candidates for read in one.read), strict=True))
    return Episodes(prompts, [answer for one in candidates for answer in one.answers], columns)
