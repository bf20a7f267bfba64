"""What makes one decoder differ from another: fields, not classes."""

import dataclasses
import math
from typing import Literal

import jax.numpy as jnp

from gpt_jax.errors import UserError

# Fields that say how a model is trained or run, not what it computes from its parameters.
TRAINING_ONLY = (
    "init_std",
    "position_init_std",
    "scaled_residual_init",
    "positions_in_softmax",
    "dropout",
    "embedding_dropout",
    "embedding_dropout_on",
    "attention_dropout",
    "residual_dropout",
    "compute_dtype",
    "param_dtype",
    "scan_layers",
    "remat",
    "attention_kernel",
    "attention_block",
    "logits_chunk",
)
# Fields of a transformer's blocks, which an LSTM has not; `num_heads`, which has no default, is passed over there.
TRANSFORMER_ONLY = (
    "key_value_heads",
    "head_dim",
    "mlp_dim",
    "norm_position",
    "activation",
    "gated_mlp",
    "attention_pattern",
    "biases",
    "positions_in_softmax",
    "scaled_residual_init",
)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """One member of the family. `gpt_jax.models.presets` names the published ones.

    The three places of dropout follow `dropout` where they are None.
    """

    vocab_size: int
    context_length: int
    num_layers: int
    num_heads: int
    embed_dim: int

    core: Literal["transformer", "lstm"] = "transformer"  # what the layers are; an LSTM's are in lstm.py
    lstm_units: int | None = None  # None: 4 * embed_dim
    key_value_heads: int | None = None  # None: as many as num_heads; fewer: grouped-query attention
    head_dim: int | None = None  # None: embed_dim / num_heads
    mlp_dim: int | None = None  # None: 4 * embed_dim

    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    norm_position: Literal["pre", "post"] = "pre"  # post: norm(x + sublayer(x)), as in GPT-1
    final_norm: bool = True
    norm_epsilon: float = 1e-5
    activation: Literal["gelu_tanh", "gelu", "relu", "relu_squared", "silu"] = "gelu_tanh"
    gated_mlp: bool = False  # down(activation(gate(x)) * up(x))
    positions: Literal["learned", "rotary", "none"] = "learned"
    rope_theta: float = 10_000.0
    rope_scaling: Literal["none", "linear", "llama3"] = "none"  # how the frequencies change for a longer context
    rope_factor: float = 1.0  # linear: all are divided by it; llama3: the low ones
    rope_low_frequency_factor: float = 1.0  # llama3: waves longer than rope_original_context / this are scaled in full,
    rope_high_frequency_factor: float = 4.0  # those shorter than rope_original_context / this are not
    rope_original_context: int = 8192
    attention_pattern: Literal["dense", "alternating"] = "dense"  # alternating: layers 1, 3, ... banded
    attention_window: int = 0  # keys that a query of a banded layer sees, itself included
    biases: Literal["all", "none", "qkv"] = "all"
    tied_output: bool = True
    positions_in_softmax: bool = False  # as in OpenAI's GPT-1 code: see softmax_matrices

    init_std: float = 0.02
    position_init_std: float = 0.02
    scaled_residual_init: bool = False  # kernels that end a residual branch: init_std / sqrt(2 * num_layers)

    dropout: float = 0.0
    embedding_dropout: float | None = None  # on what embedding_dropout_on says
    embedding_dropout_on: Literal["sum", "matrix"] = "sum"  # sum: of token and position; matrix: see drop_embeddings
    attention_dropout: float | None = None  # on the attention weights
    residual_dropout: float | None = None  # on the output of attention and of the MLP, before the sum

    compute_dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    param_dtype: Literal["float32", "float64"] = "float32"
    scan_layers: bool = False  # one compiled block in a loop: quicker to compile, slower to run
    # What the forward pass keeps for the backward pass; the rest is computed again. block: each layer's input; dots:
    # the products of activations with weights, and attention's ends; offload: the products, in the host's memory.
    remat: Literal["none", "block", "dots", "offload"] = "none"
    # auto: the fastest that the devices, the length and dropout allow; see attention_kernels.py
    attention_kernel: Literal["auto", "plain", "cudnn", "splash"] = "auto"
    attention_block: int = 0  # (plain) queries of one block, which skips the keys behind its end; 0: all in one
    logits_chunk: int = 0  # positions whose logits stand in memory at once in the loss; 0: all

    def __post_init__(self):
        choices = {
            "core": ("transformer", "lstm"),
            "norm": ("layernorm", "rmsnorm"),
            "norm_position": ("pre", "post"),
            "activation": ("gelu_tanh", "gelu", "relu", "relu_squared", "silu"),
            "positions": ("learned", "rotary", "none"),
            "rope_scaling": ("none", "linear", "llama3"),
            "attention_pattern": ("dense", "alternating"),
            "embedding_dropout_on": ("sum", "matrix"),
            "biases": ("all", "none", "qkv"),
            "compute_dtype": ("float32", "bfloat16", "float64"),
            "param_dtype": ("float32", "float64"),
            "attention_kernel": ("auto", "plain", "cudnn", "splash"),
            "remat": ("none", "block", "dots", "offload"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise UserError(f"model.{name}={getattr(self, name)!r}: expected one of {', '.join(allowed)}.")
        sizes = ("vocab_size", "context_length", "num_layers", "num_heads", "embed_dim", "rope_original_context")
        for name in (*sizes, "key_value_heads", "head_dim", "mlp_dim", "lstm_units"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"model.{name}={value}: expected at least 1.")
        for name in ("rope_theta", "rope_factor", "norm_epsilon"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"model.{name}={getattr(self, name)}: expected a positive number.")
        for name in ("init_std", "position_init_std"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"model.{name}={getattr(self, name)}: expected 0 or a positive number.")
        if self.core == "lstm":
            self._check_lstm()
        elif self.lstm_units is not None:
            raise UserError(f"model.lstm_units={self.lstm_units}: only model.core=lstm has them; leave it empty.")
        if self.head_dim is None and self.embed_dim % self.num_heads:
            raise UserError(
                f"model: num_heads={self.num_heads} does not divide embed_dim={self.embed_dim}. "
                f"Head counts that do: {_divisors(self.embed_dim)}."
            )
        if self.positions == "rotary" and self.head_width % 2:
            raise UserError(f"model: rotary positions turn pairs, and the head width {self.head_width} is odd.")
        if self.num_heads % self.kv_heads:
            raise UserError(
                f"model: key_value_heads={self.kv_heads} does not divide num_heads={self.num_heads}; "
                "every key/value head serves the same number of query heads."
            )
        if self.attention_pattern == "alternating" and self.attention_window < 1:
            raise UserError(
                f"model.attention_window={self.attention_window}: banded layers need the number of keys that a query "
                "sees, at least 1 (GPT-3's is not published; 256 is this project's choice)."
            )
        if not 0 < self.rope_low_frequency_factor < self.rope_high_frequency_factor:
            raise UserError(
                f"model: rope_low_frequency_factor={self.rope_low_frequency_factor}, rope_high_frequency_factor="
                f"{self.rope_high_frequency_factor}: expected two positive numbers, the low one below the high one."
            )
        if self.positions_in_softmax and not (self.positions == "learned" and self.tied_output):
            raise UserError(
                "model.positions_in_softmax=True: only learned positions in a tied output can stand in the softmax; "
                "set positions=learned and tied_output=True."
            )
        for name in ("dropout", "embedding_dropout", "attention_dropout", "residual_dropout"):
            rate = getattr(self, name)
            if rate is not None and not 0 <= rate < 1:
                raise UserError(f"model.{name}={rate}: expected a rate from 0 to below 1.")
        for name in ("attention_block", "logits_chunk"):
            if getattr(self, name) < 0:
                raise UserError(f"model.{name}={getattr(self, name)}: expected 0 (all positions) or a positive number.")

    def _check_lstm(self) -> None:
        """Raises UserError for fields that an LSTM cannot have."""
        default = {field.name: field.default for field in dataclasses.fields(self)}
        strange = [name for name in TRANSFORMER_ONLY if getattr(self, name) != default[name]]
        if strange:
            values = ", ".join(f"{name}={getattr(self, name)!r}" for name in strange)
            raise UserError(
                f"model.core=lstm does not go with {values}: an LSTM has no blocks of a transformer. Begin with the "
                "preset lstm or laptop-lstm, or leave these fields empty."
            )
        if self.positions != "none":
            raise UserError(
                f"model.core=lstm does not go with positions={self.positions!r}: the recurrence itself knows the "
                "order; set model.positions=none."
            )

    @property
    def lstm_width(self) -> int:
        """U: units of one layer of an LSTM."""
        return self.lstm_units or 4 * self.embed_dim

    @property
    def kv_heads(self) -> int:
        """K: number of key/value heads."""
        return self.key_value_heads or self.num_heads

    @property
    def head_width(self) -> int:
        """H: width of one head."""
        return self.head_dim or self.embed_dim // self.num_heads

    @property
    def mlp_width(self) -> int:
        """F: inner width of the MLP."""
        return self.mlp_dim or 4 * self.embed_dim

    @property
    def attention_windows(self) -> tuple[int, ...]:
        """Of each layer in a period of the pattern, the keys that a query sees; 0: all up to itself."""
        return (0,) if self.attention_pattern == "dense" else (0, self.attention_window)

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype of activations and matmuls."""
        return jnp.dtype(self.compute_dtype)

    def dropout_rate(self, place: Literal["embedding", "attention", "residual"]) -> float:
        """The rate of one place of dropout."""
        rate = getattr(self, f"{place}_dropout")
        return self.dropout if rate is None else rate


def _divisors(n: int) -> str:
    return ", ".join(str(d) for d in range(1, min(n, 128) + 1) if n % d == 0)
