"""Curation on all cores of one machine: steps over files, each of which a killed run goes on with.

1. chunks: the first pass over each chunk of the input, as it is read;
2. edges: for each band, the documents that meet in it, compared;
3. passages, if asked for: for each part of the hashes, the runs of words that stand in several documents;
4. verdicts: clusters of near-duplicates, and grams that are common speech; quick, and made anew by every start;
5. shards: the second pass, and the files.

Which document is in which chunk changes nothing that comes out. Memory: a few chunks for each worker in step 1, in step
2 the keys of a band for each worker (16 bytes a document), in step 3 a part of the hashes for each (a word is 40 bytes
in one of 16 parts), in step 4 the ids (some 200 bytes a document), in step 5 a shard for each worker; never pairs of
documents, but those that are near-duplicates indeed.
"""

import collections
import io
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpt_jax.data.curation import exact_substrings, near_duplicates
from gpt_jax.data.curation.documents import Decision
from gpt_jax.data.curation.passes import (
    Treatment,
    Verdict,
    duplicate_decisions,
    equal_ids,
    first_pass,
    shard_of,
    uncommon,
)
from gpt_jax.data.curation.reading import (
    Format,
    InputFile,
    Raw,
    Skipped,
    bytes_to_read,
    chunks,
    parse_chunk,
    raw_of_files,
)
from gpt_jax.data.curation.shards import FACTS, ShardFacts, shard_folder, write_shard
from gpt_jax.data.curation.work_folder import (
    new_folder,
    places_of,
    read_chunk,
    read_lists,
    read_records,
    remove_unfinished,
    save,
    shingles_at,
    write_chunk,
)
from gpt_jax.data.curation.workers import Workers, shared
from gpt_jax.disk import write_atomically
from gpt_jax.progress import byte_progress, task_progress

PASSAGE_PARTS = 16
EDGE = np.dtype([("a", np.int64), ("b", np.int64), ("similarity", np.float64)])
PASSAGE = np.dtype([("rank", np.int64), ("window", np.int64), ("mark", np.uint8)])


@dataclass(frozen=True)
class Job:
    """What every worker is told once. `output`: one of `shards.FORMATS`."""

    work: Path
    form: Format
    treatment: Treatment
    shards: int
    output: str


def run(
    files: Sequence[InputFile], job: Job, *, workers: int, chunk_bytes: int
) -> tuple[list[ShardFacts], list[Skipped]]:
    """Makes a folder of each shard (`shard_folder`); returns what is in them, and what could not be read.

    UserError: what is wrong with the files; an id that two documents have; a worker that was killed.
    """
    remove_unfinished(job.work)
    for step in ("chunks", "edges", "passages", "shards"):
        (job.work / step).mkdir(parents=True, exist_ok=True)
    with Workers(workers, job) as pool:
        folders = _make_chunks(files, job, pool, chunk_bytes)
        index = _Index(folders)
        save(job.work / "ranks.npy", index.ranks)
        duplicates = _find_duplicates(job, index, folders, pool)
        passages = _find_passages(job, index, duplicates, folders, pool)
        save(job.work / "grams.npy", _uncommon_grams(job.treatment, index, duplicates))
        _write_verdicts(job, index, duplicates, passages)
        shards = [shard_folder(job.work, number) for number in range(job.shards)]
        tasks = [(number, folder, folders) for number, folder in enumerate(shards) if not folder.exists()]
        for _ in task_progress("Writing shards", pool.map(_write_shard, tasks), len(tasks)):
            pass
    facts = [ShardFacts.from_json((folder / FACTS).read_bytes()) for folder in shards]
    return facts, [one for chunk in index.chunks for one in chunk.skipped]


# --- 1. chunks


def _make_chunks(files: Sequence[InputFile], job: Job, pool: Workers, chunk_bytes: int) -> list[Path]:
    done = job.work / "chunks.json"
    if not done.exists():
        with byte_progress("Reading and treating documents", bytes_to_read(files)) as advance:
            raws = raw_of_files(files, job.form, advance=advance)
            count = 0

            def tasks() -> Iterator[tuple[Path, list[Raw]]]:
                nonlocal count
                for count, chunk in enumerate(chunks(raws, chunk_bytes), 1):
                    folder = _chunk_folder(job.work, count - 1)
                    if not folder.exists():
                        yield folder, chunk

            collections.deque(pool.map(_make_chunk, tasks()), maxlen=0)
        write_atomically(done, json.dumps(count).encode())
    return [_chunk_folder(job.work, number) for number in range(json.loads(done.read_bytes()))]


