"""Published models by name, with the source of each number; and the laptop-sized default."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from gpt_jax.errors import UserError, did_you_mean
from gpt_jax.models.config import TRAINING_ONLY, ModelConfig

# Radford et al. 2018, "Improving Language Understanding by Generative Pre-Training", §4.1, and the released code
# (openai/finetune-transformer-lm, train.py): post-norm, no norm after the last layer, tanh-approximated GELU, every
# weight N(0, 0.02), three dropouts of 0.1. 116,534,784 parameters with the released vocabulary of 40,478.
_GPT1 = dict(
    vocab_size=40_478,
    context_length=512,
    num_layers=12,
    num_heads=12,
    embed_dim=768,
    norm_position="post",
    final_norm=False,
    dropout=0.1,
)

# Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", table 2, and the released code
# (openai/gpt-2, src/model.py): pre-norm with a norm at the end, token embeddings N(0, 0.02), positions N(0, 0.01);
# residual branches scaled by 1/sqrt(number of residual layers) as the paper says (§2.3). The paper gives no dropout.
_GPT2 = dict(
    vocab_size=50_257,
    context_length=1024,
    position_init_std=0.01,
    scaled_residual_init=True,
)

# Brown et al. 2020, "Language Models are Few-Shot Learners", table 2.1 and §2.1: GPT-2's parts with a context of 2048
# and alternating dense and locally banded attention. Two printed entries contradict themselves, and are resolved as
# GPT-NeoX did: "1.3B" has 24 heads of 128 in a width of 2048 (16 heads here), "13B" a width of 5140 for 40 heads of 128
# (5120 here). The band's width is not published; 256 keys is this project's choice. The names are the published counts.
_GPT3 = dict(_GPT2, context_length=2048, attention_pattern="alternating", attention_window=256)

# Touvron et al. 2023, "LLaMA" (table 2) and "Llama 2" (table 1), with the released configs' widths of the MLP.
_LLAMA1 = dict(
    vocab_size=32_000,
    context_length=2048,
    norm="rmsnorm",
    norm_epsilon=1e-6,
    gated_mlp=True,
    activation="silu",
    positions="rotary",
    biases="none",
    tied_output=False,
)
_LLAMA2 = dict(_LLAMA1, context_length=4096, norm_epsilon=1e-5)
# Grattafiori et al. 2024, "The Llama 3 Herd of Models", table 3; the context and its scaling from the released configs.
_LLAMA3 = dict(_LLAMA2, vocab_size=128_256, context_length=8192, rope_theta=500_000.0, key_value_heads=8)
_LLAMA31 = dict(
    _LLAMA3,
    context_length=131_072,
    rope_scaling="llama3",
    rope_factor=8.0,
    rope_low_frequency_factor=1.0,
    rope_high_frequency_factor=4.0,
    rope_original_context=8192,
)
_LLAMA32 = dict(_LLAMA31, rope_factor=32.0, tied_output=True)

# Yang et al. 2024, "Qwen2 Technical Report" (table 1) and "Qwen2.5 Technical Report"; contexts, epsilons, tied
# outputs from the released configs of the base models.
_QWEN2 = dict(
    _LLAMA1,
    vocab_size=151_936,
    context_length=131_072,
    rope_theta=1_000_000.0,
    biases="qkv",
)


# Sized for two CPU cores and ten minutes, with what has become usual since GPT-2: RMSNorm, rotary positions, squared
# ReLU, no biases. After the same tokens it is 0.12 bits per byte better than GPT-2's own parts (LOG.md).
_SMALL = dict(
    vocab_size=4096,
    context_length=128,
    num_layers=4,
    num_heads=4,
    embed_dim=128,
    norm="rmsnorm",
    activation="relu_squared",
    positions="rotary",
    biases="none",
    scaled_residual_init=True,
    attention_block=64,
    logits_chunk=64,
)


def _sizes(layers: int, width: int, heads: int, key_value_heads: int | None = None, mlp: int | None = None) -> dict:
    return dict(
        num_layers=layers, embed_dim=width, num_heads=heads, key_value_heads=key_value_heads, mlp_dim=mlp
    )  # fmt: skip


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "gpt1": _GPT1,  # 116,534,784 parameters
    # §5, table 5: "a single layer 2048 unit LSTM using the same framework". Not printed, and chosen here: a projection
    # back to GPT-1's width, and a norm at the end, since post-norm GPT-1 ends in one too.
    "lstm": dict(
        vocab_size=40_478,
        context_length=512,
        num_layers=1,
        num_heads=1,
        embed_dim=768,
        core="lstm",
        lstm_units=2048,
        positions="none",
        dropout=0.1,
    ),  # 55,738,368 parameters
    # With the two peculiarities of the released fine-tuning code: dropout on the embedding matrix itself, and the
    # position rows in the softmax. Whether pretraining had them was asked and never answered.
    "gpt1-released": dict(_GPT1, embedding_dropout_on="matrix", positions_in_softmax=True),
    "gpt2-small": dict(_GPT2, **_sizes(12, 768, 12)),  # 124,439,808
    "gpt2-medium": dict(_GPT2, **_sizes(24, 1024, 16)),  # 354,823,168
    "gpt2-large": dict(_GPT2, **_sizes(36, 1280, 20)),  # 774,030,080
    "gpt2-xl": dict(_GPT2, **_sizes(48, 1600, 25)),  # 1,557,611,200
    "gpt3-125M": dict(_GPT3, **_sizes(12, 768, 12)),
    "gpt3-350M": dict(_GPT3, **_sizes(24, 1024, 16)),
    "gpt3-760M": dict(_GPT3, **_sizes(24, 1536, 16)),
    "gpt3-1.3B": dict(_GPT3, **_sizes(24, 2048, 16)),
    "gpt3-2.7B": dict(_GPT3, **_sizes(32, 2560, 32)),
    "gpt3-6.7B": dict(_GPT3, **_sizes(32, 4096, 32)),
    "gpt3-13B": dict(_GPT3, **_sizes(40, 5120, 40)),
    "gpt3-175B": dict(_GPT3, **_sizes(96, 12288, 96)),
    "llama1-7B": dict(_LLAMA1, **_sizes(32, 4096, 32, mlp=11008)),  # 6,738,415,616
    "llama1-13B": dict(_LLAMA1, **_sizes(40, 5120, 40, mlp=13824)),  # 13,015,864,320
    "llama1-33B": dict(_LLAMA1, **_sizes(60, 6656, 52, mlp=17920)),  # 32,528,943,616
    "llama1-65B": dict(_LLAMA1, **_sizes(80, 8192, 64, mlp=22016), norm_epsilon=1e-5),  # 65,285,660,672
    "llama2-7B": dict(_LLAMA2, **_sizes(32, 4096, 32, mlp=11008)),  # 6,738,415,616
    "llama2-13B": dict(_LLAMA2, **_sizes(40, 5120, 40, mlp=13824)),  # 13,015,864,320
    "llama2-70B": dict(_LLAMA2, **_sizes(80, 8192, 64, 8, mlp=28672)),  # 68,976,648,192
    "llama3-8B": dict(_LLAMA3, **_sizes(32, 4096, 32, 8, mlp=14336)),  # 8,030,261,248
    "llama3-70B": dict(_LLAMA3, **_sizes(80, 8192, 64, 8, mlp=28672)),  # 70,553,706,496
    "llama3.1-8B": dict(_LLAMA31, **_sizes(32, 4096, 32, 8, mlp=14336)),  # 8,030,261,248
    "llama3.1-70B": dict(_LLAMA31, **_sizes(80, 8192, 64, 8, mlp=28672)),  # 70,553,706,496
    "llama3.1-405B": dict(_LLAMA31, **_sizes(126, 16384, 128, 8, mlp=53248)),  # 405,853,388,800
    "llama3.2-1B": dict(_LLAMA32, **_sizes(16, 2048, 32, 8, mlp=8192)),  # 1,235,814,400
    "llama3.2-3B": dict(_LLAMA32, **_sizes(28, 3072, 24, 8, mlp=8192)),  # 3,212,749,824
    "qwen2-0.5B": dict(_QWEN2, **_sizes(24, 896, 14, 2, mlp=4864), tied_output=True),  # 494,032,768
    "qwen2-1.5B": dict(_QWEN2, **_sizes(28, 1536, 12, 2, mlp=8960), tied_output=True),  # 1,543,714,304
    "qwen2-7B": dict(_QWEN2, **_sizes(28, 3584, 28, 4, mlp=18944), vocab_size=152_064),  # 7,615,616,512
    "qwen2-72B": dict(_QWEN2, **_sizes(80, 8192, 64, 8, mlp=29568), vocab_size=152_064, norm_epsilon=1e-5),
    "qwen2.5-0.5B": dict(_QWEN2, **_sizes(24, 896, 14, 2, mlp=4864), tied_output=True, context_length=32_768),
    "qwen2.5-1.5B": dict(_QWEN2, **_sizes(28, 1536, 12, 2, mlp=8960), tied_output=True),  # 1,543,714,304
    "qwen2.5-3B": dict(_QWEN2, **_sizes(36, 2048, 16, 2, mlp=11008), tied_output=True, context_length=32_768),
    "qwen2.5-7B": dict(_QWEN2, **_sizes(28, 3584, 28, 4, mlp=18944), vocab_size=152_064),  # 7,615,616,512
    "qwen2.5-14B": dict(_QWEN2, **_sizes(48, 5120, 40, 8, mlp=13824), vocab_size=152_064, norm_epsilon=1e-5),
    "qwen2.5-32B": dict(_QWEN2, **_sizes(64, 5120, 40, 8, mlp=27648), vocab_size=152_064, norm_epsilon=1e-5),
    "qwen2.5-72B": dict(_QWEN2, **_sizes(80, 8192, 64, 8, mlp=29568), vocab_size=152_064, norm_epsilon=1e-5),
    "books": _SMALL,  # 1,311,872 parameters
    # The same for a hundred books: what fine-tuning on a laptop begins with.
    "laptop": dict(_SMALL, context_length=256),
    # An LSTM of `laptop`'s size (0.7% less), for a table 5 of one's own.
    "laptop-lstm": dict(
        vocab_size=4096,
        context_length=256,
        num_layers=1,
        num_heads=1,
        embed_dim=128,
        core="lstm",
        lstm_units=368,
        positions="none",
        norm="rmsnorm",
        logits_chunk=64,
    ),  # 1,303,104 parameters
}


def preset_fields(name: str) -> dict[str, Any]:
    """The fields of the preset `name`.

    Raises:
      UserError: when there is none of that name; the message gives the nearest and lists all.
    """
    if name not in PRESETS:
        raise UserError(
            f"model.preset={name!r}: no such preset.{did_you_mean(name, PRESETS)} There are: {', '.join(PRESETS)}."
        )
    return dict(PRESETS[name])


def model_config(preset: str | None, **overrides: Any) -> ModelConfig:
    """The preset `preset` with `overrides`; an override of None leaves the preset's value.

    Args:
      preset: None: every field that has no default must be among the overrides.

    Raises:
      UserError: for an unknown preset, or fields that are unknown, missing or do not go together.
    """
    fields = {} if preset is None else preset_fields(preset)
    fields.update((name, value) for name, value in overrides.items() if value is not None)
    known = {field.name: field for field in dataclasses.fields(ModelConfig)}
    if unknown := sorted(set(fields) - set(known)):
        raise UserError(f"model: unknown fields {', '.join(unknown)}. There are: {', '.join(sorted(known))}.")
    if missing := [name for name in known if known[name].default is dataclasses.MISSING and name not in fields]:
        raise UserError(f"model: without a preset, give {', '.join(missing)} too.")
    return ModelConfig(**fields)


def adapt(config: ModelConfig, **overrides: Any) -> ModelConfig:
    """`config`, which weights were trained with, with `overrides` that leave the weights valid; None overrides nothing.

    Free are the fields of `TRAINING_ONLY`, and the context: a shorter one cuts learned positions.

    Raises:
      UserError: for an override that would need other weights.
    """
    wanted = model_config(None, **(dataclasses.asdict(config) | {k: v for k, v in overrides.items() if v is not None}))
    followed = {  # where None follows another field
        "key_value_heads": "kv_heads",
        "head_dim": "head_width",
        "mlp_dim": "mlp_width",
        "lstm_units": "lstm_width",
    }

    def value(model: ModelConfig, name: str) -> Any:
        return getattr(model, followed.get(name, name))

    differ = [
        f"model.{name}={value(wanted, name)!r} (the weights have {value(config, name)!r})"
        for name in (field.name for field in dataclasses.fields(ModelConfig))
        if value(wanted, name) != value(config, name) and name not in (*TRAINING_ONLY, "context_length")
    ]
    if wanted.context_length > config.context_length and config.positions == "learned":
        differ.append(
            f"model.context_length={wanted.context_length} (the weights have {config.context_length} positions)"
        )
    if differ:
        raise UserError(f"these fields do not go with the weights: {', '.join(differ)}. Leave them empty.")
    return wanted
