"""Prompt templates: how a row of a task's table becomes what a model reads, and what is asked of it.

They are data: `templates.toml` has those of the published tasks, and any field of one can be set from the command line.
"""

import dataclasses
import functools
import string
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gpt_jax.errors import UserError, did_you_mean

Kind = Literal["multiple_choice", "partial_evaluation", "cloze", "free_form"]
Normalisation = Literal["none", "token", "character", "answer_context"]
Comparison = Literal["normalised", "exact"]

# What each kind cannot do without.
NEEDED = {
    "multiple_choice": ("context", "choices", "gold"),
    "partial_evaluation": ("options", "continuation", "gold"),
    "cloze": ("context", "continuation"),
    "free_form": ("context", "answers"),
}
METRICS = {
    "multiple_choice": ("accuracy", "macro_f1", "binary_f1", "group_exact_match"),
    "partial_evaluation": ("accuracy",),
    "cloze": ("accuracy", "perplexity"),
    "free_form": ("exact_match", "f1", "bleu", "rouge1", "rouge2", "rougeL"),
}
NORMALISATIONS = ("none", "token", "character", "answer_context")
COMPARISONS = ("normalised", "exact")
_FILE = Path(__file__).with_name("templates.toml")
_STRUCTURE = ("like", "layouts", "few_shot")  # fields of the file that shape templates, and are in none


@dataclass(frozen=True)
class Template:
    """A prompt template. Format strings name columns in braces; "{choices}" alone may name one that holds a list.

    kind: multiple_choice: which of `choices` follows `context`; partial_evaluation: after which of `options` is
        `continuation` the likeliest; cloze: is `continuation` just what the model says next; free_form: it writes.
    context, choices, options, continuation, answers: format strings; answers are all those that count as right.
    gold: the column that says which is right: its number from 0 (or True/False), its text, or one of `labels`.
    labels: how that column calls the first, the second ... choice; empty: as said.
    normalisation: how choices of different lengths are compared. none: summed log-probabilities; token, character:
        their mean; answer_context: less their log-probability after `answer_context` (GPT-3 §2.4).
    description: what stands before everything.
    separator: between a context and what follows it; none before a point, comma ...
    delimiter: between the examples of a prompt.
    shots_from: where solved examples are drawn from if data.train is not given: "train": it must be; "test": of the
        asked table all but the asked row.
    stop, max_new_tokens, sentences: where what a model writes ends; `sentences`: only so many of its first ones.
    beams, length_penalty: 0 beams: the greedy continuation; else the best beam, by its log-probability over its tokens'
        number to the power of the penalty (GPT-3 §2.4 has 4 beams and 0.6, and does not give its formula).
    comparison: of what is written with the answers. normalised: without case, punctuation and articles, as SQuAD has
        it; exact: as they stand but for spaces around them, where a sign counts (-12).
    metrics: the first is the one that reports show.
    group: the column of what belongs together, for group_exact_match.
    rows: what turns published rows into these columns; see `gpt_jax.tasks.published_rows`.
    """

    kind: Kind
    context: str = ""
    choices: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    continuation: str = ""
    answers: tuple[str, ...] = ()
    gold: str = ""
    labels: tuple[str, ...] = ()
    normalisation: Normalisation = "token"
    answer_context: str = "Answer:"
    description: str = ""
    separator: str = " "
    delimiter: str = "\n\n"
    shots_from: str = "train"
    stop: tuple[str, ...] = ("\n",)
    max_new_tokens: int = 32
    sentences: int = 0
    beams: int = 0
    length_penalty: float = 1.0
    comparison: Comparison = "normalised"
    metrics: tuple[str, ...] = ("accuracy",)
    group: str = ""
    rows: str = ""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that its format strings and its gold name."""
        texts = (self.context, *self.choices, *self.options, self.continuation, *self.answers)
        named = [name for text in texts for _, name, _, _ in string.Formatter().parse(text) if name is not None]
        return tuple(dict.fromkeys([*named, *filter(None, (self.gold, self.group))]))


@dataclass(frozen=True)
class PromptedTask:
    """A task by its templates: one for each layout of its tables, and `few_shot`, the fields that examples change."""

    name: str
    layouts: tuple[Template, ...]
    few_shot: Mapping[str, Any]

    def templates(self, shots: bool) -> tuple[Template, ...]:
        """The layouts of a prompt with solved examples, or of one without."""
        return tuple(dataclasses.replace(one, **self.few_shot) for one in self.layouts) if shots else self.layouts


@functools.cache
def prompted_tasks() -> dict[str, PromptedTask]:
    """Those of `templates.toml`, by name."""
    tables = tomllib.loads(_FILE.read_text(encoding="utf-8"))
    return {name: _task(name, _resolved(name, tables)) for name in tables}


def with_fields(task: PromptedTask, fields: Mapping[str, Any]) -> PromptedTask:
    """`task` with some fields of the user's own, in all layouts.

    Raises:
      UserError: a field that there is not; a value that it cannot have; a kind without what it needs.
    """
    known = {field.name for field in dataclasses.fields(Template)}
    for name in fields:
        if name not in known:
            raise UserError(
                f"data.template.{name}: no such field of a template.{did_you_mean(name, known)} "
                f"There are: {', '.join(sorted(known))}."
            )
    fields = {name: _plain(value) for name, value in fields.items()}
    bases = task.layouts
    if fields.get("kind", bases[0].kind) != bases[0].kind:  # of another kind nothing is left but what is said
        bases = (Template(kind=fields["kind"], metrics=METRICS.get(fields["kind"], ("",))[:1]),)
    layouts = tuple(dataclasses.replace(base, **fields) for base in bases)
    for layout in layouts:
        _check(layout, "data.template")
    return PromptedTask(task.name, layouts, {k: v for k, v in task.few_shot.items() if k not in fields})


def _plain(value: Any) -> Any:
    """A command line's value: \\n is a newline there, and a list a tuple."""
    if isinstance(value, str):
        return value.replace("\\n", "\n")
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value


