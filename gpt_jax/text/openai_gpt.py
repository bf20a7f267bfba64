"""GPT-1's own text pipeline: what its pretrained parameters expect, id for id.

As in OpenAI's finetune-transformer-lm (text_utils.py): ftfy repairs the text, punctuation is set apart, spaCy's English
rules cut it into tokens (no downloaded model is needed for that), each token is lower-cased and spelled by BPE, where
`</w>` marks the end of a token. Hugging Face's tokenizer of the same name does none of the first three steps and gives
other ids for most texts.

Nearly all of the time would go into spaCy, whose rules look at one word (what stands between spaces) at a time, but for
one thing: its emoticons and abbreviations ("w/o") are also looked for across words. So the ids of a word are
remembered, and only words between which such a match is possible go through spaCy together, every time.
"""

import hashlib
import json
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpt_jax.errors import UserError
from gpt_jax.extras import require
from gpt_jax.text.bpe_files import Merge, checked_merges, checked_vocabulary, read_merges, read_vocabulary
from gpt_jax.text.tokenizer import (
    SpecialIds,
    before_last_word,
    check_unicode,
    concatenated_parts,
    own_symbols,
    save_model,
)

UNKNOWN = "<unk>"
NEWLINE = "\n</w>"
WORD_END = "</w>"
OPENAI_FILES = ("encoder_bpe_40000.json", "vocab_40000.bpe")  # pieces and merges, as OpenAI named them
# OpenAI's names for the symbols that its fine-tuning appends (train.py); in a vocabulary only if it was exported so.
FINE_TUNING_PIECES = {"start": "_start_", "delimiter": "_delimiter_", "extract": "_classify_"}

_LIKE_ASCII = str.maketrans({"—": "-", "–": "-", "―": "-", "…": "...", "´": "'"})
# OpenAI's pattern also names the backslash, but not in a raw string: there `\\+` is an escaped plus sign.
_SET_APART = re.compile(r'(([-~!";?+,)(/*\[\]}{|_])\2*)')
_LINE_ENDS = re.compile(r"\s*\n\s*")
_OTHER_SPACE = re.compile(r"[^\S\n]+")
# More different words than this are rare ones, mostly: start afresh, so that memory stays bounded.
_REMEMBERED_WORDS = 2**18


def standardised(text: str) -> str:
    """`text` with punctuation set apart, " \\n " for each run of line ends, one space for other runs of white space."""
    text = _SET_APART.sub(r" \1 ", text.translate(_LIKE_ASCII))
    return _OTHER_SPACE.sub(" ", _LINE_ENDS.sub(" \n ", text)).strip()


