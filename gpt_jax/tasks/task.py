"""What a task is: its kind, the columns of its tables, its labels, how it is scored, and where it is got."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from gpt_jax.errors import UserError, did_you_mean

Kind = Literal["classification", "entailment", "similarity", "multiple_choice", "substitution"]

# The roles that columns play, by kind of task; beside them "label" and "id".
TEXT_ROLES: dict[Kind, tuple[str, ...]] = {
    "classification": ("text",),
    "entailment": ("premise", "hypothesis"),
    "similarity": ("first", "second"),
    "multiple_choice": ("context", "question", "answers"),
}
# The same of kinds that are evaluated, and not learnt: there is no input transformation for them.
ZERO_SHOT_ROLES: dict[Kind, tuple[str, ...]] = {"substitution": ("options", "continuation")}
OPTIONAL_ROLES = frozenset({"question", "id"})


@dataclass(frozen=True)
class Task:
    """A task.

    columns: role -> the names that its column may have, of which the first that a row has is read. NAME+NAME+... are
        several columns: texts to be joined by a space, or the answers. Roles: those of the kind, label, id.
    labels: the classes in the order of their numbers; of multiple choice, how the answers are called in the label
        column, the first answer's name first. Empty: found in the training rows, or a score.
    score_range: the lowest and the highest score where the target is a number and no label.
    spellings: how tables write labels that `labels` calls otherwise: {"1": "positive"}.
    unlabelled: what stands in the label column of rows that have no label; they are dropped and counted.
    metrics: names in `gpt_jax.tasks.metrics.METRICS`; the first decides which epoch is best.
    paper: split -> GPT-1's score by the first metric, times 100.
    files: split -> path inside the official release's folder, maybe a pattern; `scheme` says how they are read.
    headers: split -> names of the columns of files that have no line with them.
    skip_bad_rows: whether the official release is known to hold broken lines.
    addresses: split -> address of a table that needs no folder: the books', and TensorFlow Datasets' where it has it.
    submissions: split -> name of the file that the benchmark's server expects.
    origin: where the official release is got.
    required: optional roles that the user named a column for, so that it must be there.
    """

    name: str
    kind: Kind
    metrics: tuple[str, ...]
    columns: Mapping[str, tuple[str, ...]]
    labels: tuple[str, ...] = ()
    score_range: tuple[float, float] | None = None
    spellings: Mapping[str, str] = field(default_factory=dict)
    unlabelled: tuple[str, ...] = ()
    paper: Mapping[str, float] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    scheme: str = "file"
    headers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    skip_bad_rows: bool = False
    addresses: Mapping[str, str] = field(default_factory=dict)
    submissions: Mapping[str, str] = field(default_factory=dict)
    origin: str = ""
    required: frozenset[str] = frozenset()

    @property
    def roles(self) -> tuple[str, ...]:
        """All roles that a column may play here."""
        return (*(TEXT_ROLES | ZERO_SHOT_ROLES)[self.kind], "label", "id")

    def with_columns(self, columns: Mapping[str, str]) -> "Task":
        """The same task for tables in which the columns are called otherwise: role -> name. UserError: unknown role."""
        for role in columns:
            if role not in self.roles:
                raise UserError(
                    f"data.columns.{role}: a {self.kind} task has no such column.{did_you_mean(role, self.roles)} "
                    f"It has {', '.join(self.roles)}."
                )
        names = {role: (name,) for role, name in columns.items()}
        return dataclasses.replace(
            self, columns={**self.columns, **names}, required=self.required | (OPTIONAL_ROLES & columns.keys())
        )

    def tables(self, folder: str | Path | None = None) -> dict[str, str]:
        """split -> address of its table: in the official release in `folder`, or where it is got without one.

        A test split that is not in the folder is left out.

        Raises:
          UserError: the folder lacks the training or the validation file; no folder, and it cannot be got without.
        """
        if not self.files and not self.addresses:
            raise UserError(
                f"data.task={self.name}: a task of your own needs its tables named: file:PATH (csv, tsv, jsonl, json)."
            )
        if folder is None or not self.files:
            if not self.addresses:
                raise UserError(
                    f"data.task={self.name}: TensorFlow Datasets does not have it. Get the official release "
                    f"({self.origin}) and name its folder, which holds {', '.join(self.files.values())}; or name your "
                    "own files (csv, tsv, jsonl, json)."
                )
            return dict(self.addresses)
        found = {}
        for split, name in self.files.items():
            if any(Path(folder).expanduser().glob(name)):
                found[split] = f"{self.scheme}:{Path(folder) / name}"
            elif not split.startswith("test"):
                raise UserError(
                    f"data.task={self.name}: {folder} holds no {name}. Expected the folder of the official release "
                    f"({self.origin}) with {', '.join(self.files.values())}."
                )
        return found

    def submission_tables(self, folder: str | Path) -> dict[str, str]:
        """split -> address of its table in the official release in `folder`, of the splits that `submissions` has.

        Raises:
          UserError: one of them is not there.
        """
        names = {split: self.files[split] for split in self.submissions}
        for name in names.values():
            if not (Path(folder).expanduser() / name).is_file():
                raise UserError(
                    f"{folder} holds no {name}. Expected the folder of the official release of {self.name} "
                    f"({self.origin}) with {', '.join(names.values())}."
                )
        return {split: f"{self.scheme}:{Path(folder) / name}" for split, name in names.items()}

    def submission_label(self, label: str) -> str:
        """How the official release writes `label`."""
        return next((spelling for spelling, name in self.spellings.items() if name == label), label)
