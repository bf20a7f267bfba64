"""Curation: folders of crawled text in, a training set out, with the reasons for everything that was left out."""

import dataclasses
import itertools
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from gpt_jax import configuration
from gpt_jax.data.curation import contamination, local_runner, quality_classifier
from gpt_jax.data.curation.cleanup import Cleanup
from gpt_jax.data.curation.evaluation_sets import evaluation_texts
from gpt_jax.data.curation.learning import learn
from gpt_jax.data.curation.passes import Treatment, cut_from, shard_of
from gpt_jax.data.curation.provenance import KEPT, SourceTally, Tally, explain, explain_skipped, harmless
from gpt_jax.data.curation.quality_rules import Thresholds
from gpt_jax.data.curation.reading import Format, InputFile, OpenPath, Skipped, input_files
from gpt_jax.data.curation.report import emptiness, overview, write_curation_report
from gpt_jax.data.curation.shards import (
    FORMATS,
    LocalStore,
    Move,
    ShardFacts,
    Store,
    check_source_name,
    decision_moves,
    moves_of,
    read_decisions,
    tfds_files,
)
from gpt_jax.data.curation.workers import cores
from gpt_jax.data.files import check_encoding
from gpt_jax.disk import digest
from gpt_jax.errors import UserError, did_you_mean
from gpt_jax.parallel.runtime import announce
from gpt_jax.progress import clock
from gpt_jax.runs.workdir import environment, open_workdir
from gpt_jax.text.imported import open_tokenizer

FREE_TO_CHANGE = ("workers", "why", "beam.options")
BYTES_A_SHARD = 2**25
RUNNERS = ("local", "beam")


def run(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Curates `config.sources` into `workdir`, or goes on where an earlier start stopped; returns the manifest.

    With `config.why`, prints what the curation in `workdir` decided about that document, and returns that row.

    Raises:
      UserError: for everything that the caller can mend.
    """
    if config.why is not None:
        return why(workdir, config.why)
    began = time.monotonic()
    check(config)
    files = open_sources(config)
    with open_workdir(workdir):
        current = configuration.as_json(config)
        # what was done under on_error=stop had nothing broken in it, so skip may go on with it, but not the reverse
        free = (*FREE_TO_CHANGE, *(["on_error"] if config.on_error == "skip" else []))
        configuration.check_same(workdir, "config.json", current, what="config", free=free)
        learnt_from = training_files(config, files)
        texts = evaluation_texts(config.contamination.sets, config.contamination.fields)
        inputs = {file.path: [file.size, file.changed] for file in itertools.chain(files, *(learnt_from or ()))}
        tokenizer = open_tokenizer(Path(config.tokenizer.path).expanduser()) if config.tokenizer.path else None
        facts = {
            "files": inputs,
            "number of files": len(inputs),
            "evaluation": digest(texts),
            "tokenizer": tokenizer and tokenizer.fingerprint,
        }
        configuration.check_same(workdir, "inputs.json", facts, what="input (it has changed since the run began)")
        if (workdir / "manifest.json").exists():
            shutil.rmtree(workdir / "work", ignore_errors=True)
            announce(f"{workdir}: done by an earlier start; its report is {workdir / 'report.md'}")
            return json.loads((workdir / "manifest.json").read_bytes())
        treatment = dataclasses.replace(treatment_of(config, learnt_from, texts, workdir), tokenizer=tokenizer)
        configuration.write_json(workdir / "inputs.json", facts)
        configuration.write_json(workdir / "environment.json", environment())
        configuration.write_json(workdir / "config.json", current)
        if treatment.classifier is not None and not (workdir / "classifier.npz").exists():
            treatment.classifier.save(workdir / "classifier.npz")  # after the config that it was trained by
        announce(f"{len(files):,} files of {', '.join(sorted(sources_of(config)))}; writing to {workdir}")
        done = treat(config, files, treatment, config.output.shards or shards_for(files), workdir)
        return finish(config, *done, treatment, workdir, began)


def check(config: ConfigDict) -> None:
    """Raises UserError for what can be refused before any file is read."""
    sources = sources_of(config)
    for name in sources:
        check_source_name(name, config.output.format)
    for field, value, known in (
        ("output.format", config.output.format, FORMATS),
        ("runner", config.runner, RUNNERS),
        ("on_error", config.on_error, ("stop", "skip")),
    ):
        if value not in known:
            raise UserError(f"{field}={value!r}: expected one of {', '.join(known)}.{did_you_mean(value, known)}")
    for name in config.trusted:
        if name not in sources:
            raise UserError(
                f"trusted: there is no source {name!r}.{did_you_mean(name, sources)} Sources: {', '.join(sources)}."
            )
    rules = [field.name for field in dataclasses.fields(Thresholds)]
    for name in config.rules.off:
        if name not in rules:
            raise UserError(f"rules.off: no rule {name!r}.{did_you_mean(name, rules)} There are: {', '.join(rules)}.")
    for field, value, good in (
        ("duplicates.similarity", config.duplicates.similarity, 0 < config.duplicates.similarity <= 1),
        ("passages.words", config.passages.words, config.passages.words > 0),
        ("classifier.alpha", config.classifier.alpha, config.classifier.alpha > 0),
        ("max_document_bytes", config.max_document_bytes, config.max_document_bytes > 0),
        ("chunk_bytes", config.chunk_bytes, config.chunk_bytes > 0),
        ("contamination.common", config.contamination.common, config.contamination.common > 0),
        ("workers", config.workers, config.workers >= 0),
        ("output.shards", config.output.shards, config.output.shards is None or config.output.shards > 0),
    ):
        if not good:
            raise UserError(f"{field}={value!r} is out of range; see configs/curate.py.")
    check_encoding(config.encoding)
    if jax.process_count() > 1:
        raise UserError("a curation runs in one process, which starts its own workers; start it on one host.")


def sources_of(config: ConfigDict) -> dict[str, str]:
    """{name: address}. UserError: there is none, or `config.sources` is not such a JSON object."""
    try:
        sources = json.loads(config.sources or "{}")
    except ValueError as error:
        sources = error
    if not isinstance(sources, dict) or not sources or not all(isinstance(one, str) for one in sources.values()):
        raise UserError(
            f"sources={config.sources!r}{f' is not JSON: {sources}' if isinstance(sources, ValueError) else ''}. "
            """Expected the text's names and addresses, --config.sources='{"web": "file:crawl/*.jsonl.zst"}'."""
        )
    return sources


