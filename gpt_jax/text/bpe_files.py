"""The two files in which OpenAI published a BPE: pieces with their ids (JSON), and merges, best first (text).

`encoder_bpe_40000.json` and `vocab_40000.bpe` for GPT-1, `encoder.json` and `vocab.bpe` for GPT-2; Hugging Face calls
the same contents `vocab.json` and `merges.txt`. The merges' first line is a header (`#version: 0.2`), and every line
ends in a newline: OpenAI's readers drop the first line and what follows the last newline without looking.
"""

import json
from pathlib import Path
from typing import Any

from gpt_jax.errors import UserError

Merge = tuple[str, str]


def read_json(path: Path) -> Any:
    """The JSON in `path`. UserError: no such file, not readable, or not JSON (cut short, say)."""
    try:
        return json.loads(read_text(path))
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}). Is it cut short? Fetch it again.") from None


def read_text(path: Path) -> str:
    """The UTF-8 text in `path`, its newlines as they are. UserError: no such file, not readable, or not UTF-8."""
    try:
        return Path(path).read_bytes().decode()
    except OSError as error:
        raise UserError(f"The tokenizer file {path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error}). Is it the right file? Fetch it again.") from None


def read_vocabulary(path: Path) -> dict[str, int]:
    """{piece: id} of a JSON file; the ids are 0..V-1, each once. UserError: anything else."""
    return checked_vocabulary(read_json(path), str(path))


def checked_vocabulary(vocabulary: Any, where: str) -> dict[str, int]:
    """`vocabulary`, if it is {piece: id} with the ids 0..V-1, each once; otherwise a UserError that names `where`."""
    if not isinstance(vocabulary, dict) or not vocabulary or {type(id) for id in vocabulary.values()} != {int}:
        raise UserError(f"{where} is not a vocabulary: expected a JSON object that gives each piece its id.")
    ids = sorted(vocabulary.values())
    if ids != list(range(len(ids))):
        wrong = next(place for place, id in enumerate(ids) if id != place)
        kind = "is missing" if ids[wrong] > wrong else "occurs twice" if wrong else "is negative"
        raise UserError(
            f"The vocabulary {where} has {len(ids)} pieces, but their ids are not 0 to {len(ids) - 1}: "
            f"{min(ids[wrong], wrong) if wrong else ids[0]} {kind}. Fetch the file again."
        )
    return vocabulary


def read_merges(path: Path, vocabulary: dict[str, int], suffix: str = "") -> list[Merge]:
    """The merges of a text file, best first, each a pair of pieces of `vocabulary`.

    `suffix` is what marks the last piece of a word ("</w>" for GPT-1). UserError: no header, a line that is not two
    pieces, a merge whose pieces or product are not in `vocabulary`, or fewer merges than `vocabulary` needs.
    """
    header, *lines = read_text(path).split("\n")
    if not header.startswith("#version"):
        raise UserError(
            f"{path} does not begin with the line '#version: 0.2' but with {header[:40]!r}: it is no list of merges, "
            "or its beginning is lost. Fetch it again."
        )
    if lines and lines.pop():
        raise UserError(f"{path} does not end in a newline: it was cut short. Fetch it again.")
    merges = [tuple(line.rstrip("\r").split(" ")) for line in lines]
    return checked_merges(merges, vocabulary, str(path), suffix)


def checked_merges(merges: list, vocabulary: dict[str, int], where: str, suffix: str = "") -> list[Merge]:
    """`merges`, if they are what `read_merges` promises; otherwise a UserError that names `where`."""
    for number, merge in enumerate(merges, start=1):
        if len(merge) != 2:
            raise UserError(f"Merge {number} of {where} is {' '.join(merge)[:60]!r}; expected two pieces and a space.")
        for piece in (*merge, "".join(merge)):
            if piece not in vocabulary:
                raise UserError(
                    f"Merge {number} of {where} needs the piece {piece!r}, which is not in the vocabulary: the two "
                    "files do not belong together. Fetch both from the same place."
                )
    made = {left + right for left, right in merges}
    lost = [piece for piece in vocabulary if piece not in made and not _stands_alone(piece.removesuffix(suffix))]
    if lost:
        raise UserError(
            f"{where} makes {len(made):,} pieces, but the vocabulary has {len(lost):,} more that no merge makes "
            f"({', '.join(map(repr, lost[:4]))}): it was cut short, or the two files do not belong together. "
            "Fetch both again."
        )
    return merges


def _stands_alone(piece: str) -> bool:
    """A character, or the name of a special symbol: no merge has to make it."""
    return len(piece) <= 1 or (piece[0], piece[-1]) in {("<", ">"), ("_", "_"), ("[", "]")}
