"""What a curation leaves: shards of documents by source, and shards of decisions, each sorted by id.

A shard holds the documents whose ids have its number as their hash (`passes.shard_of`), so it is the same file whoever
writes it. `jsonl.zst` is what `file:` reads, `array_record` makes a data set that `tfds:` reads.
"""

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import zstandard

from gpt_jax.data.curation.documents import Decision, Document
from gpt_jax.data.curation.passes import Finished, Record, output_documents, second_pass
from gpt_jax.data.curation.provenance import Tally
from gpt_jax.disk import write_atomically
from gpt_jax.errors import UserError

FORMATS = ("jsonl.zst", "array_record")
VERSION = "1.0.0"  # of a data set that TFDS reads
DECISIONS, TALLY = "decisions.jsonl.zst", "tally.json"
_LEVEL = 10


class Writer(Protocol):
    """Takes documents one after the other; `close` completes the file."""

    def write(self, document: Document) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """One object a line, in one zstd stream."""

    def __init__(self, path: Path):
        self._file = open(path, "wb")
        self._packed = zstandard.ZstdCompressor(level=_LEVEL).stream_writer(self._file)

    def write_row(self, row: dict[str, Any]) -> None:
        """Writes one line."""
        self._packed.write((json.dumps(row, ensure_ascii=False) + "\n").encode())

    def write(self, document: Document) -> None:
        """Writes a document as one line."""
        self.write_row({"id": document.id, "source": document.source, "text": document.text})

    def close(self) -> None:
        """Ends the stream."""
        self._packed.close()


class ArrayRecord:
    """Examples of `features()`, as TFDS writes them."""

    def __init__(self, path: Path):
        from array_record.python.array_record_module import ArrayRecordWriter
        from tensorflow_datasets.core.example_serializer import ExampleSerializer

        self._writer = ArrayRecordWriter(str(path), "group_size:1")
        self._serializer = ExampleSerializer(features().get_serialized_info())

    def write(self, document: Document) -> None:
        """Writes a document as an example."""
        values = {"id": document.id, "source": document.source, "text": document.text}
        self._writer.write(self._serializer.serialize_example(features().encode_example(values)))

    def close(self) -> None:
        """Writes the index behind the records."""
        self._writer.close()


def features():
    """The columns of the data set, for TFDS."""
    import tensorflow_datasets as tfds

    return tfds.features.FeaturesDict({name: tfds.features.Text() for name in ("id", "source", "text")})


def write_shard(
    folder: Path,
    records: Iterable[Record],
    duplicates: Mapping[str, Decision],
    grams: np.ndarray,
    output: str,
) -> Tally:
    """The second pass over the records of one shard, and its files in `folder`: SOURCE.jsonl.zst, decisions, tally.

    Args:
      records: sorted by id; copies of one text, which bear one id, stand beside each other.
      duplicates: id -> the decision of the search for near-duplicates.
      grams: as `second_pass` takes them.
      output: one of `FORMATS`.
    """
    writers: dict[str, Writer] = {}
    decisions, tally = JsonLines(folder / DECISIONS), Tally()
    for record, copies in _without_copies(records):
        finished = second_pass(record, duplicates.get(record.id), grams)
        written = output_documents(finished)
        for document in written:
            if document.source not in writers:
                kind = JsonLines if output == "jsonl.zst" else ArrayRecord
                writers[document.source] = kind(folder / f"{document.source}.{output}")
            writers[document.source].write(document)
        decisions.write_row(_decision_row(finished, [copy.place for copy in copies], [one.id for one in written]))
        tally.add(finished)
        for copy in copies:
            tally.add_copy(copy)
    for writer in (*writers.values(), decisions):
        writer.close()
    (folder / TALLY).write_text(json.dumps(tally.as_json()))
    return tally


def _without_copies(records: Iterable[Record]) -> Iterator[tuple[Record, list[Record]]]:
    """Each document once, with its copies: texts without an id of their own that are the same, and so bear one id.

    Which of them goes on changes nothing but the place that is named: the least.
    """
    group: list[Record] = []
    for record in records:
        if group and record.id != group[0].id:
            yield group[0], group[1:]
            group = []
        group = sorted([*group, record], key=lambda one: one.place)
    if group:
        yield group[0], group[1:]


def _decision_row(finished: Finished, copies: list[str], written: list[str]) -> dict[str, Any]:
    record = finished.record
    words, size = record.sizes[0]
    row = {"id": record.id, "source": record.source, "place": record.place, "words": words, "bytes": size}
    if record.score:
        row["score"] = record.score
    decisions = [
        {"stage": one.stage, "kept": one.kept, "reason": one.reason, "numbers": one.numbers} for one in record.decisions
    ]
    return row | {"copies": copies, "decisions": decisions, "written": written}


def read_decisions(file: BinaryIO) -> Iterator[dict[str, Any]]:
    """The rows of a shard of decisions."""
    with zstandard.ZstdDecompressor().stream_reader(file) as packed:
        for line in io.TextIOWrapper(packed, encoding="utf-8", newline="\n"):
            yield json.loads(line)


def final_name(source: str, number: int, shards: int, output: str) -> str:
    """The name, below the folder documents/, of the `number`th of the `shards` files of a source."""
    if output == "jsonl.zst":
        return f"{source}/{number:05}-of-{shards:05}.jsonl.zst"
    return f"{source}/{VERSION}/{source}-train.array_record-{number:05}-of-{shards:05}"


def write_tfds_description(folder: Path, source: str, lengths: list[int], sizes: list[int]) -> None:
    """Beside the shards of a source, what TFDS reads of a data set: dataset_info.json and features.json."""
    import tensorflow_datasets as tfds

    place = folder / source / VERSION
    info = {
        "name": source, "version": VERSION, "fileFormat": "array_record", "moduleName": "gpt_jax",
        "splits": [{
            "name": "train", "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            "shardLengths": [str(length) for length in lengths], "numBytes": str(sum(sizes)),
        }],
    }  # fmt: skip
    write_atomically(place / "dataset_info.json", (json.dumps(info, indent=2) + "\n").encode())
    assert tfds.features  # the module is there: the shards were written with it
    features().save_config(place)


def sha256_of(path: Path) -> str:
    """Hex digest of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_source_name(name: str, output: str) -> None:
    """UserError: a source's name cannot be that of a folder, or for `array_record` of a TFDS data set."""
    if not name or any(c in name for c in "/\\:#\0\n") or name.startswith("."):
        raise UserError(f"sources: {name!r} is no name for a folder: expected letters, digits, - and _.")
    if output == "array_record" and not (name.isidentifier() and name == name.lower()):
        raise UserError(
            f"sources: {name!r} is no name of a TFDS data set, which output.format=array_record writes: expected "
            "small letters, digits and _, first a letter."
        )
