"""Floating-point operations of a training step, by formula."""

import math

import jax

from gpt_jax.models.config import ModelConfig
from gpt_jax.models.decoder import parameter_specs
from gpt_jax.models.parameters import ParameterSpec
from gpt_jax.parallel.rules import path_string


def training_flops_per_token(config: ModelConfig, sequence_length: int) -> float:
    """FLOPs that one token costs forward and backward: 6·N + 12·L·(heads·H)·T; of an LSTM 6·N.

    N counts the weights of every matrix product (the tied output matrix once; no embeddings that are only looked up,
    no biases and gains). Attention is counted in full, the masked half too, as PaLM (Chowdhery et al. 2022, appendix B)
    and nanoGPT count it; in a banded layer T is the window's keys, not more. Recomputation (remat) is not counted.
    """
    specs = jax.tree_util.tree_leaves_with_path(
        parameter_specs(config), is_leaf=lambda leaf: isinstance(leaf, ParameterSpec)
    )
    matmul_weights = sum(math.prod(spec.shape) for path, spec in specs if path_string(path).endswith("/kernel"))
    matmul_weights += config.vocab_size * config.embed_dim  # the output matrix
    if config.positions_in_softmax:
        matmul_weights += config.context_length * config.embed_dim
    if config.core == "lstm":
        return 6 * matmul_weights
    windows = [config.attention_windows[i % len(config.attention_windows)] for i in range(config.num_layers)]
    keys = sum(min(window or sequence_length, sequence_length) for window in windows)
    attention = 12 * config.num_heads * config.head_width * keys
    return 6 * matmul_weights + attention
