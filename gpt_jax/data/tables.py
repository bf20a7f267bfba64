"""Where labelled examples come from: a short address to a table of rows, read as a stream.

file:PATH-or-glob[,...]              .csv, .tsv, .jsonl, .json, each also .gz, .xz, .zst
race:FOLDER[,...]                    RACE's folders of passages (JSON in .txt files), a row a question
tfds:NAME[/CONFIG]#SPLIT[,...]       TensorFlow Datasets, without TensorFlow; SPLIT may be a slice, `train[:10%]`
books-author#SPLIT                   tasks made of the books, SPLIT train, valid or test (see book_tasks.py);
                                     also books-next, books-same, books-choice
"""

import csv
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from gpt_jax.data.book_tasks import BOOK_TASKS, book_rows
from gpt_jax.data.files import COMPRESSED, blocks, check_encoding, decoded, lines, matching_files, suffix_of
from gpt_jax.data.pieces import is_held_out
from gpt_jax.data.rows import Row
from gpt_jax.errors import UserError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json")
LONGEST_CELL = 2**24  # characters; an opening quote without its closing one ends here at the latest

T = TypeVar("T")


def is_table(address: str) -> bool:
    """Whether `address` names rows, where a text may be named as well; nothing is read."""
    scheme, _, names = address.partition(":")
    return "#" in names if scheme == "tfds" else suffix_of(Path(names.split(",")[0])) in SUFFIXES


class Table:
    """The rows behind an address, in order, read anew at every iteration.

    After a whole iteration, `fingerprint` is a hex digest of all fields of all rows (not of any path, format or time),
    and `skipped` the number of broken lines that were passed over.
    """

    def __init__(self, address: str, rows: Callable[[], Iterator[Row | UserError]], skip_bad_rows: bool):
        self.address = address
        self.fingerprint: str | None = None
        self.skipped = 0
        self._rows = rows
        self._skip_bad_rows = skip_bad_rows

    def __iter__(self) -> Iterator[Row]:
        content = hashlib.sha256()
        count = skipped = 0
        for number, row in enumerate(self._rows()):
            if isinstance(row, UserError):
                if not self._skip_bad_rows:
                    raise row
                skipped += 1
                continue
            content.update(json.dumps(row.fields).encode() + b"\n")
            count += 1
            yield dataclasses.replace(row, number=number)
        if not count:
            broken = f" but {skipped} broken ones, which were skipped" if skipped else ""
            raise UserError(f"{self.address}: there are no rows in it{broken}. Expected at least one example.")
        self.fingerprint, self.skipped = content.hexdigest(), skipped


def open_table(
    address: str,
    *,
    encoding: str = "utf-8",
    header: Sequence[str] | None = None,
    quotes: bool | None = None,
    skip_bad_rows: bool = False,
) -> Table:
    """The table behind `address`.

    Args:
      address: see the module's docstring.
      encoding: of files.
      header: the names of the columns of csv and tsv files whose first line is already a row.
      quotes: whether a quotation mark at the beginning of a cell encloses it, as csv files do and the tsv files of
        GLUE do not; None: in csv files only.
      skip_bad_rows: pass over (and count) lines that cannot be read, instead of raising.

    Raises:
      UserError: an unknown address, encoding or suffix, a missing file. While it is read: a line that is broken, with
        its file and number; a table without rows.
    """
    check_encoding(encoding)
    scheme, _, names = address.partition(":")
    if scheme == "file" and names:
        files = matching_files(names, example="*.csv")
        readers = [_file_reader(path, encoding, header, quotes) for path in files]
    elif scheme == "race" and names:
        readers = [lambda path=path: _race_rows(path, encoding) for path in _race_files(names)]
    elif scheme == "tfds" and names:
        readers = [lambda name=name: _tfds_rows(name.strip()) for name in names.split(",")]
    elif address.partition("#")[0] in BOOK_TASKS:
        readers = [lambda: book_rows(address)]
    else:
        raise UserError(
            f"{address!r} is no known address of labelled examples. Expected file:PATH (or file:FOLDER/*.csv), "
            f"race:FOLDER, tfds:NAME[/CONFIG]#SPLIT, or one of {', '.join(BOOK_TASKS)} with #train, #valid or #test."
        )
    return Table(address, lambda: (row for reader in readers for row in reader()), skip_bad_rows)