def open_sources(config: ConfigDict) -> list[InputFile]:
    """The files of all sources, by source and name. UserError: an address without files, a file in two sources."""
    files = [
        file
        for name, address in sorted(sources_of(config).items())
        for file in open_address(config, f"sources, {name}", name, address)
    ]
    by_path: dict[str, str] = {}
    for file in files:
        if by_path.setdefault(file.path, file.source) != file.source:
            raise UserError(
                f"{file.path} belongs to two sources, {by_path[file.path]!r} and {file.source!r}. Leave it in one."
            )
    return sorted(files, key=lambda file: (file.source, file.path))


def open_address(config: ConfigDict, field: str, source: str, address: str) -> list[InputFile]:
    """The files behind an address that `field` of the config names; for Beam, also those of other machines."""
    if config.runner == "beam" and "://" in address:
        from gpt_jax.data.curation import beam_files  # needs the extra [beam]

        return beam_files.input_files(field, source, address, encoding=config.encoding)
    return input_files(field, source, address, encoding=config.encoding)


def format_of(config: ConfigDict) -> Format:
    """How the input is read."""
    return Format(config.text_field, config.id_field or None, config.max_document_bytes, config.on_error)


def treatment_of(
    config: ConfigDict, learnt_from: Sequence[Sequence[InputFile]] | None, texts: Sequence[str], workdir: Path
) -> Treatment:
    """What every document goes through. The classifier is trained here, once, and kept in the workdir."""
    cleanup = chosen(Cleanup, config.cleanup) if config.cleanup.on else None
    thresholds = chosen(Thresholds, config.rules) if config.rules.on else None
    if thresholds is not None:
        thresholds = dataclasses.replace(thresholds, **dict.fromkeys(config.rules.off))
    # before the training, which takes long: an evaluation set may be refused
    grams = {"grams": contamination.evaluation_grams(texts)} if texts else {}
    place, classifier = workdir / "classifier.npz", None
    if place.exists():
        classifier = quality_classifier.load(place)
    elif config.classifier.on and config.classifier.path:
        classifier = quality_classifier.load(Path(config.classifier.path).expanduser())
    elif learnt_from is not None:
        announce("training the quality classifier")
        classifier = learn(
            *learnt_from, format_of(config), cleanup=cleanup, max_texts=config.classifier.max_texts, seed=config.seed,
            open_path=open_path(config),
        )  # fmt: skip
    return Treatment(
        seed=config.seed, cleanup=cleanup, thresholds=thresholds, classifier=classifier, alpha=config.classifier.alpha,
        trusted=frozenset(config.trusted), common=config.contamination.common,
        similarity=config.duplicates.similarity if config.duplicates.on else None,
        passage_words=config.passages.words if config.passages.on else None,
        **grams,
    )  # fmt: skip


