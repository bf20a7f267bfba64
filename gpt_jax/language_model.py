"""A trained model in hand: for notebooks and other programs."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax.errors import UserError
from gpt_jax.inference.beam_search import beam_search
from gpt_jax.inference.engine import Engine
from gpt_jax.inference.generation import continue_prompts
from gpt_jax.inference.sampling import Sampling
from gpt_jax.inference.streaming import text_of
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
        *,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        stop: Sequence[str] | str = (),
        beams: int = 0,
        length_penalty: float = 1.0,
    ) -> list[str]:
        """The continuation of each prompt, up to the end of text or the first of the `stop` strings.

        Temperature 0 takes the likeliest token each time; the other options are those of `inference.sampling.Sampling`
        and, with `beams`, of `inference.beam_search`. The n-th prompt draws with the n-th key of the seed, whatever the
        others are.

        Raises:
          UserError: when an option is out of its range, or a prompt leaves no room in the context.
        """
        prompts = _texts(prompts)
        sampling = Sampling(max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty, seed)
        ids = [prompt_ids(self.tokenizer, prompt) for prompt in prompts]
        if beams:
            if temperature or repetition_penalty != 1:
                raise UserError(
                    f"beams={beams} with temperature={temperature}, repetition_penalty={repetition_penalty}: a beam "
                    "search draws nothing, and penalises nothing. Leave both out."
                )
            found = (
                beam_search(
                    self._engine, one, beams=beams, max_new_tokens=max_new_tokens, length_penalty=length_penalty
                )[0].ids
                for one in ids
            )
            return [text_of(self.tokenizer, new, one, stop) for new, one in zip(found, ids, strict=True)]
        texts = [""] * len(prompts)
        for piece in continue_prompts(self._engine, self.tokenizer, ids, sampling, stop=stop):
            texts[piece.prompt] = piece.so_far.text
        return texts

    @functools.cached_property
    def _engine(self) -> Engine:
        return Engine(
            self.params,
            self.config,
            self._mesh,
            vocab_size=self.tokenizer.vocab_size,
            end_ids=self._pretrained.end_ids(self.tokenizer),
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
