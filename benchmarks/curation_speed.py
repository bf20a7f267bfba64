"""Speed of the stages of curation on one core, and the MinHash libraries compared.

    python benchmarks/curation_speed.py --data=../shared/data [--out=docs/curation]

4,000 passages of 400 words of the novels in --data (400 for the slow signatures). Process time, which a neighbour on
the machine disturbs least, of the best of five rounds in turns. "Signature": 128 permutations of ready 64-bit shingles.
The NumPy one is MinHash by multiply-shift (Dietzfelbinger et al. 1997); datasketch is timed where it is installed.
"""

import argparse
import importlib.util
import json
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
from curation import novels

from gpt_jax.data.curation import cleanup, contamination, exact_substrings, quality_rules
from gpt_jax.data.curation import near_duplicates as near
from gpt_jax.data.curation.quality_classifier import train

NUMBER, WORDS, ROUNDS = 4000, 400, 5
MULTIPLIERS, OFFSETS = np.random.default_rng(0).integers(0, 2**64, (2, near.PERMUTATIONS, 1), np.uint64)
MULTIPLIERS |= np.uint64(1)


def main() -> None:
    """Prints the table and, with --out, writes it there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    words = " ".join(novels(args.data).values()).split()[: NUMBER * WORDS]
    texts = [" ".join(words[i : i + WORDS]) for i in range(0, len(words), WORDS)]
    contestants = stages(texts)
    best = defaultdict(lambda: float("inf"))
    for _ in range(ROUNDS):
        for name, (documents, function) in contestants.items():
            started = time.process_time()
            function()
            best[name] = min(best[name], (time.process_time() - started) / documents)
    rows = [
        {"stage": name, "microseconds a document": round(seconds * 1e6, 1), "documents a second": round(1 / seconds)}
        for name, seconds in best.items()
    ]
    table = "| stage | microseconds a document | documents a second |\n|---|---|---|\n"
    table += "".join(f"| {' | '.join(map(str, row.values()))} |\n" for row in rows)
    print(table)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "speed.json").write_text(json.dumps(rows, indent=1) + "\n")
        (args.out / "speed.md").write_text(table)


def stages(texts: list[str]) -> dict:
    """What is timed, by its name in the table: the number of documents and the work on them."""
    sets = [near.shingles(text) for text in texts]
    few = sets[: NUMBER // 10]
    evaluation = contamination.evaluation_grams(texts[::100])
    classifier = train(texts[::2], [text[::-1] for text in texts[1::2]], seed=0)
    work = {
        "near-duplicates: shingles, signature, bands": lambda: near.band_keys(
            near.signatures([near.shingles(text) for text in texts])
        ),
        "shingles": lambda: [near.shingles(text) for text in texts],
        "signature by rensa": lambda: near.signatures(sets),
        "exact Jaccard of two": lambda: [near.jaccard(own, own) for own in sets],
        "clean-up": lambda: [cleanup.clean(text) for text in texts],
        "quality rules": lambda: [quality_rules.check(text) for text in texts],
        "quality classifier": lambda: classifier.score(texts),
        "contamination": lambda: [contamination.cut(text, evaluation) for text in texts],
        "exact substrings: windows": lambda: [exact_substrings.windows(text) for text in texts],
    }
    slow = {"signature by NumPy": lambda: [numpy_signature(own) for own in few]}
    if importlib.util.find_spec("datasketch"):
        slow["signature by datasketch"] = lambda: [datasketch_signature(own) for own in few]
    return {name: (NUMBER, timed) for name, timed in work.items()} | {
        name: (len(few), timed) for name, timed in slow.items()
    }


def numpy_signature(shingles: np.ndarray) -> np.ndarray:
    """The upper halves of (a * x + b) modulo 2^64, the least of each of 128 (a, b); uint32 [128]."""
    return (((MULTIPLIERS * shingles + OFFSETS) >> np.uint64(32)).min(1)).astype(np.uint32)


def datasketch_signature(shingles: np.ndarray) -> np.ndarray:
    """datasketch's, of the lower halves of the hashes, which is what it takes."""
    from datasketch import MinHash

    sketch = MinHash(near.PERMUTATIONS, hashfunc=int)
    sketch.update_batch((shingles & np.uint64(2**32 - 1)).tolist())
    return sketch.hashvalues


if __name__ == "__main__":
    main()
