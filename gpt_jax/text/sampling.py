"""A bounded, reproducible sample of a stream of text, for training a tokenizer."""

import hashlib
import heapq
from collections.abc import Iterable, Iterator

BLOCK_CHARACTERS = 16_384


def sample_blocks(texts: Iterable[str], max_bytes: int, seed: int) -> list[str]:
    """Blocks of whole lines drawn evenly from `texts`, in their order, of at most `max_bytes` UTF-8 bytes in all.

    Each block has a priority that depends only on the seed and the block's number; those with the smallest stay. So
    the sample is the same wherever it is drawn, no more than it is ever held, and a small corpus is taken whole.
    """
    kept: list[tuple[int, int, str]] = []  # a heap, the largest priority (negated) on top
    size = 0
    for number, block in enumerate(_blocks(texts)):
        priority = int.from_bytes(hashlib.blake2b(f"{seed} {number}".encode(), digest_size=8).digest(), "big")
        heapq.heappush(kept, (-priority, number, block))
        size += _size(block)
        while size > max_bytes and len(kept) > 1:
            size -= _size(heapq.heappop(kept)[2])
    return [block for _, _, block in sorted(kept, key=lambda entry: entry[1])]


def _size(text: str) -> int:
    return len(text.encode(errors="surrogatepass"))


def _blocks(texts: Iterable[str]) -> Iterator[str]:
    """Cuts each text after the first line end past `BLOCK_CHARACTERS`."""
    for text in texts:
        start = 0
        while start < len(text):
            end = text.find("\n", start + BLOCK_CHARACTERS) + 1 or len(text)
            yield text[start:end]
            start = end