def chosen(dataclass: type, fields: ConfigDict) -> Any:
    """The dataclass with those of its fields that the config sets."""
    names = [field.name for field in dataclasses.fields(dataclass)]
    return dataclass(**{name: fields[name] for name in names if fields[name] is not None})


def training_files(config: ConfigDict, files: Sequence[InputFile]) -> tuple[list[InputFile], list[InputFile]] | None:
    """What the classifier learns from: (positives, negatives); None where none is trained."""
    own = config.classifier
    if not own.on or own.path:
        return None
    if not (own.positives or config.trusted):
        announce(
            "without a quality classifier: no source is trusted. Name those that are (--config.trusted), good text to "
            "learn from (--config.classifier.positives), or a trained one (--config.classifier.path)"
        )
        return None
    return tuple(
        open_address(config, f"classifier.{side}", side, own[side])
        if own[side]
        else [file for file in files if (file.source in config.trusted) == (side == "positives")]
        for side in ("positives", "negatives")
    )


def open_path(config: ConfigDict) -> OpenPath | None:
    """How files are opened that are not on this machine."""
    if config.runner != "beam":
        return None
    from gpt_jax.data.curation import beam_files

    return beam_files.open_path


def shards_for(files: Sequence[InputFile]) -> int:
    """One for each `BYTES_A_SHARD` of input, packed as it is."""
    return 1 + sum(file.size for file in files) // BYTES_A_SHARD


def treat(
    config: ConfigDict, files: Sequence[InputFile], treatment: Treatment, shards: int, workdir: Path
) -> tuple[list[ShardFacts], list[Skipped], Store]:
    """Has the runner do the work. Returns what is in each shard, what could not be read, and where the files are."""
    if config.runner == "beam":
        from gpt_jax.data.curation import beam_files, beam_runner

        store = beam_files.BeamStore(config.beam.output or str(workdir), is_workdir=not config.beam.output)
        return *beam_runner.run(
            files, format_of(config), treatment, shards, config.output.format, store, options=config.beam.options,
            chunk_bytes=config.chunk_bytes,
        ), store  # fmt: skip
    job = local_runner.Job(workdir / "work", format_of(config), treatment, shards, config.output.format)
    done = local_runner.run(files, job, workers=config.workers or cores(), chunk_bytes=config.chunk_bytes)
    return *done, LocalStore(workdir)


