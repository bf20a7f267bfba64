"""Rows of a table to the examples of a task: the column map, the labels, and what is wrong with a row."""

import dataclasses
import math
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from gpt_jax.errors import UserError, did_you_mean
from gpt_jax.tasks.examples import (
    Classification,
    Entailment,
    Example,
    Inputs,
    MultipleChoice,
    Similarity,
    Substitution,
)
from gpt_jax.tasks.task import OPTIONAL_ROLES, Task

MOST_LABELS = 1000  # a column with more of them is hardly one of labels


class Row(Protocol):
    """What `gpt_jax.data.tables` yields: column -> value, where it stands ("train.csv, line 17"), its number from 0."""

    fields: Mapping[str, Any]
    place: str
    number: int


@dataclass(frozen=True)
class Reading:
    """The examples of a table.

    unlabelled: rows that were dropped because nobody gave them a label.
    bad: rows that were skipped for what is wrong with them.
    """

    examples: list[Example]
    unlabelled: int
    bad: int


def read_examples(
    rows: Iterable[Row], task: Task, *, labelled: bool = True, skip_bad_rows: bool = False, max_answers: int = 16
) -> Reading:
    """The examples of `task` that `rows` hold, in order.

    Args:
      rows: of one table.
      task: with its labels known; see `with_labels_of`.
      labelled: whether each row must have a label; otherwise none is read, and no id may come twice.
      skip_bad_rows: pass over (and count) rows with something wrong, instead of raising.
      max_answers: the most that a question may have.

    Raises:
      UserError: a missing column, an empty text, an unknown label, a score outside the range, too many answers, each
        with the row's place; an id that comes twice; no examples left.
    """
    examples, unlabelled, bad, first_error = [], 0, 0, None
    place_of_id: dict[str, str] = {}
    for row in rows:
        try:
            inputs = _inputs(row, task, max_answers)
            label = _value(row, task, "label") if labelled else None
            if labelled and _spelled(label) in task.unlabelled:
                unlabelled += 1
                continue
            target = _target(label, row, task, inputs) if labelled else None
        except UserError as error:
            if not skip_bad_rows:
                raise
            first_error = first_error or error
            bad += 1
            continue
        id = _spelled(_value(row, task, "id", default=row.number))
        if not labelled and place_of_id.setdefault(id, row.place) != row.place:
            raise UserError(
                f"{row.place}: the id {id!r} stands at {place_of_id[id]} already, so predictions could not be told "
                "apart. Correct it, or name another column: data.columns.id=NAME."
            )
        examples.append(Example(inputs, target, id, row.place))
    if not examples:
        reason = f" The first that was skipped: {first_error}" if first_error else ""
        raise UserError(
            f"No examples are left: {unlabelled} rows without a label were dropped, {bad} bad ones skipped.{reason}"
        )
    return Reading(examples, unlabelled, bad)


def with_labels_of(task: Task, rows: Iterable[Row]) -> Task:
    """`task` itself if its labels (or its scores' range) are known; else with the labels that the training `rows` show.

    They are sorted, as numbers if all of them are. Of multiple choice, where the label says which answer is right, they
    are the letters from A on, or the numbers from 0 or 1 on.

    Raises:
      UserError: a missing column; a single label; more than `MOST_LABELS`; answers that are called otherwise.
    """
    if task.labels or task.score_range:
        return task
    counts: Counter[str] = Counter()
    missing = None
    for row in rows:
        try:
            label = _spelled(_value(row, task, "label"))
        except UserError as error:
            missing = missing or error
            continue
        if label and label not in task.unlabelled:  # what is empty or missing is reported when the example is read
            counts[task.spellings.get(label, label)] += 1
        if len(counts) > MOST_LABELS:
            raise UserError(
                f"{row.place}: the label {label!r} is the {len(counts):,}th different one. Is column "
                f"{_first_name(task, 'label')!r} that of the labels (data.columns.label=NAME)? For scores set a range."
            )
    if missing and not counts:
        raise missing
    labels = sorted(counts, key=int if all(map(_is_number, counts)) else None)
    if len(labels) < 2:
        raise UserError(
            f"All training examples have the same label ({', '.join(map(repr, labels)) or 'none'}, in column "
            f"{_first_name(task, 'label')!r}). Expected at least two different ones to tell apart."
        )
    if task.kind == "multiple_choice":
        labels = _names_of_answers(labels)
    return dataclasses.replace(task, labels=tuple(labels))


def check_named_answers(examples: Sequence[Example], task: Task) -> None:
    """UserError: an example with more answers than `task`, whose labels are known, has names for."""
    for example in examples:
        answers = getattr(example.inputs, "answers", ()) or getattr(example.inputs, "options", ())
        if len(answers) > len(task.labels):
            raise UserError(
                f"{example.place}: {len(answers)} answers, and there are names for {len(task.labels)}: "
                f"{', '.join(task.labels)}. Correct or delete the row, or name them all: data.labels=(...)."
            )


def check_different_targets(examples: Sequence[Example], task: Task) -> None:
    """UserError: all `examples`, which are for training, have the same label or score, so there is nothing to learn.

    In multiple choice the right answers may all stand first: the model does not see where they stand.
    """
    targets = {example.target for example in examples}
    if len(targets) == 1 and task.kind != "multiple_choice":
        [target] = targets
        name = task.labels[target] if task.labels else target
        raise UserError(
            f"All {len(examples)} training examples have the same {'label' if task.labels else 'score'} {name!r}, the "
            f"last at {examples[-1].place}. Expected at least two different ones to tell apart."
        )