def split_held_out(items: Iterable[T], text: Callable[[T], str], fraction: float) -> tuple[list[T], list[T]]:
    """(train, held out), by a hash of `text(item)`: items of the same text stay on one side, and order plays no part.

    UserError: one side is empty.
    """
    sides: tuple[list[T], list[T]] = ([], [])
    for item in items:
        sides[is_held_out(text(item), fraction)].append(item)
    if not all(sides):
        raise UserError(
            f"data.validation_fraction={fraction} leaves {len(sides[0])} examples for training and {len(sides[1])} to "
            "validate on. Set another share between 0 and 1, or name validation examples of their own."
        )
    return sides


# --- files


def _file_reader(
    path: Path, encoding: str, header: Sequence[str] | None, quotes: bool | None
) -> Callable[[], Iterator[Row | UserError]]:
    suffix = suffix_of(path)
    if suffix not in SUFFIXES:
        raise UserError(
            f"Cannot tell what {path} holds from its name. Known: {', '.join(SUFFIXES)}, each also with "
            f"{', '.join(COMPRESSED)} behind. Rename the file."
        )
    if suffix == ".jsonl":
        return lambda: _json_lines(path, encoding)
    if suffix == ".json":
        return lambda: _json_list(path, encoding)
    quotes = suffix == ".csv" if quotes is None else quotes
    return lambda: _separated_values(path, encoding, "," if suffix == ".csv" else "\t", header, quotes)


def _text(path: Path, encoding: str) -> Iterator[str]:
    return decoded(path, blocks(path), encoding)


def _json_lines(path: Path, encoding: str) -> Iterator[Row | UserError]:
    for number, line in enumerate(lines(_text(path, encoding)), 1):
        if line.strip():
            yield _json_row(line, f"{path}, line {number}")


def _json_row(line: str, place: str) -> Row | UserError:
    try:
        record = json.loads(line)
    except ValueError as error:
        return UserError(
            f"{place}: not JSON ({error}). A .jsonl file holds one object a line; correct or delete the line, "
            "or set data.skip_bad_rows."
        )
    return _object_row(record, place)


def _object_row(record: Any, place: str) -> Row | UserError:
    if not isinstance(record, dict):
        return UserError(
            f"{place}: a JSON {type(record).__name__} where an object with the example's fields was expected. "
            "Correct or delete it, or set data.skip_bad_rows."
        )
    return Row(record, place)


def _json_list(path: Path, encoding: str) -> Iterator[Row | UserError]:
    try:
        records = json.loads("".join(_text(path, encoding)))
    except ValueError as error:
        hint = " If it holds one object a line, rename it to .jsonl." if "Extra data" in str(error) else ""
        raise UserError(f"{path}: not JSON ({error}).{hint}") from None
    if not isinstance(records, list):
        raise UserError(f"{path}: a JSON {type(records).__name__}. Expected a list of objects, one an example.")
    for number, record in enumerate(records, 1):
        yield _object_row(record, f"{path}, item {number}")