def finish(
    config: ConfigDict,
    facts: Sequence[ShardFacts],
    skipped: Sequence[Skipped],
    store: Store,
    treatment: Treatment,
    workdir: Path,
    began: float,
) -> dict[str, Any]:
    """Puts the files in their places, decisions first; the manifest comes last, and only if every source has text.

    UserError: a source of which nothing is left.
    """
    tally = Tally()
    for one in facts:
        tally.merge(Tally(one.tally))
    for one in skipped:
        tally.add_skipped(one)
    sources = sorted(sources_of(config))
    decisions = decision_moves(facts)
    store.publish(decisions)
    configuration.write_json(workdir / "skipped.json", [vars(one) for one in skipped])
    write_curation_report(
        workdir, tally, skipped=skipped, classifier=treatment.classifier, config=configuration.as_json(config),
        summary=[("evaluation n-grams", f"{len(treatment.grams):,}"), ("shards", f"{len(facts):,}"),
                 ("tokens", f"as {config.tokenizer.path} counts them" if treatment.tokenizer is not None else
                  "not counted: name a tokenizer, --config.tokenizer.path, in another --workdir"),
                 ("time of the last start", clock(time.monotonic() - began))],
    )  # fmt: skip
    if empty := emptiness(tally, sources, workdir):
        raise empty
    moves = {name: moves_of(facts, name, config.output.format) for name in sources}
    for name in sources:
        store.publish(moves[name])
        if config.output.format == "array_record":
            store.put(tfds_files(name, moves[name]))
    manifest = {
        "config": digest(configuration.as_json(config)),
        "classifier": treatment.classifier and treatment.classifier.fingerprint,
        "sources": {name: source_facts(tally.sources[name], moves[name]) for name in sources},
        "decisions": [{"file": move.target, **move.facts} for move in decisions],
        "place": store.place,
    }
    configuration.write_json(workdir / "manifest.json", manifest)
    store.clear()
    announce("\n".join(overview(tally)))
    for name in sources:
        announce(f"{name}: {address_of(config, store.place or str(workdir), name)}")
    announce(f"report: {workdir / 'report.md'}, {clock(time.monotonic() - began)}")
    return manifest


def source_facts(own: SourceTally, moves: Sequence[Move]) -> dict[str, Any]:
    """What the manifest says of a source."""
    documents, words, size = own.counts[KEPT]
    shards = [{"file": move.target, **move.facts} for move in moves]
    return {"documents": documents, "words": words, "bytes": size, "tokens": own.tokens, "shards": shards}


def address_of(config: ConfigDict, place: str, source: str) -> str:
    """What a run's data.source calls the training text of a source."""
    if config.output.format == "array_record":
        return f"tfds:{source} with TFDS_DATA_DIR={place}/documents"
    return f"file:{place}/documents/{source}/*.jsonl.zst"


def why(workdir: Path, document: str) -> dict[str, Any]:
    """Prints and returns what was decided about a document, called by its id or by where it stands.

    Of a document that could not be read, which has a place only, the row is that of skipped.json.

    UserError: there is no such document, or no decisions.
    """
    manifest = workdir / "manifest.json"
    place = json.loads(manifest.read_bytes())["place"] if manifest.exists() else None
    folder = Path(place or workdir) / "decisions"
    files = sorted(folder.glob("*-of-*.jsonl.zst"))
    if not files:
        raise UserError(
            f"no decisions of a curation in {folder}. Name the --workdir of one that is done; if its beam.output is "
            "not on this machine, copy decisions/ from there into a folder and name that."
        )
    name = cut_from(document)
    by_id = ([files[shard_of(name, len(files))]], lambda row: row["id"] == name)
    by_place = (files, lambda row: any(stands_at(place, document) for place in (row["place"], *row["copies"])))
    for searched, fits in (by_id, by_place):
        for path in searched:
            with open(path, "rb") as file:
                for row in read_decisions(file):
                    if fits(row):
                        print("\n".join(map(harmless, explain(row))))
                        return row
    record = workdir / "skipped.json"
    skipped = json.loads(record.read_bytes()) if record.exists() else []
    for row in skipped:
        if stands_at(row["place"], document):
            print("\n".join(map(harmless, explain_skipped(row))))
            return row
    raise UserError(
        f"why: no document {document!r} in {folder}. Ids are written SOURCE:ID, as in report.md and in "
        "the files of documents/; a text file may be called by its name, a line by its own too: "
        "'crawl-3.jsonl.zst, line 17'."
        + (f" {len(skipped):,} could not be read and are known by their places alone: {record}." if skipped else "")
    )


def stands_at(place: str, named: str) -> bool:
    """Whether `named` is the place, or the end of its path from a name on."""
    return place == named or place.endswith(f"/{named}")
