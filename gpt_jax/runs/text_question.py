"""How well a model predicts any text, as a question: perplexity and bits per byte.

The windows are the usual ones: of `length` tokens, each `stride` further than the one before, and of each only the
tokens are scored that none before it has scored. So every token of a document is scored once, all but those of its
first window with at least length - stride tokens before them; the first token follows the symbol that stands before a
document.
"""

import dataclasses
import functools
import math

import numpy as np
from ml_collections import ConfigDict

from gpt_jax.data.sources import open_source
from gpt_jax.errors import UserError, did_you_mean
from gpt_jax.runs.questions import Answers, Asked, Row, batches_of
from gpt_jax.runs.workdir import cache_folder
from gpt_jax.text.detokenizers import DETOKENIZERS
from gpt_jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class TextQuestion:
    """The documents of a text; see `questions.Question`.

    documents: int32 [length] each, with the symbol before it.
    words, bytes: of each, as it stands in its file.
    """

    name: str
    documents: list[np.ndarray]
    words: np.ndarray
    bytes: np.ndarray
    length: int
    stride: int
    detokenizer: str
    fingerprint: str

    task, split, shots, chance = "text", "text", None, None
    metrics = ("perplexity", "perplexity_per_word", "perplexity_per_byte", "bits_per_byte", "loss")

    @property
    def examples(self) -> int:
        """How many documents there are."""
        return len(self.documents)

    @property
    def described(self) -> str:
        """The denominators and the windows, in words."""
        words = f"per token; windows of {self.length:,} tokens, stride {self.stride:,}"
        return words if self.detokenizer == "none" else f"{words}; de-tokenised ({self.detokenizer})"

    @property
    def facts(self) -> Row:
        """For data.json."""
        return {"text": self.fingerprint, "documents": self.examples, "tokens": self._tokens}

    @property
    def _tokens(self) -> int:
        return sum(len(document) - 1 for document in self.documents)

    @functools.cached_property
    def windows(self) -> list[tuple[int, int, int, int]]:
        """(document, first token, first scored token, end) of each."""
        found = []
        for number, document in enumerate(self.documents):
            scored = 1
            for first in range(0, len(document), self.stride):
                end = min(first + self.length, len(document))
                found.append((number, first, scored, end))
                scored = end
                if end == len(document):
                    break
        return found

    def batches(self, size: int) -> int:
        """How many batches of `size` windows it takes."""
        return batches_of(len(self.windows), size)

    def answer(self, model: Asked) -> Answers:
        """The perplexity per token, word and byte, and bits per byte; a row of predictions a document."""
        sequences = [self.documents[number][first:end] for number, first, _, end in self.windows]
        starts = np.array([scored - first for _, first, scored, _ in self.windows])
        values, _ = model.log_probabilities(model.texts(sequences, starts))
        nats = np.zeros(self.examples)
        np.add.at(nats, [number for number, *_ in self.windows], -values)
        total, tokens, words, size = nats.sum(), self._tokens, int(self.words.sum()), int(self.bytes.sum())
        metrics = {
            "perplexity": math.exp(total / tokens),
            "perplexity_per_word": math.exp(min(total / max(words, 1), 700)),
            "perplexity_per_byte": math.exp(total / size),
            "bits_per_byte": total / math.log(2) / size,
            "loss": total / tokens,
        }
        rows = [
            {"id": number, "nats": float(own), "tokens": len(document) - 1, "words": int(w), "bytes": int(b)}
            for number, (own, document, w, b) in enumerate(
                zip(nats, self.documents, self.words, self.bytes, strict=True)
            )
        ]
        counts = {"tokens_scored": tokens, "words": words, "bytes": size, "length": self.length, "stride": self.stride}
        return Answers(metrics, rows, counts)


def open_text(data: ConfigDict, tokenizer: Tokenizer, context_length: int) -> list[TextQuestion]:
    """The text at `data.source`.

    Raises:
      UserError: no text there, or what is no UTF-8; windows that are no windows; an unknown de-tokeniser.
    """
    if data.source is None:
        raise UserError("data.source is missing: the address of a text, file:PATH (txt, jsonl), books, tfds:NAME.")
    if data.detokenizer not in DETOKENIZERS:
        raise UserError(
            f"data.detokenizer={data.detokenizer!r}.{did_you_mean(data.detokenizer, DETOKENIZERS)} "
            f"Expected one of {', '.join(DETOKENIZERS)}."
        )
    length = min(context_length, data.length or context_length)
    stride = data.stride or length // 2
    if not 2 <= length or not 1 <= stride < length or (data.length or 0) > context_length:
        raise UserError(
            f"data.length={data.length}, data.stride={data.stride}: expected a length of 2 to {context_length:,} (the "
            "model's context) and a stride of at least 1 and less than the length, so that every token has a context."
        )
    source = open_source(
        data.source,
        text_field=data.text_field,
        encoding=data.encoding,
        validation_fraction=0.0,
        cache_dir=cache_folder(None),
    )
    texts, parts = [], []
    for piece in source.pieces("train"):
        parts.append(piece.text)
        if piece.ends_document:
            texts.append("".join(parts))
            parts = []
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise UserError(f"data.source={data.source}: there is no text in it. Name one that holds some.")
    specials = tokenizer.specials
    first = specials.end_of_text if specials.beginning_of_text is None else specials.beginning_of_text
    clean = [DETOKENIZERS[data.detokenizer](text) for text in texts]
    documents = [np.concatenate([[first], ids]).astype(np.int32) for ids in tokenizer.encode_batch(clean)]
    words, sizes = np.array([len(text.split()) for text in texts]), np.array([len(text.encode()) for text in texts])
    fingerprint = source.fingerprint("train")
    return [TextQuestion("text", documents, words, sizes, length, stride, data.detokenizer, fingerprint)]
