"""Training the quality classifier on files: which of their texts it learns from."""

import hashlib
import heapq
from collections.abc import Iterator, Sequence

from gpt_jax.data.curation import quality_classifier
from gpt_jax.data.curation.cleanup import Cleanup, clean
from gpt_jax.data.curation.reading import Format, InputFile, OpenPath, chunks, parse_chunk, raw_of_files

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
    sides = [
        [text for _, text in heapq.nsmallest(max_texts, _passages(files, form, cleanup, open_path))]
        for files in (positives, negatives)
    ]
    return quality_classifier.train(*sides, seed=seed)


def _passages(
    files: Sequence[InputFile], form: Format, cleanup: Cleanup | None, open_path: OpenPath | None
) -> Iterator[tuple[bytes, str]]:
    for chunk in chunks(raw_of_files(files, form, open_path), _CHUNK_BYTES):
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
