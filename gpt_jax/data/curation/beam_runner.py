"""Curation as an Apache Beam pipeline: the passes of `passes`, for as many machines as Dataflow, Flink or Spark give.

What comes out is what the local runner writes, byte for byte. The steps are its steps too: first pass, documents that
meet in a band compared, verdicts, second pass and shards. Only two things come together on one worker: the pairs of
near-duplicates, of which it makes clusters (a hundred bytes a pair; pairs that are duplicates indeed, not candidates),
and the documents of a shard, which `output.shards` bounds. A pipeline that failed begins anew.
"""

import functools
import pickle
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpt_jax.data.curation import exact_substrings, near_duplicates, reading
from gpt_jax.data.curation.beam_files import BeamStore, create, open_path, shard_name
from gpt_jax.data.curation.passes import (
    Record,
    Treatment,
    Verdict,
    duplicate_decisions,
    equal_ids,
    first_pass,
    shard_of,
    shingles_of,
    uncommon,
)
from gpt_jax.data.curation.reading import Format, InputFile, Raw, Skipped
from gpt_jax.data.curation.shards import FACTS, ShardFacts, write_shard
from gpt_jax.errors import UserError
from gpt_jax.extras import require

beam = require("apache_beam", "beam")

TREATMENT = "work/treatment.pickle"  # too large for the description of a pipeline


def run(
    files: Sequence[InputFile],
    form: Format,
    treatment: Treatment,
    shards: int,
    output: str,
    store: BeamStore,
    *,
    options: str,
    chunk_bytes: int,
) -> tuple[list[ShardFacts], list[Skipped]]:
    """Makes a folder of each shard in `store`; returns what is in them, and what could not be read.

    Args:
      options: of the pipeline, as on a command line; without --runner Beam's own runs it in this process.

    UserError: as `local_runner.run`; options that Beam does not know.
    """
    try:
        words = shlex.split(options)
        runner = None if any(word.startswith("--runner") for word in words) else "FnApiRunner"
        pipeline = beam.Pipeline(runner, beam.options.pipeline_options.PipelineOptions(words))
        store.put({TREATMENT: pickle.dumps(treatment)})
    except (ValueError, SystemExit) as error:  # the second is argparse's, which has said what is wrong
        raise UserError(
            f"beam.options={options!r}, beam.output={store.place!r}: Beam refuses them ({error})."
        ) from None
    try:
        with pipeline:
            build(pipeline, files, form, treatment, shards, output, store, chunk_bytes)
    except Exception as error:  # workers' errors come back as the text of theirs
        if told := re.search(r"UserError: (.*?)(?: \[while running|\n|$)", f"UserError: {error}"
                             if isinstance(error, UserError) else str(error), re.DOTALL):  # fmt: skip
            raise UserError(told[1]) from None
        raise
    facts, skipped = [], []
    for number in range(shards):
        with open_path(store.path(f"{shard_name(number)}/{FACTS}")) as file:
            facts.append(ShardFacts.from_json(file.read()))
    with open_path(store.path("work/skipped.pickle")) as file:
        skipped = pickle.load(file)
    return facts, skipped