def _resolved(name: str, tables: Mapping[str, Any]) -> dict[str, Any]:
    own = tables[name]
    return (_resolved(own["like"], tables) | own) if "like" in own else dict(own)


def _task(name: str, table: Mapping[str, Any]) -> PromptedTask:
    base = Template(**{field: _plain_list(value) for field, value in table.items() if field not in _STRUCTURE})
    changes = [{f: _plain_list(v) for f, v in one.items()} for one in table.get("layouts", [{}])]
    layouts = tuple(dataclasses.replace(base, **change) for change in changes)
    for layout in layouts:
        _check(layout, f"{_FILE.name}, {name}")
    return PromptedTask(name, layouts, table.get("few_shot", {}))


def _plain_list(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _check(template: Template, where: str) -> None:
    for field, value, known in (
        ("kind", template.kind, tuple(NEEDED)),
        ("normalisation", template.normalisation, NORMALISATIONS),
        ("shots_from", template.shots_from, ("train", "test")),
        ("comparison", template.comparison, COMPARISONS),
    ):
        if value not in known:
            raise UserError(
                f"{where}.{field}={value!r}.{did_you_mean(str(value), known)} Expected one of {', '.join(known)}."
            )
    if missing := [field for field in NEEDED[template.kind] if not getattr(template, field)]:
        raise UserError(f"{where}: a {template.kind} template needs {' and '.join(missing)}.")
    for metric in template.metrics:
        if metric not in METRICS[template.kind]:
            raise UserError(
                f"{where}.metrics: {metric!r} does not score {template.kind}."
                f"{did_you_mean(metric, METRICS[template.kind])} Expected some of {', '.join(METRICS[template.kind])}."
            )
    if template.kind == "free_form" and (template.max_new_tokens < 1 or "" in template.stop):
        raise UserError(f"{where}: max_new_tokens must be at least 1, and no stop string may be empty.")
    if template.beams < 0:
        raise UserError(f"{where}.beams={template.beams}: expected a number from 1 on, or 0 for none.")
    try:
        columns = template.columns
    except ValueError as error:
        raise UserError(f"{where}: not a format string ({error}). A brace that is meant is written twice.") from None
    if strange := [name for name in columns if not name or name.isdigit()]:
        raise UserError(
            f"{where}: {{{strange[0]}}} names no column: braces hold a column's name, as in {{question}}. A brace "
            "that is meant is written twice."
        )
