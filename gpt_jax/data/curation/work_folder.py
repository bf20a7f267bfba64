"""What the local runner leaves behind while it works: folders that are whole or not there, so that it can go on.

work/chunks/000012/   records of a chunk of input after the first pass, and what duplicates are found by
work/edges/07.npy     near-duplicates that met in band 7
work/passages/03.npy  repeated passages whose hash leaves 3 when divided
work/shards/00003/    the finished files of a shard
"""

import contextlib
import functools
import io
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from gpt_jax.data.curation import exact_substrings, near_duplicates
from gpt_jax.data.curation.passes import Record, Treatment, shard_of, shingles_of
from gpt_jax.data.curation.reading import Skipped

_OPEN_FILES = 256


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder that becomes `path` when the block ends well; what is in it is on the disk then."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for file in temporary.iterdir():
            with open(file, "rb") as opened:
                os.fsync(opened.fileno())
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def remove_unfinished(work: Path) -> None:
    """Deletes what killed processes left in `work`."""
    for path in work.glob("*/.*"):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Chunk:
    """What the parent process reads of a chunk: lists with an entry for each record, and documents not read.

    `lengths` in characters; `grams` only of records that have some; all in the order of records.jsonl.
    """

    ids: list[str]
    named_by_text: list[bool]
    kept: list[bool]
    scores: list[float]
    lengths: list[int]
    grams: dict[str, list[int]]
    skipped: list[Skipped]


def write_chunk(
    folder: Path, records: Sequence[Record], skipped: Sequence[Skipped], shards: int, treatment: Treatment
) -> None:
    """Writes a chunk whose records stand by (shard, id), so that each shard is one part of the file."""
    by_shard = sorted(records, key=lambda record: (shard_of(record.id, shards), record.id, record.place))
    with open(folder / "records.jsonl", "wb") as file:
        starts = np.zeros(shards + 1, np.int64)
        for record in by_shard:
            starts[shard_of(record.id, shards) + 1] += file.write(json.dumps(record.as_json()).encode() + b"\n")
    save(folder / "shard_starts.npy", np.cumsum(starts))
    if treatment.similarity is not None:
        sets = [shingles_of(record) for record in by_shard if record.kept]
        keys = near_duplicates.band_keys(near_duplicates.signatures(sets))
        save(folder / "keys.npy", np.ascontiguousarray(keys.T))
        _save_lists(folder, "shingles", sets)
    if treatment.passage_words is not None:
        windows = [exact_substrings.windows(record.text, treatment.passage_words) for record in by_shard if record.kept]
        _save_lists(folder, "windows", windows)
    index = Chunk(
        ids=[record.id for record in by_shard],
        named_by_text=[record.named_by_text for record in by_shard],
        kept=[record.kept for record in by_shard],
        scores=[record.score for record in by_shard],
        lengths=[len(record.text) for record in by_shard],
        grams={record.id: record.grams for record in by_shard if record.grams},
        skipped=list(skipped),
    )
    (folder / "index.json").write_text(json.dumps(asdict(index)))


def save(path: Path, array: np.ndarray) -> None:
    """`numpy.save`, but a full disk is an OSError that says so (ndarray.tofile's has no errno)."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    path.write_bytes(buffer.getbuffer())


def _save_lists(folder: Path, name: str, lists: Sequence[np.ndarray]) -> None:
    save(folder / f"{name}.npy", np.concatenate([np.zeros(0, np.uint64), *lists]))
    save(folder / f"{name}_starts.npy", np.cumsum([0, *map(len, lists)]))


def read_lists(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The `name` (shingles or windows) of a chunk's kept records: their starts, and all of them, left on the disk."""
    return np.load(folder / f"{name}_starts.npy"), np.load(folder / f"{name}.npy", mmap_mode="r")


def read_chunk(folder: Path) -> Chunk:
    """What `write_chunk` wrote of its index."""
    values = json.loads((folder / "index.json").read_text())
    return Chunk(**values | {"skipped": [Skipped(**one) for one in values["skipped"]]})


def read_records(folders: Sequence[Path], shard: int) -> list[Record]:
    """The records of a shard, from all chunks, by id."""
    records = []
    for folder in folders:
        start, stop = np.load(folder / "shard_starts.npy")[shard : shard + 2]
        with open(folder / "records.jsonl", "rb") as file:
            file.seek(start)
            records += [Record.from_json(json.loads(line)) for line in file.read(stop - start).splitlines()]
    return sorted(records, key=lambda record: record.id)


def places_of(document_id: str, folder: Path) -> list[str]:
    """Where the documents of this id stand that are in this chunk, for a message."""
    records = map(json.loads, (folder / "records.jsonl").read_bytes().splitlines())
    return [record["place"] for record in records if record["id"] == document_id]


@functools.lru_cache(_OPEN_FILES)
def _shingles(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    return read_lists(folder, "shingles")


def shingles_at(folder: Path, position: int) -> np.ndarray:
    """The shingles of the `position`th kept record of a chunk."""
    starts, values = _shingles(folder)
    return values[starts[position] : starts[position + 1]]
