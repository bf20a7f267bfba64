"""A trained model in hand: for notebooks and other programs."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax.errors import UserError
from gpt_jax.inference.sampler import compile_sampler
from gpt_jax.models import decoder
from gpt_jax.models.config import ModelConfig
from gpt_jax.models.likelihood import next_token_nats
from gpt_jax.parallel.mesh import single_device_mesh
from gpt_jax.runs.pretrained import open_pretrained, prompt_ids
from gpt_jax.text.tokenizer import Tokenizer


class LanguageModel:
    """Weights with their config and tokenizer.

    Attributes:
      config: the `ModelConfig`.
      params: the parameter tree of `models/decoder.py`.
    """

    def __init__(self, path: str | Path, mesh: jax.sharding.Mesh | None = None, tokenizer: str | Path | None = None):
        """Loads what stands at `path`, onto one device unless a mesh is given; see `gpt_jax.load`."""
        self._pretrained = open_pretrained(path)
        self._tokenizer_path = tokenizer
        self._mesh = single_device_mesh() if mesh is None else mesh
        self.config: ModelConfig = self._pretrained.config
        self.params = self._pretrained.parameters(self._mesh)

    def __repr__(self) -> str:
        count = decoder.parameter_count(self.config)
        return f"<LanguageModel {self._pretrained.path}: {count:,} parameters; .generate, .score, .logits>"

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer beside the weights (or the one that `load` was given); opened when it is first asked for."""
        return self._pretrained.tokenizer(self._tokenizer_path)

    def logits(self, tokens_BT: Sequence[Sequence[int]] | np.ndarray) -> jax.Array:
        """Scores of the token after each, float32 [B, T, V], of rows of token ids; T at most the context length."""
        tokens_BT = np.asarray(tokens_BT)
        if tokens_BT.ndim != 2 or not np.issubdtype(tokens_BT.dtype, np.integer) or not tokens_BT.size:
            raise UserError(
                f"tokens: {tokens_BT.dtype} of shape {tokens_BT.shape}: expected integers [batch, time], such as "
                "lm.logits([lm.tokenizer.encode(text)])."
            )
        self._check_length(tokens_BT.shape[1], "tokens")
        if not 0 <= tokens_BT.min() <= tokens_BT.max() < self.config.vocab_size:
            raise UserError(
                f"token ids from {tokens_BT.min()} to {tokens_BT.max()}: the vocabulary has 0 to "
                f"{self.config.vocab_size - 1}."
            )
        with jax.set_mesh(self._mesh):
            return self._logits(self.params, tokens_BT.astype(np.int32))

    def score(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Log-probabilities of each text's tokens, in nats: one float32 [n] a text.

        The first token is predicted from the symbol that the model saw before a text: its beginning-of-text, or the
        end-of-text that stands between documents. They are `log_softmax(logits)`: over tokens alone.
        """
        specials = self.tokenizer.specials
        first = specials.end_of_text if specials.beginning_of_text is None else specials.beginning_of_text
        rows = [np.array([first, *ids], np.int32) for ids in self.tokenizer.encode_batch(_texts(texts))]
        for number, row in enumerate(rows):
            self._check_length(len(row) - 1, f"text {number} ({texts[number][:30]!r}...)")
        longest = max(map(len, rows), default=1)
        if longest == 1:
            return [np.zeros(0, np.float32) for _ in rows]
        tokens = np.full((len(rows), longest), first, np.int32)
        for padded, row in zip(tokens, rows, strict=True):
            padded[: len(row)] = row  # what stands behind a text is seen by none of its tokens
        with jax.set_mesh(self._mesh):
            nats = np.asarray(self._nats(self.params, tokens))
        return [-nats[i, : len(row) - 1] for i, row in enumerate(rows)]

    def generate(
        self,
        prompts: Sequence[str],
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_k: int = 0,
        seed: int = 0,
    ) -> list[str]:
        """The continuation of each prompt, up to the end of text; temperature 0 takes the likeliest token each time.

        A prompt longer than the context leaves beside `max_new_tokens` keeps its last tokens.
        """
        most = self.config.context_length - 1
        for name, value, least, greatest in (
            ("max_new_tokens", max_new_tokens, 1, most),
            ("temperature", temperature, 0, math.inf),
            ("top_k", top_k, 0, math.inf),
            ("seed", seed, 0, 2**32 - 1),
        ):
            if not least <= value <= greatest:
                raise UserError(f"{name}={value}: expected {least} to {greatest}.")
        prompts = _texts(prompts)
        if not prompts:
            return []
        end = self.tokenizer.specials.end_of_text
        sampler = self._sampler(max_new_tokens, float(temperature), top_k)
        ids = [prompt_ids(self.tokenizer, prompt) for prompt in prompts]
        continuations = sampler(self.params, ids, seed).tolist()
        return [self.tokenizer.decode(new[: new.index(end)] if end in new else new) for new in continuations]

    @functools.cache  # noqa: B019 - compiled programs live as long as the model
    def _sampler(self, max_new_tokens: int, temperature: float, top_k: int):
        return compile_sampler(
            self.config,
            self._mesh,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            vocab_size=self.tokenizer.vocab_size,
        )

    @functools.cached_property
    def _logits(self):
        def logits(params: dict, tokens_BT: jax.Array) -> jax.Array:
            hidden_BTD = decoder.hidden_states(params, self.config, tokens_BT)
            return decoder.unembed(hidden_BTD, decoder.output_matrix(params, self.config)).astype(jnp.float32)

        return jax.jit(logits)

    @functools.cached_property
    def _nats(self):
        config = dataclasses.replace(self.config, positions_in_softmax=False)

        def nats(params: dict, tokens_BT: jax.Array) -> jax.Array:
            hidden_BTD = decoder.hidden_states(params, config, tokens_BT[:, :-1])
            return next_token_nats(params, config, hidden_BTD, tokens_BT[:, 1:])

        return jax.jit(nats)

    def _check_length(self, length: int, what: str) -> None:
        if length > self.config.context_length:
            raise UserError(f"{what}: {length:,} tokens, and the context holds {self.config.context_length:,}. Cut it.")


def _texts(texts: Sequence[str]) -> list[str]:
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise UserError(f"expected a list of texts, as in [{'a text'!r}], not {str(texts)[:40]!r}.")
    return list(texts)