class OpenAIGPTTokenizer:
    """A `gpt_jax.text.tokenizer.Tokenizer` with GPT-1's vocabulary of 40,478 pieces, or another made the same way.

    Text comes back repaired, standardised and lower-cased, a space after each token. Characters that the vocabulary
    lacks become `<unk>` and are lost. There are no special symbols: the newline `\\n</w>` (40477) stands between
    documents, `<unk>` (0) pads, as in OpenAI's code; `gpt_jax.text.symbols` appends those for fine-tuning.

    A document's ids are those of the whole document: encoded in parts, it lacks the newline between them.
    """

    kind = "openai-gpt"
    lossless = False
    chat_template = None
    symbol_names: dict[str, str] = {}

    def __init__(self, vocabulary: dict[str, int], merges: list[Merge]):
        for piece in (UNKNOWN, NEWLINE):
            if piece not in vocabulary:
                raise UserError(f"The vocabulary lacks {piece!r}, which GPT-1's tokenizer needs: is it another's?")
        self.vocabulary = vocabulary
        self.merges = merges
        self.vocab_size = len(vocabulary)
        fine_tuning = {name: vocabulary.get(piece) for name, piece in FINE_TUNING_PIECES.items()}
        self.specials = SpecialIds(pad=vocabulary[UNKNOWN], end_of_text=vocabulary[NEWLINE], **fine_tuning)
        self.symbols = own_symbols(self.specials)
        self._spellings = [""] * self.vocab_size
        for piece, id in vocabulary.items():
            self._spellings[id] = _spelling(piece)
        self.token_bytes = np.array([len(spelling.encode()) for spelling in self._spellings], np.int32)
        self._rank = {merge: rank for rank, merge in enumerate(merges)}
        self._fix_text = require("ftfy", "gpt1").fix_text
        self._splitter = _WordSplitter()
        self._ids_of_token: dict[str, tuple[int, ...]] = {}
        self._known: dict[str, _Word] = {}
        self._lock = threading.Lock()
        self.fingerprint = hashlib.sha256(self.kind.encode() + self.model_file()[1]).hexdigest()

    @classmethod
    def from_files(cls, vocabulary: Path, merges: Path) -> "OpenAIGPTTokenizer":
        """From `encoder_bpe_40000.json` and `vocab_40000.bpe`. UserError: a file is missing, damaged or another's."""
        pieces = read_vocabulary(vocabulary)
        return cls(pieces, read_merges(merges, pieces, WORD_END))

    @classmethod
    def from_model(cls, model: bytes) -> "OpenAIGPTTokenizer":
        """What `load_tokenizer` calls with the model file's content."""
        try:
            content = json.loads(model)
            vocabulary, merges = content["vocabulary"], [tuple(merge.split(" ")) for merge in content["merges"]]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"The model file of an openai-gpt tokenizer is damaged ({error!r}). Rebuild it.") from None
        vocabulary = checked_vocabulary(vocabulary, "in the model file")
        return cls(vocabulary, checked_merges(merges, vocabulary, "the model file", WORD_END))

    def __reduce__(self):
        return type(self), (self.vocabulary, self.merges)

    def encode(self, text: str) -> np.ndarray:
        """Ids of `text`, int32 [n]. UserError: `text` holds a lone surrogate."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode` of each text, on one core: Python's lock is held throughout."""
        for text in texts:
            check_unicode(text)
        with self._lock, self._splitter.bounded_memory():
            return [np.array(self._ids(standardised(self._fix_text(text))), np.int32) for text in texts]

    def encode_parts(self, parts: Sequence[str | int]) -> np.ndarray:
        """Ids of texts with special symbols, given by id, between them, int32 [n]."""
        return concatenated_parts(self, parts)

    def last_cut(self, text: str) -> int:
        """Before the last word, for a newline is a symbol that needs what follows it. See the protocol."""
        return before_last_word(text)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The normalised text that `ids` spell: a space after each token but the last and before no newline."""
        text = "".join([self._spellings[id] for id in ids])
        return text.replace(" \n", "\n").removesuffix(" ")

    def model_file(self) -> tuple[str, bytes]:
        """Both of OpenAI's files in one: {"vocabulary": {piece: id}, "merges": ["left right", ...]}."""
        content = {"vocabulary": self.vocabulary, "merges": [" ".join(merge) for merge in self.merges]}
        return "openai_gpt.json", json.dumps(content).encode()

    def save(self, directory: Path) -> None:
        """Writes what `load_tokenizer` needs into `directory`."""
        save_model(directory, self)

    def _ids(self, text: str) -> list[int]:
        """Ids of a standardised text, whose lines are separated by " \\n "; spaCy makes one token of each "\\n "."""
        ids: list[int] = []
        for number, line in enumerate(text.split(" \n ") if text else []):
            if number:
                ids.append(self.specials.end_of_text)
            self._add_line(ids, line.split(" "))
        return ids

    def _add_line(self, ids: list[int], words: list[str]) -> None:
        known = [self._known.get(word) or self._word(word) for word in words]
        start = 0
        for place, word in enumerate(known):
            reaches_on = place + 1 < len(known) and not known[place + 1].begins.isdisjoint(word.continued_by)
            if reaches_on:
                continue
            ids.extend(word.ids if start == place else self._token_ids(self._splitter.tokens(words[start : place + 1])))
            start = place + 1

    def _word(self, text: str) -> "_Word":
        if len(self._known) >= _REMEMBERED_WORDS:
            self._known.clear()
            self._ids_of_token.clear()
        tokens = self._splitter.tokens([text])
        word = _Word(tuple(self._token_ids(tokens)), *self._splitter.edges(text, tokens))
        self._known[text] = word
        return word

    def _token_ids(self, tokens: list[str]) -> list[int]:
        ids = []
        for token in tokens:
            token = token.lower()
            if token not in self._ids_of_token:
                pieces = self._bpe(token)
                self._ids_of_token[token] = tuple(self.vocabulary.get(piece, self.specials.pad) for piece in pieces)
            ids.extend(self._ids_of_token[token])
        return ids

    def _bpe(self, token: str) -> list[str]:
        """The pieces of `token`: its best-ranked pair is joined, wherever it stands, until no pair has a rank."""
        pieces = [*token[:-1], token[-1] + WORD_END]
        while len(pieces) > 1:
            best = min(zip(pieces, pieces[1:], strict=False), key=lambda pair: self._rank.get(pair, len(self._rank)))
            if best not in self._rank:
                break
            joined, place = [], 0
            while place < len(pieces):
                pair = tuple(pieces[place : place + 2])
                joined.append("".join(pair) if pair == best else pieces[place])
                place += 2 if pair == best else 1
            pieces = joined
        return pieces


