"""Rows of a table to prompts: the template filled in, with solved examples before it where some are asked for."""

import dataclasses
import math
import re
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpt_jax.errors import UserError
from gpt_jax.tasks.published_rows import READERS
from gpt_jax.tasks.reading import Row
from gpt_jax.tasks.templates import PromptedTask, Template

_NO_SPACE_BEFORE = tuple(".,;:!?)")
_LONE_COLUMN = re.compile(r"^\{(\w+)\}$")


@dataclass(frozen=True)
class PromptedExample:
    """An example as texts. Candidate c is `continuations[c]` after `contexts[c]`; what is free-form has one context.

    gold: the numbers of the candidates that are right (mostly one); of a cloze and of what is free-form ().
    answers: of what is free-form, the texts that count as right.
    solved: the whole example with its right answer, for the prompts of others.
    id, place: what its table calls it, and where it stands there, for messages.
    group: what it belongs together with.
    """

    contexts: tuple[str, ...]
    continuations: tuple[str, ...]
    gold: tuple[int, ...]
    answers: tuple[str, ...]
    solved: str
    id: str
    place: str
    group: str = ""

    def after(self, prefix: str) -> "PromptedExample":
        """The same with `prefix` before every context."""
        return dataclasses.replace(self, contexts=tuple(prefix + context for context in self.contexts))


def read_prompts(rows: Iterable[Row], task: PromptedTask, *, shots: bool) -> tuple[list[PromptedExample], Template]:
    """The examples that `rows` hold, in order, and the template that fits the first of them.

    Args:
      shots: whether solved examples will stand before them, where the template makes a difference.

    Raises:
      UserError: a missing column, an empty text, a gold that is no choice; each with the row's place.
    """
    examples: list[PromptedExample] = []
    template = None
    for row in rows:
        template = template or _fitting(row, task.templates(shots), task.name)
        for number, fields in enumerate(_reread(row, template, task.name)):
            own = _Filled(fields, row.place, task.name)
            name = fields.get("id", row.number)
            id = str(name) if template.rows not in ("multirc", "record") else f"{row.number}/{number}"
            examples.append(_example(own, template, id))
    return examples, template


def _fitting(row: Row, layouts: Sequence[Template], task: str) -> Template:
    """The first layout whose columns `row` has. UserError: there is none."""
    problems = []
    for template in layouts:
        try:
            fields = next(iter(_reread(row, template, task)))
        except UserError as error:
            problems.append(str(error))
            continue
        missing = [column for column in template.columns if column not in fields]
        if not missing:
            return template
        problems.append(f"no column {missing[0]!r} ({', '.join(template.columns)} are expected)")
    reasons = "; or ".join(problem.removeprefix(f"{row.place}: ") for problem in dict.fromkeys(problems))
    raise UserError(
        f"{row.place}: not a row of {task}: {reasons}. It has {', '.join(map(repr, row.fields))}. Rename the columns, "
        "or say what they are called: --config.data.template.context=..., with {column} for a column's text."
    )


def _reread(row: Row, template: Template, task: str) -> Iterator[Mapping[str, Any]]:
    if not template.rows:
        yield row.fields
        return
    try:
        yield from READERS[template.rows](row.fields)
    except KeyError as error:
        raise UserError(f"{row.place}: no column {error} as published rows of {task} have it") from None
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        raise UserError(f"{row.place}: not as published rows of {task} are ({error})") from None


