"""What a curation leaves: shards of documents by source, and shards of decisions.

Each is sorted by the ids of the documents as they were read; the pieces of one that was cut stand beside each other, in
the order of its text. A shard holds the documents whose ids have its number as their hash (`passes.shard_of`), so it is
the same file whoever writes it. `jsonl.zst` is what `file:` reads, `array_record` makes a data set that `tfds:` reads.
"""

import collections
import hashlib
import io
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import zstandard

from gpt_jax.data.curation.documents import Document
from gpt_jax.data.curation.passes import Finished, Record, Treatment, Verdict, output_documents, second_pass
from gpt_jax.data.curation.provenance import Tally
from gpt_jax.disk import write_atomically
from gpt_jax.errors import UserError

FORMATS = ("jsonl.zst", "array_record")
VERSION = "1.0.0"  # of a data set that TFDS reads
DECISIONS, FACTS = ".decisions.jsonl.zst", "facts.json"  # with a dot: no source is called so
_LEVEL = 3  # zstd: eight times as fast as 10, a tenth larger


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


@dataclass(frozen=True)
class ShardFacts:
    """What a shard holds. `files`: {name: {"rows", "bytes", "sha256"}} of its decisions and of each source."""

    tally: dict[str, Any]
    files: dict[str, dict[str, Any]]

    def to_json(self) -> bytes:
        """For the file `FACTS` beside them."""
        return json.dumps({"tally": self.tally, "files": self.files}).encode()

    @classmethod
    def from_json(cls, data: bytes) -> "ShardFacts":
        """What `to_json` gave."""
        return cls(**json.loads(data))


def features():
    """The columns of the data set, for TFDS."""
    import tensorflow_datasets as tfds

    return tfds.features.FeaturesDict({name: tfds.features.Text() for name in ("id", "source", "text")})


def write_shard(
    folder: Path,
    records: Iterable[Record],
    verdicts: Mapping[str, Verdict],
    grams: np.ndarray,
    treatment: Treatment,
    output: str,
) -> None:
    """The second pass over the records of one shard, and its files in `folder`: SOURCE.jsonl.zst, decisions, `FACTS`.

    Args:
      records: sorted by id; copies of one text, which bear one id, stand beside each other.
      verdicts: by id, of those documents that have one.
      grams: as `second_pass` takes them.
      output: one of `FORMATS`.
    """
    writers: dict[str, Writer] = {DECISIONS: JsonLines(folder / DECISIONS)}
    tally, rows = Tally(), collections.Counter()
    for record, copies in _without_copies(records):
        finished = second_pass(record, verdicts.get(record.id, Verdict()), grams, treatment)
        written = output_documents(finished)
        for document in written:
            name = f"{document.source}.{output}"
            if name not in writers:
                writers[name] = (JsonLines if output == "jsonl.zst" else ArrayRecord)(folder / name)
            writers[name].write(document)
            rows[name] += 1
        copied = [copy.place for copy in copies]
        writers[DECISIONS].write_row(_decision_row(finished, copied, [document.id for document in written]))
        rows[DECISIONS] += 1
        tally.add(finished)
        for copy in copies:
            tally.add_copy(copy)
    for writer in writers.values():
        writer.close()
    files = {
        name: {"rows": rows[name], "bytes": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)}
        for name in writers
    }
    (folder / FACTS).write_bytes(ShardFacts(tally.as_json(), files).to_json())


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


@dataclass(frozen=True)
class Move:
    """A finished file: that of shard `shard` called `name` becomes `target` in the workdir. facts: as in ShardFacts."""

    shard: int
    name: str
    target: str
    facts: dict[str, Any]


def moves_of(facts: Sequence[ShardFacts], source: str, output: str) -> list[Move]:
    """The files of a source under their final names, which number those shards that have any of it."""
    name = f"{source}.{output}"
    own = [(number, one.files[name]) for number, one in enumerate(facts) if name in one.files]
    if output == "jsonl.zst":
        pattern = "documents/{0}/{1:05}-of-{2:05}.jsonl.zst"
    else:
        pattern = "documents/{0}/" + VERSION + "/{0}-train.array_record-{1:05}-of-{2:05}"
    return [
        Move(shard, name, pattern.format(source, number, len(own)), facts) for number, (shard, facts) in enumerate(own)
    ]


class Store(Protocol):
    """Where the finished files are, and go. `place` names it where it is not the workdir."""

    place: str | None

    def publish(self, moves: Sequence[Move]) -> None:
        """Puts files under their final names; those that an earlier start put there stay."""

    def put(self, files: Mapping[str, bytes]) -> None:
        """Writes small files under their final names."""

    def clear(self) -> None:
        """Removes what is needed no longer."""


class LocalStore:
    """The workdir as `Store`."""

    place = None

    def __init__(self, workdir: Path):
        self._workdir = workdir

    def publish(self, moves: Sequence[Move]) -> None:
        """Renames files."""
        for move in moves:
            made = shard_folder(self._workdir / "work", move.shard) / move.name
            if made.exists():
                (self._workdir / move.target).parent.mkdir(parents=True, exist_ok=True)
                made.replace(self._workdir / move.target)

    def put(self, files: Mapping[str, bytes]) -> None:
        """Writes each whole or not at all."""
        for name, content in files.items():
            write_atomically(self._workdir / name, content)

    def clear(self) -> None:
        """Removes work/."""
        shutil.rmtree(self._workdir / "work")


def shard_folder(work: Path, number: int) -> Path:
    """Where the files of a shard are until all is done."""
    return work / "shards" / f"{number:05}"


def decision_moves(facts: Sequence[ShardFacts]) -> list[Move]:
    """The shards of decisions under their final names."""
    return [
        Move(shard, DECISIONS, decisions_name(shard, len(facts)), one.files[DECISIONS])
        for shard, one in enumerate(facts)
    ]  # fmt: skip


def decisions_name(shard: int, shards: int) -> str:
    """The path of a shard of decisions in the workdir."""
    return f"decisions/{shard:05}-of-{shards:05}.jsonl.zst"


def tfds_files(source: str, moves: Sequence[Move]) -> dict[str, bytes]:
    """What TFDS reads beside the shards of a data set: {path in the workdir: content}."""
    from google.protobuf import json_format

    info = {
        "name": source, "version": VERSION, "fileFormat": "array_record", "moduleName": "gpt_jax",
        "splits": [{
            "name": "train", "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            "shardLengths": [str(move.facts["rows"]) for move in moves],
            "numBytes": str(sum(move.facts["bytes"] for move in moves)),
        }],
    }  # fmt: skip
    contents = {"dataset_info.json": info, "features.json": json_format.MessageToDict(features().to_proto())}
    return {
        f"documents/{source}/{VERSION}/{name}": (json.dumps(content, indent=2) + "\n").encode()
        for name, content in contents.items()
    }


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