def build(
    pipeline,
    files: Sequence[InputFile],
    form: Format,
    treatment: Treatment,
    shards: int,
    output: str,
    store: BeamStore,
    chunk_bytes: int,
) -> None:
    """Adds the steps to the pipeline."""
    treated = (
        pipeline
        | "Files" >> beam.Create(list(files))
        | "Spread files" >> beam.Reshuffle()
        | "Read" >> beam.FlatMap(_read, form, chunk_bytes)
        | "Spread chunks" >> beam.Reshuffle()
        | "First pass" >> beam.ParDo(_FirstPass(form, store)).with_outputs("skipped", main="records")
    )
    _ = treated.skipped | "All skipped" >> beam.combiners.ToList() | "Write skipped" >> beam.Map(_write_skipped, store)
    records = (  # one element for each id, a text's copies together
        treated.records
        | "By id" >> beam.Map(lambda record: (record.id, record))
        | "Same id" >> beam.GroupByKey()
        | "Unique" >> beam.MapTuple(_unique)
    )
    kept = records | "Kept" >> beam.FlatMap(lambda pair: [(pair[0], pair[1][0])] if pair[1][0].kept else [])
    similarity, words = treatment.similarity, treatment.passage_words
    nothing = pipeline | "Nothing" >> beam.Create([])
    duplicates = nothing if similarity is None else _find_duplicates(kept, similarity)
    left = (
        {"record": kept, "duplicate": duplicates}
        | "With verdict" >> beam.CoGroupByKey()
        | "Left" >> beam.FlatMapTuple(_left)
    )
    passages = nothing if words is None else _find_passages(left, words)
    grams = (
        left
        | "Their grams" >> beam.FlatMapTuple(_grams)
        | "Count grams" >> beam.combiners.Count.PerElement()
        | "All grams" >> beam.combiners.ToList()
    )
    numbers = pipeline | "Shards" >> beam.Create([(number, None) for number in range(shards)])  # the empty ones too
    judged = (
        {"records": records, "duplicate": duplicates, "passages": passages}
        | "Judged" >> beam.CoGroupByKey()
        | "By shard" >> beam.FlatMapTuple(functools.partial(_by_shard, shards=shards))
    )
    _ = (
        (numbers, judged)
        | "All shards" >> beam.Flatten()
        | "Shard" >> beam.GroupByKey()
        | "Second pass" >> beam.ParDo(_SecondPass(store, output), beam.pvalue.AsSingleton(grams))
    )


def _read(file: InputFile, form: Format, chunk_bytes: int) -> Iterator[list[Raw]]:
    opened = functools.partial(open_path, file.path)
    yield from reading.chunks(reading.raw_documents(file, form, opened), chunk_bytes)


class _WithTreatment(beam.DoFn):
    """Reads the treatment when a worker starts."""

    def __init__(self, store: BeamStore):
        self.store = store

    def setup(self) -> None:
        with open_path(self.store.path(TREATMENT)) as file:
            self.treatment: Treatment = pickle.load(file)


class _FirstPass(_WithTreatment):
    """Chunk -> records."""

    def __init__(self, form: Format, store: BeamStore):
        super().__init__(store)
        self.form = form

    def process(self, chunk: list[Raw]):
        documents, skipped = reading.parse_chunk(chunk, self.form)
        yield from first_pass(documents, self.treatment)
        for one in skipped:
            yield beam.pvalue.TaggedOutput("skipped", one)


def _write_skipped(skipped: list[Skipped], store: BeamStore) -> None:
    store.put({"work/skipped.pickle": pickle.dumps(sorted(skipped, key=lambda one: (one.source, one.place)))})


def _unique(name: str, records: Iterable[Record]) -> tuple[str, list[Record]]:
    records = sorted(records, key=lambda record: record.place)
    own = [record.place for record in records if not record.named_by_text]
    if len(own) > 1:
        raise equal_ids(name, own[:2], 1)
    return name, records


def _find_duplicates(kept, similarity: float):
    """(id, decision) of every document that has a near-duplicate, of (id, record)."""
    sets = kept | "Shingles" >> beam.MapTuple(lambda name, record: (name, shingles_of(record)))
    meetings = (
        sets | "Bands" >> beam.FlatMapTuple(_bands) | "Band" >> beam.GroupByKey() | "Met" >> beam.FlatMapTuple(_met)
    )
    edges = (
        {"sets": sets, "buckets": meetings}
        | "Sets of those that met" >> beam.CoGroupByKey()
        | "To buckets" >> beam.FlatMapTuple(_to_buckets)
        | "Bucket" >> beam.GroupByKey()
        | "Compare" >> beam.FlatMapTuple(lambda _, members: near_duplicates.bucket_edges(list(members), similarity))
        | "Each edge once" >> beam.Distinct()
    )
    ends = edges | "Ends" >> beam.FlatMap(lambda edge: [(edge[0], None), (edge[1], None)]) | beam.Distinct()
    facts = (
        {"ends": ends, "records": kept}
        | "Of the ends" >> beam.CoGroupByKey()
        | "Their facts" >> beam.FlatMapTuple(_facts)
        | "All facts" >> beam.combiners.ToList()
    )
    return (
        edges
        | "All edges" >> beam.combiners.ToList()
        | "Clusters" >> beam.FlatMap(_decide, beam.pvalue.AsSingleton(facts))
    )


