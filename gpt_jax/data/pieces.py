"""Documents as streams of pieces: what lets a file of any size pass through a bounded memory."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

PIECE_CHARACTERS = 2**18  # at most 1 MB of UTF-8


@dataclass(frozen=True)
class Piece:
    """A part of a document, never empty; a document is one or more consecutive pieces, the last marked."""

    text: str
    ends_document: bool


def cut_document(chunks: Iterable[str]) -> Iterator[Piece]:
    """The document that `chunks` join to, in pieces of at most `PIECE_CHARACTERS`; none if it is empty.

    A cut falls where our own tokenizer joins nothing across it: after a newline that something else than a newline
    follows, in a longer line before a space that something else precedes. Only where there is neither, it falls hard.
    (Other tokenizers move it to where they can bear it: `Tokenizer.last_cut`.)
    """
    buffer = ""
    for chunk in chunks:
        buffer += chunk
        start = 0
        while len(buffer) - start > PIECE_CHARACTERS:
            cut = _cut(buffer, start, start + PIECE_CHARACTERS)
            yield Piece(buffer[start:cut], ends_document=False)
            start = cut
        buffer = buffer[start:]
    if buffer:
        yield Piece(buffer, ends_document=True)


def _cut(text: str, start: int, limit: int) -> int:
    """The last good place to cut in (start, limit]; `text` goes on beyond `limit`."""
    newline = text.rfind("\n", start, limit)
    while newline >= 0:
        if text[newline + 1] != "\n":
            return newline + 1
        newline = text.rfind("\n", start, start + len(text[start:newline].rstrip("\n")))
    space = text.rfind(" ", start + 1, limit)
    while space >= 0:
        if text[space - 1] != " ":
            return space
        space = text.rfind(" ", start + 1, space)
    return limit


def is_held_out(text: str, fraction: float) -> bool:
    """Whether a document belongs to the held-out `fraction`: decided by its text alone, so copies stay together."""
    number = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
    return number < fraction * 2**64
