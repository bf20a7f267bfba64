"""A trained model in hand: for notebooks and other programs."""

import functools
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
from gpt_jax.runs.pretrained import open_pretrained
from gpt_jax.text.tokenizer import Tokenizer


class LanguageModel:
    """Weights with their config and tokenizer.

    Attributes:
      config: the `ModelConfig`.
      params: the parameter tree of `models/decoder.py`.
    """

    def __init__(self, path: str | Path, mesh: jax.sharding.Mesh | None = None):
        """Loads what stands at `path`, onto one device unless a mesh is given; see `gpt_jax.load`."""
        self._pretrained = open_pretrained(path)
        self._mesh = single_device_mesh() if mesh is None else mesh
        self.config: ModelConfig = self._pretrained.config
        self.params = self._pretrained.parameters(self._mesh)

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer beside the weights; opened when it is first asked for."""
        return self._pretrained.tokenizer()

    def logits(self, tokens_BT: Sequence[Sequence[int]] | np.ndarray) -> jax.Array:
        """Scores of the token after each, float32 [B, T, V]; T at most the context length."""
        with jax.set_mesh(self._mesh):
            return self._logits(self.params, self._checked(np.asarray(tokens_BT, np.int32)))

    def score(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Log-probabilities of each text's tokens, in nats: one float32 [n] a text.

        The first token is predicted from the symbol that the model saw before a text: its beginning-of-text, or the
        end-of-text that stands between documents.
        """
        specials = self.tokenizer.specials
        first = specials.end_of_text if specials.beginning_of_text is None else specials.beginning_of_text
        rows = [np.array([first, *ids], np.int32) for ids in self.tokenizer.encode_batch(texts)]
        tokens = np.full((len(rows), max(map(len, rows), default=1)), first, np.int32)
        for padded, row in zip(tokens, rows, strict=True):
            padded[: len(row)] = row  # what stands behind a text is seen by none of its tokens
        self._checked(tokens[:, 1:])
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
        """The continuation of each prompt, up to the end of text; temperature 0 takes the likeliest token each time."""
        most = self.config.context_length - 1
        if not 1 <= max_new_tokens <= most:
            raise UserError(f"max_new_tokens={max_new_tokens}: expected 1 to {most}, one less than the context.")
        end = self.tokenizer.specials.end_of_text
        ids = [ids.tolist() or [end] for ids in self.tokenizer.encode_batch(prompts)]
        sampler = self._sampler(max_new_tokens, temperature, top_k)
        continuations = sampler(self.params, ids, seed).tolist()
        return [self.tokenizer.decode(new[: new.index(end)] if end in new else new) for new in continuations]

    @functools.cache  # noqa: B019 - compiled programs live as long as the model
    def _sampler(self, max_new_tokens: int, temperature: float, top_k: int):
        return compile_sampler(
            self.config, self._mesh, max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k
        )

    @functools.cached_property
    def _logits(self):
        def logits(params: dict, tokens_BT: jax.Array) -> jax.Array:
            hidden_BTD = decoder.hidden_states(params, self.config, tokens_BT)
            return decoder.unembed(hidden_BTD, decoder.output_matrix(params, self.config)).astype(jnp.float32)

        return jax.jit(logits)

    @functools.cached_property
    def _nats(self):
        def nats(params: dict, tokens_BT: jax.Array) -> jax.Array:
            hidden_BTD = decoder.hidden_states(params, self.config, tokens_BT[:, :-1])
            return next_token_nats(params, self.config, hidden_BTD, tokens_BT[:, 1:])

        return jax.jit(nats)

    def _checked(self, tokens_BT: np.ndarray) -> np.ndarray:
        if tokens_BT.ndim != 2 or tokens_BT.shape[1] > self.config.context_length:
            raise UserError(
                f"tokens of shape {tokens_BT.shape}: expected [batch, time], time at most {self.config.context_length}."
            )
        if tokens_BT.size and not 0 <= tokens_BT.min() <= tokens_BT.max() < self.config.vocab_size:
            raise UserError(
                f"token ids from {tokens_BT.min()} to {tokens_BT.max()}: the vocabulary has 0 to "
                f"{self.config.vocab_size - 1}."
            )
        return tokens_BT
