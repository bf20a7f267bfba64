"""Published models by name, with the source of each number; and the laptop-sized default."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from gpt_jax.errors import UserError, did_you_mean
from gpt_jax.models.config import ModelConfig

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

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "gpt1": _GPT1,  # 116,534,784 parameters
    "gpt2-small": dict(_GPT2, num_layers=12, num_heads=12, embed_dim=768),  # 124,439,808
    "gpt2-medium": dict(_GPT2, num_layers=24, num_heads=16, embed_dim=1024),  # 354,823,168
    "gpt2-large": dict(_GPT2, num_layers=36, num_heads=20, embed_dim=1280),  # 774,030,080
    "gpt2-xl": dict(_GPT2, num_layers=48, num_heads=25, embed_dim=1600),  # 1,557,611,200
    # Sized for two CPU cores and ten minutes, with what has become usual since GPT-2: RMSNorm, rotary positions,
    # squared ReLU, no biases. After the same tokens it is 0.12 bits per byte better than GPT-2's own parts (LOG.md).
    "books": dict(
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
    ),  # 1,311,872 parameters
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


def model_config(preset: str, **overrides: Any) -> ModelConfig:
    """The preset `preset` with `overrides`; an override of None leaves the preset's value.

    Raises:
      UserError: for an unknown preset, or fields that do not go together.
    """
    fields = preset_fields(preset)
    fields.update((name, value) for name, value in overrides.items() if value is not None)
    known = {field.name for field in dataclasses.fields(ModelConfig)}
    if unknown := sorted(set(fields) - known):
        raise UserError(f"model: unknown fields {', '.join(unknown)}. There are: {', '.join(sorted(known))}.")
    return ModelConfig(**fields)