def _names_of_answers(found: list[str]) -> Sequence[str]:
    if all(map(_is_number, found)):
        first, last = int(found[0] != "0"), int(found[-1])
        names = [str(number) for number in range(first, last + 1)]
    else:
        names = list(string.ascii_uppercase[: 1 + max(map(string.ascii_uppercase.find, found))])
    if not set(found) <= set(names):
        raise UserError(
            f"The label column calls the right answers {', '.join(map(repr, found[:8]))}. Expected letters "
            "(A, B, ...) or numbers (from 0 or from 1), or data.labels: how the first, the second ... answer is called."
        )
    return names


def _inputs(row: Row, task: Task, max_answers: int) -> Inputs:
    match task.kind:
        case "classification":
            return Classification(_text(row, task, "text"))
        case "entailment":
            return Entailment(_text(row, task, "premise"), _text(row, task, "hypothesis"))
        case "similarity":
            return Similarity(_text(row, task, "first"), _text(row, task, "second"))
        case "multiple_choice":
            answers = _answers(row, task, "answers", max_answers)
            question = "" if _value(row, task, "question") is None else _text(row, task, "question")
            return MultipleChoice(_text(row, task, "context"), answers, question)
        case "substitution":
            return Substitution(_answers(row, task, "options", max_answers), _text(row, task, "continuation"))


def _answers(row: Row, task: Task, role: str, max_answers: int) -> tuple[str, ...]:
    value = _value(row, task, role)
    if not isinstance(value, list):
        raise UserError(
            f"{row.place}: {_column(row, task, role)!r} holds {type(value).__name__}, and a list of {role} was "
            f"expected. Where each has a column of its own, name them all: data.columns.{role}=ONE+TWO+..."
        )
    while value and value[-1] in (None, ""):  # a table has columns for the most answers that a question has
        value = value[:-1]
    if not 2 <= len(value) <= max_answers:
        raise UserError(
            f"{row.place}: {len(value)} {role}. Expected 2 to {max_answers} (data.max_answers); correct or delete the "
            "row, or set data.skip_bad_rows."
        )
    return tuple(_checked_text(answer, row, f"{role[:-1]} {number}") for number, answer in enumerate(value, 1))


def _text(row: Row, task: Task, role: str) -> str:
    value = _value(row, task, role)
    column = _column(row, task, role)
    if isinstance(value, list):
        return " ".join(_checked_text(part, row, column) for part in value)
    return _checked_text(value, row, column)


def _checked_text(value: Any, row: Row, where: str | None) -> str:
    text = str(value).strip() if isinstance(value, str | int | float) else ""
    if not text:
        problem = "is empty" if value is None or isinstance(value, str) else f"holds {type(value).__name__}, no text"
        raise UserError(f"{row.place}: {where!r} {problem}. Correct or delete the row, or set data.skip_bad_rows.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{row.place}: {where!r} is not valid Unicode: a lone surrogate at character {error.start}. Correct or "
            "delete the row, or set data.skip_bad_rows."
        ) from None
    return text


def _target(value: Any, row: Row, task: Task, inputs: Inputs) -> int | float:
    spelled = _spelled(value)
    if task.score_range:
        return _score(spelled, row, task.score_range)
    allowed = task.labels
    if isinstance(inputs, MultipleChoice | Substitution):
        allowed = allowed[: len(inputs.answers if isinstance(inputs, MultipleChoice) else inputs.options)]
    label = task.spellings.get(spelled, spelled)
    if label not in allowed:
        names = [*allowed, *(spelling for spelling, name in task.spellings.items() if name in allowed)]
        raise UserError(
            f"{row.place}: unknown label {spelled!r} in column {_column(row, task, 'label')!r}."
            f"{did_you_mean(spelled, names)} Expected one of {', '.join(names[:20])}."
        )
    return allowed.index(label)


def _score(spelled: str, row: Row, limits: tuple[float, float]) -> float:
    try:
        score = float(spelled)
    except ValueError:
        score = math.nan
    if not limits[0] <= score <= limits[1]:
        raise UserError(f"{row.place}: the score {spelled!r} is no number from {limits[0]:g} to {limits[1]:g}.")
    return score


def _spelled(value: Any) -> str:
    """A label or an id as text; 1.0, as some programs write an integer, is 1."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "" if value is None else str(value).strip()


def _is_number(label: str) -> bool:
    return label.isascii() and label.removeprefix("-").isdigit()


def _column(row: Row, task: Task, role: str) -> str | None:
    """The first of the role's names that the row has a column for, all parts of it; None: there is none."""
    for name in task.columns.get(role, ()):
        if name in row.fields or ("+" in name and all(part in row.fields for part in name.split("+"))):
            return name
    return None


def _value(row: Row, task: Task, role: str, default: Any = None) -> Any:
    """What the row has for `role`: a list where that is several columns. UserError: there is no such column."""
    name = _column(row, task, role)
    if name is None:
        if role in OPTIONAL_ROLES - task.required:
            return default
        names = " or ".join(dict.fromkeys(map(repr, task.columns[role])))
        raise UserError(
            f"{row.place}: no column {names} for the {role} of a {task.kind} task. There are: "
            f"{', '.join(map(repr, row.fields))}.{did_you_mean(_first_name(task, role), row.fields)} "
            f"Set data.columns.{role}=NAME."
        )
    return row.fields[name] if name in row.fields else [row.fields[part] for part in name.split("+")]


def _first_name(task: Task, role: str) -> str:
    return task.columns[role][0]
