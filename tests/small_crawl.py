"""A small crawl of which it is known what is wrong with each document, and curations of it."""

import gzip
import json
import lzma
import random
from pathlib import Path

import zstandard
from ml_collections import ConfigDict

from gpt_jax.main import parse_flags

ROOT = Path(__file__).resolve().parents[1]
_draw = random.Random(7)
WORDS = [
    "".join(_draw.choice("bdfgklmnprstvz") + _draw.choice("aeiou") for _ in range(_draw.randint(1, 4)))
    for _ in range(2000)
]
PACK = {
    ".jsonl": lambda data: data,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: zstandard.ZstdCompressor().compress(data),
}


def text(draw: random.Random, words: int = 120) -> str:
    """Sentences that pass every quality rule, of nearly as many different words as there are."""
    sentences = [["The", *draw.choices(WORDS, k=8), "and", "of", draw.choice(WORDS)] for _ in range(words // 12)]
    return "\n".join(" ".join(sentence) + "." for sentence in sentences)


def documents() -> dict[str, list[dict]]:
    """By source: rows with ids that say what they are for; the last of them without id."""
    draw = random.Random(0)
    web = [{"id": f"good-{n}", "text": text(draw)} for n in range(40)]
    for n in range(8):  # a near-duplicate, a little shorter than the original
        words = web[n]["text"].split(" ")
        web.append({"id": f"near-{n}", "text": " ".join(words[:-3])})
    web += [{"id": "short", "text": "Only a few words."}, {"id": "lorem", "text": f"Lorem ipsum {text(draw)}"}]
    web += [{"id": "empty", "text": " \x07 \n"}, {"id": 17, "text": text(draw)}]
    held = question().split()
    web.append({"id": "tainted", "text": f"{text(draw, 240)} {' '.join(held[3:25])} {text(draw, 240)}"})
    web.append({"id": "scraps", "text": f"{text(draw, 12)} {' '.join(held)}. {text(draw, 24)}"})
    nameless = text(draw)
    web += [{"text": nameless}, {"text": nameless}, {"text": text(draw)}]
    fine = [{"id": f"page-{n}", "text": text(draw, 240)} for n in range(6)]
    fine.append({"id": "near", "text": web[20]["text"].replace(".", ",", 1)})
    return {"web": web, "fine": fine}


def question() -> str:
    """What the evaluation set asks: 40 words."""
    return " ".join(random.Random(99).choices(WORDS, k=40))


def write(folder: Path, name: str, rows: list[dict], suffix: str = ".zst") -> Path:
    """A file of JSON lines, packed."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (f"{name}.jsonl" if suffix == ".jsonl" else f"{name}.jsonl{suffix}")
    path.write_bytes(PACK[suffix]("".join(json.dumps(row) + "\n" for row in rows).encode()))
    return path


def write_crawl(folder: Path, *, files: int = 3, order: int | None = None) -> Path:
    """The crawl in `files` files a source, its rows shuffled by `order`; and the evaluation set."""
    for source, rows in documents().items():
        if order is not None:
            random.Random(order).shuffle(rows)
        for n in range(files):
            write(folder / source, f"part{n}", rows[n::files])
    (folder / "questions.jsonl").write_text(json.dumps({"question": question(), "answer": "yes", "label": 1}) + "\n")
    return folder


def config_of(crawl: Path, **fields) -> ConfigDict:
    """A curation of the crawl in one process; `fields` with __ for a dot."""
    sources = {source: f"file:{crawl}/{source}/*.jsonl*" for source in ("web", "fine")}
    config = parse_flags(["main", f"--config={ROOT}/configs/curate.py"]).config
    settings = {
        "sources": json.dumps(sources), "workers": 1, "chunk_bytes": 8000, "output.shards": 3,
        "contamination.sets": f"file:{crawl}/questions.jsonl", "contamination.fields": ("question",),
    }  # fmt: skip
    config.update_from_flattened_dict(settings | {name.replace("__", "."): value for name, value in fields.items()})
    return config


def outputs(workdir: Path) -> dict[str, bytes]:
    """Every file of documents/ and decisions/, and what the manifest says of them."""
    files = {
        str(path.relative_to(workdir)): path.read_bytes()
        for folder in ("documents", "decisions")
        for path in sorted((workdir / folder).rglob("*"))
        if path.is_file()
    }
    return files | {"sources": json.dumps(json.loads((workdir / "manifest.json").read_text())["sources"]).encode()}


def kept(workdir: Path) -> dict[str, str]:
    """id -> text of all that was written, from files in the order of the shards."""
    rows = {}
    for path in sorted((workdir / "documents").rglob("*.zst")):
        for line in zstandard.ZstdDecompressor().decompressobj().decompress(path.read_bytes()).splitlines():
            row = json.loads(line)
            assert row["id"] not in rows
            rows[row["id"]] = row["text"]
    return rows