def _chunk_folder(work: Path, number: int) -> Path:
    return work / "chunks" / f"{number:06}"


def _make_chunk(task: tuple[Path, list[Raw]]) -> None:
    folder, raws = task
    job: Job = shared()
    documents, skipped = parse_chunk(raws, job.form)
    records = first_pass(documents, job.treatment)
    with new_folder(folder) as new:
        write_chunk(new, records, skipped, job.shards, job.treatment)


# --- 2. edges


class _Index:
    """All chunks together. Documents that are kept so far stand in the order of their ids: their ranks are 0, 1, ...

    Attributes:
      starts: the place among all kept records at which each chunk's begin, and the end.
      ranks: int64 [kept records], in the order of the chunks; -1 for a further copy of a text that is there already.
      names: ids by rank; facts: (score, characters) by rank.
    """

    def __init__(self, folders: Sequence[Path]):
        """UserError: two documents of their own id have the same."""
        self.chunks = [read_chunk(folder) for folder in folders]
        self._refuse_equal_ids(folders)
        kept = [
            (name, score, length)
            for chunk in self.chunks
            for name, keep, score, length in zip(chunk.ids, chunk.kept, chunk.scores, chunk.lengths, strict=True)
            if keep
        ]
        self.starts = np.cumsum([0, *(sum(chunk.kept) for chunk in self.chunks)])
        self.ranks = np.full(len(kept), -1, np.int64)
        self.names: list[str] = []
        self.facts: list[tuple[float, int]] = []
        for place in sorted(range(len(kept)), key=lambda place: kept[place][0]):
            name, *facts = kept[place]
            if not self.names or self.names[-1] != name:
                self.ranks[place] = len(self.names)
                self.names.append(name)
                self.facts.append(tuple(facts))

    def _refuse_equal_ids(self, folders: Sequence[Path]) -> None:
        first: dict[str, Path] = {}
        again: list[str] = []
        for folder, chunk in zip(folders, self.chunks, strict=True):
            for name, by_text in zip(chunk.ids, chunk.named_by_text, strict=True):
                if not by_text:
                    again += [name] if name in first else []
                    first.setdefault(name, folder)
        if again:
            places = itertools.chain.from_iterable(places_of(min(again), folder) for folder in folders)
            raise equal_ids(min(again), list(itertools.islice(places, 2)), len(again))


def _edges_file(work: Path, band: int) -> Path:
    return work / "edges" / f"{band:02}.npy"


def _find_duplicates(job: Job, index: "_Index", folders: list[Path], pool: Workers) -> dict[str, Decision]:
    """The decision about every document that has a near-duplicate."""
    if job.treatment.similarity is None or not folders:
        return {}
    tasks = [(band, folders, index.starts) for band in range(near_duplicates.BANDS)]
    todo = [task for task in tasks if not _edges_file(job.work, task[0]).exists()]
    for _ in task_progress("Comparing documents that met in a band", pool.map(_find_edges, todo), len(todo)):
        pass
    found = np.concatenate([np.load(_edges_file(job.work, band)) for band in range(near_duplicates.BANDS)])
    edges = [(index.names[a], index.names[b], similarity) for a, b, similarity in np.unique(found).tolist()]
    ranks = np.unique(np.concatenate([found["a"], found["b"]])).tolist()
    return duplicate_decisions(edges, {index.names[rank]: index.facts[rank] for rank in ranks})


def _find_edges(task: tuple[int, list[Path], np.ndarray]) -> None:
    band, folders, starts = task
    job: Job = shared()
    keys = np.concatenate([np.load(folder / "keys.npy", mmap_mode="r")[band] for folder in folders])
    ranks = np.load(job.work / "ranks.npy")

    def shingles_of_rank(place: int) -> np.ndarray:
        chunk = int(np.searchsorted(starts, place, "right")) - 1
        return shingles_at(folders[chunk], place - int(starts[chunk]))

    order = np.lexsort((ranks, keys))
    order = order[ranks[order] >= 0]
    edges: list[tuple[int, int, float]] = []
    for bucket in np.split(order, np.flatnonzero(np.diff(keys[order])) + 1):
        if len(bucket) > 1:
            members = [(int(ranks[place]), shingles_of_rank(int(place))) for place in bucket]
            edges += near_duplicates.bucket_edges(members, job.treatment.similarity)
    _save(_edges_file(job.work, band), np.array(edges, EDGE))


