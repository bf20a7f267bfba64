"""What is answered: OpenAI's objects of completions and chat completions, whole or in chunks as they are made."""

import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from gpt_jax.inference.streaming import UNKNOWN
from gpt_jax.serving.engine_thread import Piece, Token
from gpt_jax.text.tokenizer import Tokenizer


def speller(tokenizer: Tokenizer) -> Callable[[int], str]:
    """Token id -> its text; a special symbol as chat templates write it."""
    names = {id: content for content, id in tokenizer.symbols.items()}
    return lambda id: names.get(id) or tokenizer.decode([id])


class Answer:
    """One request's answer; `choices` of them, each made of pieces. The two kinds of completion are its subclasses."""

    prefix: str
    kind: str
    chunk_kind: str

    def __init__(self, model: str, spell: Callable[[int], str], *, choices: int, prompt_tokens: int, logprobs: bool):
        self._identity = {"id": f"{self.prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self._spell = spell
        self._prompt_tokens = prompt_tokens
        self._logprobs = logprobs
        self._pieces: list[list[Piece]] = [[] for _ in range(choices)]
        self._characters = [0] * choices

    def take(self, index: int, piece: Piece) -> dict[str, Any]:
        """The choice of a chunk that shows `piece`; it is remembered for `whole`."""
        choice = {
            "index": index,
            **self._chunk_body(piece.text),
            "logprobs": self._token_object(index, piece.tokens) if self._logprobs else None,
            "finish_reason": piece.finished,
        }
        self._pieces[index].append(piece)
        self._characters[index] += len(piece.text)
        return choice

    def opening(self) -> list[dict[str, Any]]:
        """Choices of chunks before the first piece."""
        return []

    def chunk(self, choices: Sequence[dict[str, Any]], usage: dict | None = None) -> dict[str, Any]:
        """An object of a stream."""
        content = {**self._identity, "object": self.chunk_kind, "choices": list(choices)}
        return content if usage is None else content | {"usage": usage}

    def whole(self) -> dict[str, Any]:
        """The object of an answer that is not streamed."""
        choices = []
        for index, pieces in enumerate(self._pieces):
            self._characters[index] = 0
            tokens = [token for piece in pieces for token in piece.tokens]
            choices.append(
                {
                    "index": index,
                    **self._body("".join(piece.text for piece in pieces)),
                    "logprobs": self._token_object(index, tokens) if self._logprobs else None,
                    "finish_reason": pieces[-1].finished,
                }
            )
        return {**self._identity, "object": self.kind, "choices": choices, "usage": self.usage()}

    def usage(self) -> dict[str, int]:
        """Tokens in and out."""
        drawn = sum(pieces[-1].generated for pieces in self._pieces if pieces)
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": drawn,
            "total_tokens": self._prompt_tokens + drawn,
        }

    def _body(self, text: str) -> dict[str, Any]:
        raise NotImplementedError

    def _chunk_body(self, text: str) -> dict[str, Any]:
        raise NotImplementedError

    def _token_object(self, index: int, tokens: Sequence[Token]) -> dict[str, Any]:
        raise NotImplementedError


class Completion(Answer):
    """Of /v1/completions."""

    prefix, kind, chunk_kind = "cmpl", "text_completion", "text_completion"

    def _body(self, text: str) -> dict[str, Any]:
        return {"text": text}

    _chunk_body = _body

    def _token_object(self, index: int, tokens: Sequence[Token]) -> dict[str, Any]:
        texts = [self._spell(token.id) for token in tokens]
        offsets, place = [], self._characters[index]
        for text in texts:
            offsets.append(place)
            place += len(text)
        return {
            "tokens": texts,
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [self._alternatives(token) for token in tokens],
            "text_offset": offsets,
        }

    def _alternatives(self, token: Token) -> dict[str, float] | None:
        if token.logprob is None:
            return None
        told: dict[str, float] = {}
        for id, logprob in token.alternatives:
            told.setdefault(self._spell(id), logprob)  # of two that spell the same broken character, the likelier
        return told


class ChatCompletion(Answer):
    """Of /v1/chat/completions."""

    prefix, kind, chunk_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def opening(self) -> list[dict[str, Any]]:
        """Who speaks, before what is said."""
        delta = {"role": "assistant", "content": ""}
        return [
            {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
            for index in range(len(self._pieces))
        ]

    def _body(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def _chunk_body(self, text: str) -> dict[str, Any]:
        return {"delta": {"content": text} if text else {}}

    def _token_object(self, index: int, tokens: Sequence[Token]) -> dict[str, Any]:
        entries: Iterable[dict] = (
            self._entry(token.id, token.logprob)
            | {"top_logprobs": [self._entry(id, logprob) for id, logprob in token.alternatives]}
            for token in tokens
        )
        return {"content": list(entries), "refusal": None}

    def _entry(self, id: int, logprob: float | None) -> dict[str, Any]:
        text = self._spell(id)
        # Of a token that is a part of a character the bytes are not known here; OpenAI's API allows for that.
        return {"token": text, "logprob": logprob, "bytes": None if UNKNOWN in text else list(text.encode())}
