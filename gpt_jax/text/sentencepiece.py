"""SentencePiece with byte fallback, made lossless: any Unicode string comes back exactly.

Why not SentencePiece as it comes: it drops and adds spaces, it turns U+2581 (its own sign for a space) into a space,
and a symbol declared "user-defined" can be spelled by any text. So normalisation is off, U+2581 is sent as its three
bytes, and the special symbols are control symbols, which no text can spell.
"""

import hashlib
import inspect
import io
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import sentencepiece

from gpt_jax.disk import digest, disk_errors_explained, locked
from gpt_jax.errors import UserError
from gpt_jax.progress import byte_progress, say
from gpt_jax.text.sampling import sample_blocks
from gpt_jax.text.tokenizer import (
    MANIFEST,
    SpecialIds,
    Tokenizer,
    check_unicode,
    concatenated_parts,
    load_tokenizer,
    own_symbols,
    save_model,
)

SPECIALS = SpecialIds(pad=0, end_of_text=1, start=3, delimiter=4, extract=5)
UNKNOWN = 2  # SentencePiece insists on one; with byte fallback it is never emitted
# Newlines get pieces of their own, so no piece crosses a line. Two, because the books' paragraphs end in "\n\n": at
# 4,096 BPE pieces their held-out text takes 1.4% fewer tokens than with "\n" alone; "\n\n\n" would gain 0.03%.
NEWLINES = ["\n", "\n\n"]
SPACE_SIGN = "\u2581"

# A line with its newlines, or SentencePiece's space sign. Encoding each on its own makes the ids of a text independent
# of what stands before it (the unigram model sums its scores in float32, and near-ties go either way in a long text),
# so a document encoded in pieces that end in line ends gives the ids of the whole.
_UNIT = re.compile(f"{SPACE_SIGN}|[^\n{SPACE_SIGN}]*\n+|[^\n{SPACE_SIGN}]+")
# Characters that SentencePiece's trainer keeps for itself: it would skip every line that holds one.
_NOT_FOR_TRAINING = re.compile("[\n\0\t\u2581\u2585]+")
# The trainer's sums depend on how the lines are dealt out to threads, so the number is fixed, whatever the machine.
_TRAINER_THREADS = 16
# Part of the name of a cached tokenizer: raise it when `train` would give other ids for the same arguments.
_TRAINING_VERSION = 1


