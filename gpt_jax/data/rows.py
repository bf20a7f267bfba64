"""A row of a table of labelled examples."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """One example as its table has it.

    fields: column -> value; text from csv and tsv, whatever JSON has from the others.
    place: where it stands, for messages: "train.csv, line 17".
    number: counted from 0 over all rows of the table, broken ones too.
    """

    fields: Mapping[str, Any]
    place: str
    number: int = 0
