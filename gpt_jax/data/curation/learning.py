"""Training the quality classifier on files: which of their texts it learns from."""

import hashlib
import heapq
from collections.abc import Iterable, Iterator, Sequence

from gpt_jax.data.curation import quality_classifier
from gpt_jax.data.curation.cleanup import Cleanup, clean
from gpt_jax.data.curation.reading import (
    Format,
    InputFile,
    OpenPath,
    Raw,
    bytes_to_read,
    chunks,
    parse_chunk,
    raw_of_files,
)
from gpt_jax.progress import byte_progress

PASSAGE_CHARACTERS = 4000  # a novel is not one example among a thousand questions, but some hundred
_CHUNK_BYTES = 2**20


def learn(
    positives: Sequence[InputFile],
    negatives: Sequence[InputFile],
    form: Format,
    *,
    cleanup: Cleanup | None,
    max_texts: int,
    seed: int,
    open_path: OpenPath | None = None,
) -> quality_classifier.Classifier:
    """The classifier of passages of `positives` against those of `negatives`.

    Of each class it learns from the `max_texts` passages of the least hash, whatever the order of files and lines.
    UserError: as `quality_classifier.train`, and what is wrong with a file.
    """
    sides = []
    for name, files in (("positives", positives), ("negatives", negatives)):
        with byte_progress(f"Reading {name} for the quality classifier", bytes_to_read(files)) as advance:
            raws = raw_of_files(files, form, open_path, advance)
            sides.append([text for _, text in heapq.nsmallest(max_texts, _passages(raws, form, cleanup))])
    return quality_classifier.train(*sides, seed=seed)


def _passages(raws: Iterable[Raw], form: Format, cleanup: Cleanup | None) -> Iterator[tuple[bytes, str]]:
    for chunk in chunks(raws, _CHUNK_BYTES):
        for parsed in parse_chunk(chunk, form)[0]:
            text = clean(parsed.document.text, cleanup)[0] if cleanup is not None else parsed.document.text
            for passage in _cut(text):
                yield hashlib.blake2b(passage.encode(), digest_size=8).digest(), passage


def _cut(text: str) -> Iterator[str]:
    start = 0
    while start < len(text):
        stop = start + PASSAGE_CHARACTERS
        if stop < len(text):
            stop = text.rfind(" ", start + 1, stop) + 1 or stop
        if passage := text[start:stop].strip():
            yield passage
        start = stop