class _Filled:
    """A row whose columns fill format strings in."""

    def __init__(self, fields: Mapping[str, Any], place: str, task: str):
        self.fields, self.place, self.task = fields, place, task

    def value(self, column: str) -> Any:
        if column not in self.fields:
            raise UserError(
                f"{self.place}: no column {column!r}, which earlier rows of {self.task} have. Correct or delete it."
            )
        return self.fields[column]

    def text(self, template: str, what: str) -> str:
        """`template` filled in. UserError: a column of it is empty."""
        values = {name: self.value(name) for _, name, _, _ in string.Formatter().parse(template) if name}
        for name, value in values.items():
            if value is None or not str(value).strip() or isinstance(value, float) and math.isnan(value):
                raise UserError(
                    f"{self.place}: the {what} is empty: {value!r} stands in the column {name!r} of {template!r} "
                    f"({self.task}). Correct or delete the row."
                )
        return template.format(**{name: str(value).strip() for name, value in values.items()})

    def texts(self, templates: Sequence[str], what: str) -> tuple[str, ...]:
        """Each filled in; one that is a column alone may be a list, whose texts they then are."""
        found: list[str] = []
        for template in templates:
            lone = _LONE_COLUMN.match(template)
            value = self.value(lone[1]) if lone else None
            if isinstance(value, list | tuple):
                found += [_Filled({lone[1]: item}, self.place, self.task).text(template, what) for item in value]
            else:
                found.append(self.text(template, what))
        return tuple(found)


def _example(own: _Filled, template: Template, id: str) -> PromptedExample:
    group = str(own.value(template.group)) if template.group else ""
    if template.kind == "free_form":
        context, answers = own.text(template.context, "context"), own.texts(template.answers, "answer")
        if not answers:
            raise UserError(f"{own.place}: no answer that would be right. Correct or delete the row.")
        solved = context + _joined(answers[0], template)
        return PromptedExample((context,), (), (), answers, solved, id, own.place, group)
    if template.kind == "cloze":
        context = own.text(template.context, "context")
        continuation = _joined(own.text(template.continuation, "continuation"), template)
        return PromptedExample((context,), (continuation,), (), (), context + continuation, id, own.place, group)
    if template.kind == "partial_evaluation":
        contexts = own.texts(template.options, "option")
        # A published row may say itself what stands between: nothing in "Ann's".
        template = dataclasses.replace(template, separator=own.fields.get("_separator", template.separator))
        continuations = (_joined(own.text(template.continuation, "continuation"), template),) * len(contexts)
        names = contexts
    else:
        names = own.texts(template.choices, "choice")
        contexts = (own.text(template.context, "context"),) * len(names)
        continuations = tuple(_joined(choice, template) for choice in names)
    if len(names) < 2:
        raise UserError(f"{own.place}: {len(names)} choices. Expected at least two. Correct or delete the row.")
    gold = _gold(own, template, names)
    solved = contexts[gold[0]] + continuations[gold[0]]
    return PromptedExample(contexts, continuations, gold, (), solved, id, own.place, group)


def _joined(text: str, template: Template) -> str:
    return text if text.startswith(_NO_SPACE_BEFORE) else template.separator + text


def _gold(own: _Filled, template: Template, names: tuple[str, ...]) -> tuple[int, ...]:
    """Which choices are right."""
    value = own.value(template.gold)
    found = [_number_of(one, own, template, names) for one in (value if isinstance(value, list | tuple) else [value])]
    if not found or None in found or not all(0 <= number < len(names) for number in found):
        known = f"one of {', '.join(template.labels)}" if template.labels else f"0 to {len(names) - 1}, or a choice"
        raise UserError(
            f"{own.place}: {template.gold}={value!r} does not say which of {len(names)} choices is right: expected "
            f"{known}. Correct or delete the row, or set data.template.labels."
        )
    return tuple(found)


def _number_of(value: Any, own: _Filled, template: Template, names: tuple[str, ...]) -> int | None:
    """Which choice `value` means: by its label, its number or its text. UserError: it may be either of two."""
    text, labels = str(value).strip(), [str(label) for label in template.labels]
    if text in labels:
        return labels.index(text)
    by_text = names.index(text) if text in names else None
    by_number = None
    if isinstance(value, bool | int) or text.isdecimal():
        by_number = int(value)
    elif text in ("True", "False", "true", "false") and by_text is None:
        by_number = int(text in ("True", "true"))
    if by_text is None or by_number is None:
        return by_number if by_text is None else by_text
    if 0 <= by_number < len(names) and by_number != by_text:
        raise UserError(
            f"{own.place}: {template.gold}={value!r} is the number of one of the choices {names!r}, "
            "counted from 0, and the text of another. Say what it means by data.template.labels: what that column "
            f"calls the first choice, the second ...; where it is a number, {tuple(map(str, range(len(names))))}."
        )
    return by_text