def _save(path: Path, array: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.save(buffer, array)
    write_atomically(path, buffer.getvalue())


# --- 3. passages


def _passages_file(work: Path, part: int) -> Path:
    return work / "passages" / f"{part:02}.npy"


def _find_passages(
    job: Job, index: "_Index", duplicates: Mapping[str, Decision], folders: list[Path], pool: Workers
) -> np.ndarray:
    """The windows that stand in several places of the documents that are left; PASSAGE [n], by rank."""
    if job.treatment.passage_words is None or not folders:
        return np.zeros(0, PASSAGE)
    dropped = [rank for rank, name in enumerate(index.names) if name in duplicates and not duplicates[name].kept]
    save(job.work / "survivors.npy", np.where(np.isin(index.ranks, dropped), -1, index.ranks))
    tasks = [(part, folders, index.starts) for part in range(PASSAGE_PARTS)]
    todo = [task for task in tasks if not _passages_file(job.work, task[0]).exists()]
    for _ in task_progress("Looking for passages that repeat", pool.map(_mark_passages, todo), len(todo)):
        pass
    found = [np.load(_passages_file(job.work, part)) for part in range(PASSAGE_PARTS)]
    return np.sort(np.concatenate(found), order=["rank", "window"])


def _mark_passages(task: tuple[int, list[Path], np.ndarray]) -> None:
    part, folders, starts = task
    job: Job = shared()
    survivors = np.load(job.work / "survivors.npy")
    hashes, places = [], []
    for folder, first in zip(folders, starts[:-1], strict=True):
        own, values = read_lists(folder, "windows")
        document = np.repeat(np.arange(len(own) - 1), np.diff(own))
        window = np.arange(len(values)) - own[document]
        rank = survivors[first + document]
        here = (values % np.uint64(PASSAGE_PARTS) == part) & (rank >= 0)
        hashes.append(values[here])
        places.append(np.stack([rank[here], window[here]]))
    hashes, (rank, window) = np.concatenate(hashes), np.concatenate(places, axis=1)
    order = np.lexsort((window, rank))
    marks = exact_substrings.mark(hashes[order])
    found = np.zeros(len(order), PASSAGE)
    found["rank"], found["window"], found["mark"] = rank[order], window[order], marks
    _save(_passages_file(job.work, part), found[marks != exact_substrings.UNIQUE])


# --- 4. verdicts


def _uncommon_grams(treatment: Treatment, index: _Index, duplicates: Mapping[str, Decision]) -> np.ndarray:
    """Those of the treatment's grams that are not in too many of the documents that are left."""
    holders: dict[str, list[int]] = {}  # by id, so that copies count once
    for chunk in index.chunks:
        holders |= chunk.grams
    left = [grams for name, grams in holders.items() if name not in duplicates or duplicates[name].kept]
    return uncommon(treatment, collections.Counter(itertools.chain.from_iterable(left)))


def _write_verdicts(job: Job, index: _Index, duplicates: Mapping[str, Decision], passages: np.ndarray) -> None:
    by_shard: list[dict[str, Any]] = [{} for _ in range(job.shards)]
    for name, decision in duplicates.items():
        by_shard[shard_of(name, job.shards)][name] = {"duplicate": asdict(decision)}
    ranks, starts = np.unique(passages["rank"], return_index=True)
    for rank, own in zip(ranks.tolist(), np.split(passages, starts[1:]), strict=bool(len(ranks))):
        name = index.names[rank]
        windows = list(zip(own["window"].tolist(), own["mark"].tolist(), strict=True))
        by_shard[shard_of(name, job.shards)].setdefault(name, {})["passages"] = windows
    for number, verdicts in enumerate(by_shard):
        write_atomically(job.work / "verdicts" / f"{number:05}.json", json.dumps(verdicts).encode())


# --- 5. shards


def _write_shard(task: tuple[int, Path, list[Path]]) -> None:
    number, folder, chunk_folders = task
    job: Job = shared()
    verdicts = {
        name: Verdict(Decision(**values["duplicate"]) if "duplicate" in values else None, values.get("passages", ()))
        for name, values in json.loads((job.work / "verdicts" / f"{number:05}.json").read_bytes()).items()
    }
    records, grams = read_records(chunk_folders, number), np.load(job.work / "grams.npy")
    with new_folder(folder) as new:
        write_shard(new, records, verdicts, grams, job.treatment, job.output)