class SentencePieceTokenizer:
    """A `gpt_jax.text.tokenizer.Tokenizer` around one SentencePiece model, given as the bytes of its file."""

    kind = "sentencepiece"
    specials = SPECIALS
    lossless = True
    chat_template = None
    symbol_names: dict[str, str] = {}
    symbols = own_symbols(SPECIALS)

    def __init__(self, model: bytes):
        self._model = model
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self._bytes_of_id = [self._spelling(id) for id in range(self._processor.vocab_size())]
        self._space_sign_ids = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE_SIGN.encode()]
        self.vocab_size = len(self._bytes_of_id)
        self.token_bytes = np.array([len(spelling) for spelling in self._bytes_of_id], np.int32)
        self.fingerprint = hashlib.sha256(self.kind.encode() + model).hexdigest()

    @classmethod
    def from_model(cls, model: bytes) -> "SentencePieceTokenizer":
        """What `load_tokenizer` calls with the model file's content."""
        return cls(model)

    def __reduce__(self):
        return type(self), (self._model,)

    def _spelling(self, id: int) -> bytes:
        processor = self._processor
        if processor.is_control(id) or processor.is_unknown(id):
            return b""
        piece = processor.id_to_piece(id)
        return bytes([int(piece[3:5], 16)]) if processor.is_byte(id) else piece.replace(SPACE_SIGN, " ").encode()

    def encode(self, text: str) -> np.ndarray:
        """Ids of `text`, int32 [n], without special symbols. UserError: `text` holds a lone surrogate."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode` of each text, on all cores."""
        for text in texts:
            check_unicode(text)
        units_of_texts = [_UNIT.findall(text) for text in texts]
        units = list(itertools.chain.from_iterable(units_of_texts))
        ids_of_units = self._processor.encode(units, num_threads=os.cpu_count() or 1) if units else []
        if any(SPACE_SIGN in text for text in texts):
            ids_of_units = [
                self._space_sign_ids if unit == SPACE_SIGN else ids
                for unit, ids in zip(units, ids_of_units, strict=True)
            ]
        ids_of_units = iter(ids_of_units)
        return [
            np.fromiter(itertools.chain.from_iterable(itertools.islice(ids_of_units, len(own_units))), np.int32)
            for own_units in units_of_texts
        ]

    def encode_parts(self, parts: Sequence[str | int]) -> np.ndarray:
        """Ids of texts with special symbols, given by id, between them, int32 [n]."""
        return concatenated_parts(self, parts)

    def last_cut(self, text: str) -> int:
        """The end: documents come in pieces that end in line ends (data/pieces.py), as this kind needs them."""
        return len(text)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text that `ids` spell; special symbols spell nothing, broken UTF-8 becomes U+FFFD."""
        return b"".join([self._bytes_of_id[id] for id in ids]).decode(errors="replace")

    def model_file(self) -> tuple[str, bytes]:
        """A SentencePiece model, as its trainer wrote it."""
        return "sentencepiece.model", self._model

    def save(self, directory: Path) -> None:
        """Writes what `load_tokenizer` needs into `directory`."""
        save_model(directory, self)


def train(
    texts: Iterable[str],
    *,
    vocab_size: int,
    model_type: str = "bpe",
    training_bytes: int = 20_000_000,
    character_coverage: float = 0.9995,
    seed: int = 0,
) -> SentencePieceTokenizer:
    """A tokenizer of `vocab_size` ids learnt from `texts`, the same on every machine.

    Of more than `training_bytes` UTF-8 bytes, blocks of lines are drawn with `seed`, so memory stays bounded.
    `model_type` is "bpe" or "unigram"; `character_coverage` is the share of characters that get pieces (the rest are
    spelled in bytes). UserError: no text, a vocabulary too small for the characters or too large for the text.
    """
    if model_type not in ("bpe", "unigram"):
        raise UserError(f"tokenizer.model_type is {model_type!r}; expected 'bpe' or 'unigram'.")
    blocks = sample_blocks(texts, training_bytes, seed)
    lines = [line for block in blocks for line in _NOT_FOR_TRAINING.split(block) if line]
    if not lines:
        raise UserError("There is no text to train the tokenizer on: the training documents are empty.")
    for line in lines:
        check_unicode(line)
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            model_type=model_type,
            vocab_size=vocab_size,
            byte_fallback=True,
            character_coverage=character_coverage,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            user_defined_symbols=NEWLINES,
            control_symbols=["<|start|>", "<|delimiter|>", "<|extract|>"],
            pad_id=SPECIALS.pad,
            pad_piece="<|pad|>",
            eos_id=SPECIALS.end_of_text,
            eos_piece="<|end_of_text|>",
            unk_id=UNKNOWN,
            bos_id=-1,
            max_sentence_length=2**30,
            num_threads=_TRAINER_THREADS,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise _explained(error, vocab_size) from None
    return SentencePieceTokenizer(model.getvalue())


def _explained(error: RuntimeError, vocab_size: int) -> Exception:
    if found := re.search(r"Vocabulary size too high .*value <= (\d+)", str(error)):
        return UserError(
            f"tokenizer.vocab_size={vocab_size} is larger than the training text supports: it has too "
            f"few different words. The largest that works here is {found[1]}; lower tokenizer.vocab_size "
            "or train on more text."
        )
    if found := re.search(r"smaller than required_chars. \d+ vs (\d+)", str(error)):
        return UserError(
            f"tokenizer.vocab_size={vocab_size} is too small: the special symbols, 256 bytes and the "
            f"text's own characters already take {found[1]}. Set tokenizer.vocab_size above that, or "
            "lower tokenizer.character_coverage."
        )
    return error


def load_or_train(
    texts: Callable[[], Iterable[str]],
    *,
    content_fingerprint: str,
    cache_dir: Path,
    progress: bool = True,
    **settings,
) -> Tokenizer:
    """`train(texts(), **settings)`, or what an earlier call with the same content and settings left in `cache_dir`.

    `content_fingerprint` stands for the texts, which are read only if there is something to train. Processes that ask
    at once wait for the first; a damaged file is named in a warning and built anew. UserError: see `train`; a disk that
    is full or read-only.
    """
    arguments = inspect.signature(train).bind(None, **settings)
    arguments.apply_defaults()
    name = digest("sentencepiece", _TRAINING_VERSION, content_fingerprint, dict(arguments.kwargs))
    folder = Path(cache_dir) / "tokenizers" / name
    if tokenizer := _cached(folder, warn=False):
        return tokenizer
    with disk_errors_explained(Path(cache_dir)), locked(folder / "lock"):
        if tokenizer := _cached(folder, warn=True):  # another process built it while this one waited
            return tokenizer
        with byte_progress("Training the tokenizer", None, progress) as advance:
            tokenizer = train(_counted(texts(), advance), **settings)
        tokenizer.save(folder)
        return tokenizer


def _cached(folder: Path, warn: bool) -> Tokenizer | None:
    if not (folder / MANIFEST).exists():
        return None
    try:
        return load_tokenizer(folder)
    except UserError as damage:
        if warn:
            say(f"Warning: {damage} Training it again.")
        return None


def _counted(texts: Iterable[str], advance: Callable[[int], None]) -> Iterator[str]:
    for text in texts:
        yield text
        advance(len(text))