def _spelling(piece: str) -> str:
    if piece == UNKNOWN or piece in FINE_TUNING_PIECES.values():
        return ""
    if piece == NEWLINE:
        return "\n"
    return piece.removesuffix(WORD_END) + " " if piece.endswith(WORD_END) else piece


@dataclass(frozen=True, slots=True)
class _Word:
    """What stands between two spaces. If `begins` meets the `continued_by` of the word before, spaCy must see both."""

    ids: tuple[int, ...]
    begins: frozenset[str]
    continued_by: frozenset[str]


class _WordSplitter:
    """spaCy's English rules (`spacy.blank("en")`), and where one of its patterns could reach over a space."""

    def __init__(self):
        spacy = require("spacy", "gpt1")
        self._tokenizer = spacy.blank("en").tokenizer
        affixes = ("prefix_search", "suffix_search", "infix_finditer", "token_match", "url_match")
        self._without_patterns = type(self._tokenizer)(
            self._tokenizer.vocab, rules={}, **{name: getattr(self._tokenizer, name) for name in affixes}
        )
        self._followers: dict[str, set[str]] = {}
        for pattern in self._tokenizer.rules:
            tokens = [token.text for token in self._without_patterns(pattern)]
            for left, right in zip(tokens, tokens[1:], strict=False):
                self._followers.setdefault(left, set()).add(right)
        self._seconds = frozenset().union(*self._followers.values())

    def bounded_memory(self):
        """A context in which spaCy forgets the words it has seen when it ends; not to be nested."""
        return self._tokenizer.vocab.memory_zone()

    def tokens(self, words: list[str]) -> list[str]:
        """spaCy's tokens of some words of one line."""
        return [token.text for token in self._tokenizer(" ".join(words))]

    def edges(self, word: str, tokens: list[str]) -> tuple[frozenset[str], frozenset[str]]:
        """`begins` and `continued_by` of `word`, which has `tokens`: rather too much than too little."""
        if tokens == [word] and len(self._without_patterns(word)) == 1:
            return self._seconds & {word}, frozenset(self._followers.get(word, ()))
        begins = {second for second in self._seconds if word.startswith(second)}
        followers = [self._followers[first] for first in self._followers if word.endswith(first)]
        return frozenset(begins), frozenset().union(*followers)