def _separated_values(
    path: Path, encoding: str, delimiter: str, header: Sequence[str] | None, quotes: bool
) -> Iterator[Row | UserError]:
    csv.field_size_limit(LONGEST_CELL)
    reader = csv.reader(
        (line + "\n" for line in lines(_text(path, encoding))),
        delimiter=delimiter,
        quoting=csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE,
        strict=True,
    )
    names = _checked_header(header, path) if header else None
    while True:
        place = f"{path}, line {reader.line_num + 1}"  # a row may go over several lines; this is its first
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield UserError(
                f"{place}: not a row of {'csv' if delimiter == ',' else 'tsv'} ({error}). Look for a quotation mark "
                "that does not close; correct or delete the row, or set data.skip_bad_rows."
            )
            continue
        if not any(cells):
            continue
        if names is None:
            names = _checked_header(cells, path)
        elif len(cells) == len(names):
            yield Row(dict(zip(names, cells, strict=True)), place)
        else:
            yield UserError(
                f"{place}: {len(cells)} cells, and there are {len(names)} columns ({', '.join(names)}). "
                "Correct or delete the row, or set data.skip_bad_rows."
            )


def _checked_header(cells: Sequence[str], path: Path) -> list[str]:
    names = [cell.strip() for cell in cells]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(
            f"{path}: its first row is taken for the names of the columns, and {', '.join(map(repr, twice))} stands "
            "there more than once. Put a row with the columns' names first."
        )
    return names


# --- RACE


def _race_files(folders: str) -> list[Path]:
    files = []
    for folder in folders.split(","):
        path = Path(folder.strip()).expanduser()
        found = sorted(path.rglob("*.txt"), key=lambda file: (file.parent, len(file.name), file.name))  # 2 before 10
        if not found:
            raise UserError(
                f"race:{folder}: no .txt files there (looked in {path.absolute()}). Expected a folder of RACE such as "
                "RACE/train/middle, with a passage a file."
            )
        files += found
    return files


def _race_rows(path: Path, encoding: str) -> Iterator[Row | UserError]:
    try:
        passage = json.loads("".join(_text(path, encoding)))
    except ValueError as error:
        yield UserError(f"{path}: not JSON ({error}). Each file of RACE holds one object; restore or delete the file.")
        return
    yield from _questions(passage, str(path))


def _questions(passage: Any, place: str) -> Iterator[Row | UserError]:
    """A row of article, question, options, answer and id for each question that a passage of RACE asks."""
    try:
        article, name = passage["article"], passage.get("id") or place
        asked = list(zip(passage["questions"], passage["options"], passage["answers"], strict=True))
    except (KeyError, TypeError, ValueError, AttributeError):
        yield UserError(
            f"{place}: not a passage of RACE. Expected an object with article, and questions, options and answers of "
            "the same length."
        )
        return
    for number, (question, options, answer) in enumerate(asked, 1):
        fields = {"article": article, "question": question, "options": options, "answer": answer}
        yield Row(fields | {"id": f"{name}/{number}"}, f"{place}, question {number}")


# --- TensorFlow Datasets


def _tfds_rows(name_and_split: str) -> Iterator[Row | UserError]:
    from gpt_jax.data.tfds_source import prepared  # TFDS takes seconds to import

    name, _, split = name_and_split.partition("#")
    builder = prepared(name)
    if not split or split.partition("[")[0] not in builder.info.splits:
        raise UserError(
            f"tfds:{name_and_split}: no such split. Expected tfds:{name}#SPLIT, with one of the splits "
            f"{', '.join(builder.info.splits)}."
        )
    features = builder.info.features
    for number, record in enumerate(builder.as_data_source(split=split)):
        place = f"tfds:{name_and_split}, example {number}"
        fields = {field: _plain(value, features[field]) for field, value in record.items()}
        yield Row(fields, place)


def _plain(value: Any, feature: Any) -> Any:
    """What JSON knows instead of NumPy's values; a class by its name, or as "-1" where it is not given."""
    names = getattr(feature, "names", None)
    if names is not None and np.ndim(value) == 0:
        return names[int(value)] if value >= 0 else str(int(value))
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, np.ndarray | list | tuple):
        return [_plain(item, None) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item, None) for key, item in value.items()}
    return value.item() if isinstance(value, np.generic) else value
