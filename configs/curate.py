"""Crawled text to a training set: cleaned, filtered, without duplicates and without the evaluation sets.

    python -m gpt_jax.main --config=configs/curate.py --workdir=runs/curated \\
      --config.sources='{"web": "file:crawl/*.jsonl.zst", "books": "books"}' --config.trusted="('books',)" \\
      --config.contamination.sets='file:questions/*.jsonl'

Sources: {name: address}, where an address is `books` or `file:PATH-or-pattern[,...]` of .jsonl (a document a line, its
text in `text_field`, its id in `id_field`) and .txt files (a document each), also .gz, .xz, .zst. A document without an
id of its own goes by a hash of its text, so no decision depends on how the files were cut or ordered.

Every document goes through clean-up, C4's and Gopher's quality rules, GPT-3's quality classifier (kept where
pareto(9) > 1 - score; it learns from the trusted sources against the others, where nothing else is said), and a search
for near-duplicates within and across sources (with passages.on=True for repeated passages too); what the evaluation
sets hold is cut out by GPT-3's rules. Sources that are `trusted` are filtered neither by the rules nor the classifier.

The workdir then has documents/SOURCE/ (`file:runs/curated/documents/web/*.jsonl.zst` is an address for data.source and
data.mixture; with output.format=array_record and TFDS_DATA_DIR=runs/curated/documents it is `tfds:web`), report.md with
a table by source, stage and reason, samples and pictures, decisions/ with every decision about every document,
manifest.json, skipped.json and classifier.npz. Killed and started again, it goes on. What became of one document:

    python -m gpt_jax.main --config=configs/curate.py:why,id=web:17 --workdir=runs/curated

`--config.runner=beam` does the same as an Apache Beam pipeline (pip install -e ".[beam]"), on Dataflow, Flink or Spark
by `--config.beam.options`; launch/beam.sh shows the commands.
"""

from ml_collections import ConfigDict, config_dict

from gpt_jax.configuration import optional_fields, parse_argument
from gpt_jax.data.curation.cleanup import Cleanup
from gpt_jax.data.curation.quality_rules import Thresholds

placeholder = config_dict.placeholder


def get_config(argument: str | None = None) -> ConfigDict:
    """The curation, or with `why,id=ID` what an earlier one decided about a document."""
    argument, _, document = (argument or "").partition(",id=")  # which may hold commas
    preset, values = parse_argument(argument, presets=("curate", "why"), fields={"id": str})
    config = ConfigDict(
        dict(
            run="curate",
            seed=0,  # of the classifier's draws
            why=placeholder(str),  # a document's id: prints what the run in the workdir decided, and does nothing else
            sources=placeholder(str),  # JSON: {name: address}
            trusted=(),  # names of sources that neither rules nor classifier filter
            text_field="text",
            id_field="id",  # empty: documents go by a hash of their text
            encoding="utf-8",  # of .txt files
            tokenizer=dict(path=placeholder(str)),  # counts what is kept in tokens too: a folder, tokenizer.json, GGUF
            max_document_bytes=2**24,  # of a line or a text file; longer ones are passed over, and named
            on_error="stop",  # at a broken line or a damaged file: stop | skip
            cleanup=dict(on=True, **optional_fields(Cleanup)),  # cleanup.py; empty fields: its defaults
            rules=dict(on=True, off=(), **optional_fields(Thresholds)),  # quality_rules.py; off: names of rules
            classifier=dict(
                on=True,
                path=placeholder(str),  # a classifier.npz, instead of training one
                positives=placeholder(str),  # address; by default the trusted sources
                negatives=placeholder(str),  # address; by default the others
                max_texts=50_000,  # to learn from, of each class: those of the least hash
                alpha=9.0,
            ),
            duplicates=dict(on=True, similarity=0.8),  # Jaccard, of runs of five words
            passages=dict(on=False, words=50),  # of passages that stand in several documents, all but the first go
            contamination=dict(
                sets=placeholder(str),  # file:PATH-or-pattern[,...] of evaluation sets
                fields=(),  # of a line of .jsonl, in order; by default all that hold text
                common=10,  # runs of 13 words in more documents than this are common speech
            ),
            output=dict(
                format="jsonl.zst",  # jsonl.zst | array_record
                shards=placeholder(int),  # of each source; by default one for 32 MB of input
            ),
            runner="local",  # local | beam
            workers=0,  # processes of the local runner; 0: all cores
            chunk_bytes=2**23,  # of input that a worker takes at once
            beam=dict(
                options="",  # of the pipeline, as on a command line: --runner=FlinkRunner --flink_master=...
                output=placeholder(str),  # a folder that the Beam workers can write, gs://...; by default the workdir
            ),
        )
    )
    if preset == "why":
        config.why = document or values.get("id", "")
    return config.lock()