def _bands(name: str, shingles: np.ndarray) -> Iterator[tuple[bytes, str]]:
    keys = near_duplicates.band_keys(near_duplicates.signatures([shingles]))[0]
    for band, key in enumerate(keys):
        yield bytes([band]) + key.tobytes(), name


def _met(key: bytes, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    names = list(names)
    if len(names) > 1:
        for name in names:
            yield name, key


def _to_buckets(name: str, joined: dict[str, Any]) -> Iterator[tuple[bytes, tuple[str, np.ndarray]]]:
    for shingles in joined["sets"]:
        for key in joined["buckets"]:
            yield key, (name, shingles)


def _facts(name: str, joined: dict[str, Any]) -> Iterator[tuple[str, tuple[float, int]]]:
    if list(joined["ends"]):
        for record in joined["records"]:
            yield name, (record.score, len(record.text))


def _decide(edges: list[tuple[str, str, float]], facts: list[tuple[str, tuple[float, int]]]):
    return duplicate_decisions(edges, dict(facts)).items()


def _left(name: str, joined: dict[str, Any]) -> Iterator[tuple[str, Record]]:
    if all(decision.kept for decision in joined["duplicate"]):
        for record in joined["record"]:
            yield name, record


def _grams(name: str, record: Record) -> Iterator[bytes]:
    yield from (gram.to_bytes(8, "little") for gram in record.grams)  # Beam's int has a sign


def _find_passages(left, words: int):
    """(id, [(number, mark), ...]) of every document that has windows which stand in several places."""
    return (
        left
        | "Windows" >> beam.FlatMapTuple(functools.partial(_windows, words=words))
        | "Same window" >> beam.GroupByKey()
        | "Mark" >> beam.FlatMapTuple(_mark)
        | "Marks" >> beam.GroupByKey()
        | "In order" >> beam.MapTuple(lambda name, marks: (name, sorted(marks)))
    )


def _windows(name: str, record: Record, words: int) -> Iterator[tuple[bytes, tuple[str, int]]]:
    for number, window in enumerate(exact_substrings.windows(record.text, words)):
        yield window.tobytes(), (name, number)


def _mark(window: bytes, places: Iterable[tuple[str, int]]) -> Iterator[tuple[str, tuple[int, int]]]:
    first, *others = sorted(places)
    for name, number in others:
        yield name, (number, exact_substrings.AGAIN)
    if others:
        yield first[0], (first[1], exact_substrings.FIRST)


def _by_shard(name: str, joined: dict[str, Any], shards: int):
    verdict = Verdict(next(iter(joined["duplicate"]), None), next(iter(joined["passages"]), ()))
    for records in joined["records"]:
        yield shard_of(name, shards), (records, verdict)


class _SecondPass(_WithTreatment):
    """(shard, its records with their verdicts) -> the files of the shard."""

    def __init__(self, store: BeamStore, output: str):
        super().__init__(store)
        self.output = output

    def process(self, shard, grams: list[tuple[bytes, int]]):
        number, judged = shard
        left = uncommon(self.treatment, {int.from_bytes(gram, "little"): count for gram, count in grams})
        records, verdicts = [], {}
        for group, verdict in filter(None, judged):
            records += group
            verdicts[group[0].id] = verdict
        records.sort(key=lambda record: record.id)
        with tempfile.TemporaryDirectory() as folder:
            write_shard(Path(folder), records, verdicts, left, self.treatment, self.output)
            names = sorted((path.name for path in Path(folder).iterdir()), key=lambda name: name == FACTS)
            for name in names:  # the facts last: what they speak of is there
                target = self.store.path(f"{shard_name(number)}/{name}")
                with open(Path(folder) / name, "rb") as made, create(target) as file:
                    shutil.copyfileobj(made, file)
