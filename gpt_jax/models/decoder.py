"""The decoder of the whole family: parameters, forward pass, Flax module.

The mathematics are plain functions of (parameters, config, inputs); `Decoder` is the thin Linen module that names the
parameters. A parameter tree is a nested dict of arrays in which the layers are stacked along a first axis of size L:
the same tree whether the layers run in a scan or unrolled. Shape suffixes as in layers.py.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from gpt_jax.models import layers, lstm
from gpt_jax.models.attention import self_attention
from gpt_jax.models.attention_kernels import ATTENTION_ENDS
from gpt_jax.models.config import ModelConfig
from gpt_jax.models.parameters import ParameterSpec, init_parameters, unstack
from gpt_jax.parallel.rules import constrain, gather, logical_axes, look_up, path_string


class Core(NamedTuple):
    """What stands between the embedding and the final norm.

    Attributes:
      specs: config -> the stacked specs of all its layers.
      period: config -> the blocks that follow each other, over and over; each (x_BTD, its parameters, key=) -> x_BTD.
    """

    specs: Callable[[ModelConfig], dict]
    period: Callable[[ModelConfig], tuple[Callable, ...]]


def core(config: ModelConfig) -> Core:
    """The one place that tells one `config.core` from another."""
    return {"transformer": Core(block_specs, blocks), "lstm": Core(lstm.layer_specs, lstm.blocks)}[config.core]


def parameter_specs(config: ModelConfig) -> dict:
    """The tree of every parameter's shape and initializer; initializers as published (see presets.py)."""
    c = config
    specs = {
        "embedding": {"tokens": ParameterSpec((c.vocab_size, c.embed_dim), c.init_std)},
        "layers": core(c).specs(c),
    }
    if c.positions == "learned":
        specs["embedding"]["positions"] = ParameterSpec((c.context_length, c.embed_dim), c.position_init_std)
    if c.final_norm:
        specs["final_norm"] = _norm_specs(c)
    if not c.tied_output:
        specs["unembedding"] = {"tokens": ParameterSpec((c.vocab_size, c.embed_dim), c.init_std)}
    return specs


def _norm_specs(config: ModelConfig, *leading: int) -> dict:
    specs = {"scale": ParameterSpec((*leading, config.embed_dim), mean=1.0)}
    if config.norm == "layernorm":
        specs["bias"] = ParameterSpec((*leading, config.embed_dim))
    return specs


def block_specs(config: ModelConfig) -> dict:
    """Shapes and initializers of all `block`s, stacked."""
    c = config
    L, D, F = c.num_layers, c.embed_dim, c.mlp_width
    query_width, kv_width = c.num_heads * c.head_width, c.kv_heads * c.head_width
    residual_std = c.init_std / math.sqrt(2 * L) if c.scaled_residual_init else c.init_std

    def linear(fan_in: int, fan_out: int, std: float = c.init_std, *, qkv: bool = False) -> dict:
        specs = {"kernel": ParameterSpec((L, fan_in, fan_out), std)}
        if c.biases == "all" or (c.biases == "qkv" and qkv):
            specs["bias"] = ParameterSpec((L, fan_out))
        return specs

    specs = {
        "attention_norm": _norm_specs(c, L),
        "attention": {
            "query": linear(D, query_width, qkv=True),
            "key": linear(D, kv_width, qkv=True),
            "value": linear(D, kv_width, qkv=True),
            "output": linear(query_width, D, residual_std),
        },
        "mlp_norm": _norm_specs(c, L),
        "mlp": {"up": linear(D, F), "down": linear(F, D, residual_std)},
    }
    if c.gated_mlp:
        specs["mlp"]["gate"] = linear(D, F)
    return specs


def parameter_count(config: ModelConfig) -> int:
    """Number of parameters, exact."""
    specs = jax.tree.leaves(parameter_specs(config), is_leaf=lambda leaf: isinstance(leaf, ParameterSpec))
    return sum(math.prod(spec.shape) for spec in specs)


def drop_embeddings(params: dict, config: ModelConfig, key: jax.Array | None) -> dict:
    """`params` after embedding dropout on the matrices themselves, where the config says `matrix`; else `params`.

    As in OpenAI's GPT-1 code (train.py): a step draws one mask for the whole batch, over the rows of tokens and
    positions alike, and the same masked rows are looked up at the input and multiplied with at the output. So whoever
    calls `hidden_states` with a dropout key hands these parameters to it and to the output.
    """
    rate = config.dropout_rate("embedding")
    if config.embedding_dropout_on == "sum" or key is None or rate == 0.0:
        return params
    embedding_key, _ = jax.random.split(key)
    names = sorted(params["embedding"])
    keys = dict(zip(names, jax.random.split(embedding_key, len(names)), strict=True))
    return params | {"embedding": {name: layers.dropout(params["embedding"][name], rate, keys[name]) for name in names}}


def embed(
    params: dict,
    config: ModelConfig,
    tokens_BT: jax.Array,
    key: jax.Array | None = None,
    positions_BT: jax.Array | None = None,
) -> jax.Array:
    """Token embeddings plus learned positions, with embedding dropout on the sum: [B, T, D] in the compute dtype.

    Args:
      positions_BT: where the tokens stand; by default at 0, 1, ..., T - 1.
    """
    time = tokens_BT.shape[1]
    if time > config.context_length:
        raise ValueError(f"{time} tokens in a model whose context is {config.context_length}.")
    x_BTD = look_up(params["embedding"]["tokens"].astype(config.dtype), tokens_BT)
    if config.positions == "learned":
        positions_PD = params["embedding"]["positions"].astype(config.dtype)
        x_BTD = x_BTD + (positions_PD[:time] if positions_BT is None else positions_PD[positions_BT])
    x_BTD = constrain(x_BTD, "batch", "time", None)
    return (
        layers.dropout(x_BTD, config.dropout_rate("embedding"), key) if config.embedding_dropout_on == "sum" else x_BTD
    )


def block(
    x_BTD: jax.Array,
    params: dict,
    config: ModelConfig,
    key: jax.Array | None = None,
    *,
    window: int = 0,
    attention: Callable[..., jax.Array] = self_attention,
) -> jax.Array:
    """One layer. Pre-norm: x + f(norm(x)) (GPT-2); post-norm: norm(x + f(x)) (GPT-1). `window` as in attention.py.

    Args:
      attention: what stands in the place of `self_attention`, with its signature (incremental.py: with a cache).
    """
    attention_key, after_attention_key, after_mlp_key = (None,) * 3 if key is None else jax.random.split(key, 3)

    def residual(x_BTD: jax.Array, norm_params: dict, sublayer: Callable, dropout_key: jax.Array | None) -> jax.Array:
        pre = config.norm_position == "pre"
        y_BTD = sublayer(layers.norm(x_BTD, norm_params, config) if pre else x_BTD)
        x_BTD = x_BTD + layers.dropout(y_BTD, config.dropout_rate("residual"), dropout_key)
        x_BTD = constrain(x_BTD, "batch", "time", None)
        return x_BTD if pre else layers.norm(x_BTD, norm_params, config)

    def attend(y_BTD: jax.Array) -> jax.Array:
        return attention(y_BTD, params["attention"], config, attention_key, window=window)

    def mlp(y_BTD: jax.Array) -> jax.Array:
        return layers.mlp(y_BTD, params["mlp"], config)

    x_BTD = residual(x_BTD, params["attention_norm"], attend, after_attention_key)
    return residual(x_BTD, params["mlp_norm"], mlp, after_mlp_key)


def blocks(config: ModelConfig) -> tuple[Callable, ...]:
    """One period of the attention pattern."""
    return tuple(functools.partial(block, config=config, window=window) for window in config.attention_windows)


def segment_positions(segments_BT: jax.Array) -> jax.Array:
    """Where each token stands in its own text, int [B, T], of rows in which texts stand one behind the other."""
    places_T = jnp.arange(segments_BT.shape[1])
    begins_BT = jnp.diff(segments_BT, axis=1, prepend=segments_BT[:, :1]) != 0
    return places_T - jax.lax.cummax(jnp.where(begins_BT, places_T, 0), axis=1)


def packed_period(period: tuple[Callable, ...], segments_BT: jax.Array, positions_BT: jax.Array) -> tuple:
    """The blocks of `period`, whose attention keeps the texts apart that share a row."""
    attention = functools.partial(self_attention, segments_BT=segments_BT, positions_BT=positions_BT)
    return tuple(functools.partial(block, attention=attention) for block in period)


def hidden_states(
    params: dict,
    config: ModelConfig,
    tokens_BT: jax.Array,
    key: jax.Array | None = None,
    segments_BT: jax.Array | None = None,
) -> jax.Array:
    """The last layer's output after the final norm, ready for `unembed`.

    Args:
      params: the tree of `parameter_specs`.
      tokens_BT: int32 ids, T at most the context length.
      key: dropout key; None switches dropout off.
      segments_BT: int, of rows that hold several texts, which of them a token belongs to: tokens see their own text
        alone, and positions count from its beginning. None: a row is one text. Not for LSTMs.

    Returns: [B, T, D] in the compute dtype.
    """
    embedding_key, layers_key = (None, None) if key is None else jax.random.split(key)
    positions_BT = None if segments_BT is None else segment_positions(segments_BT)
    x_BTD = embed(params, config, tokens_BT, embedding_key, positions_BT)
    period = core(config).period(config)
    if segments_BT is not None:
        period = packed_period(period, segments_BT, positions_BT)

    def layers_from(x_BTD: jax.Array, layer_params: list[dict], first: jax.Array | int) -> jax.Array:
        """The layers `first`, `first` + 1, ...; `first` begins a period."""
        for offset, one_layer in enumerate(layer_params):
            layer_key = None if layers_key is None else jax.random.fold_in(layers_key, first + offset)
            layer = rematerialised(period[offset % len(period)], config)
            x_BTD = layer(x_BTD, one_layer, layer_key)
        return x_BTD

    if config.scan_layers:
        periods, rest = divmod(config.num_layers, len(period))
        scanned = periods * len(period)

        def one_period(x_BTD: jax.Array, inputs: tuple[dict, jax.Array]) -> tuple[jax.Array, None]:
            layer_params, first = inputs
            return layers_from(x_BTD, unstack(layer_params, len(period)), first), None

        stacked = jax.tree.map(lambda x: x[:scanned].reshape(periods, len(period), *x.shape[1:]), params["layers"])
        x_BTD, _ = jax.lax.scan(one_period, x_BTD, (stacked, jnp.arange(0, scanned, len(period))))
        left = jax.tree.map(lambda x: x[scanned:], params["layers"])
        x_BTD = layers_from(x_BTD, unstack(left, rest), scanned)
    else:
        x_BTD = layers_from(x_BTD, unstack(params["layers"], config.num_layers), 0)
    return layers.norm(x_BTD, params["final_norm"], config) if config.final_norm else x_BTD


def rematerialised(layer: Callable, config: ModelConfig) -> Callable:
    """(x_BTD, stored parameters of one layer, key) -> x_BTD, keeping for the backward pass what `config.remat` says."""

    def run(x_BTD: jax.Array, one_layer: dict, key: jax.Array | None) -> jax.Array:
        return layer(x_BTD, gather_kernels(one_layer, config), key=key)

    policies = jax.checkpoint_policies
    match config.remat:
        case "none":
            return run
        case "block":
            return jax.checkpoint(run)
        case "dots":
            keep = (policies.dots_with_no_batch_dims_saveable, policies.save_only_these_names(ATTENTION_ENDS))
            return jax.checkpoint(run, policy=policies.save_from_both_policies(*keep))
        case "offload":
            return jax.checkpoint(run, policy=policies.offload_dot_with_no_batch_dims("device", "pinned_host"))
    raise ValueError(config.remat)


def gather_kernels(one_layer: dict, config: ModelConfig) -> dict:
    """The parameters of one layer with its kernels as its products take them (see `gather`)."""

    def prepare(path, leaf: jax.Array) -> jax.Array:
        path = path_string(path)
        return gather(leaf, logical_axes(f"layers/{path}")[1:], config.dtype) if path.endswith("/kernel") else leaf

    return jax.tree_util.tree_map_with_path(prepare, one_layer)


def output_matrix(params: dict, config: ModelConfig) -> jax.Array:
    """The matrix [V, D] whose product with a hidden state are the logits; tied: the token embeddings."""
    path = "embedding/tokens" if config.tied_output else "unembedding/tokens"
    return gather(params[path.partition("/")[0]]["tokens"], logical_axes(path), config.dtype)


def softmax_matrices(params: dict, config: ModelConfig) -> tuple[jax.Array, ...]:
    """The rows that compete for a token's probability: `output_matrix`, and the positions [T, D] where they do too."""
    tokens_VD = output_matrix(params, config)
    if not config.positions_in_softmax:
        return (tokens_VD,)
    positions_TD = params["embedding"]["positions"]
    return tokens_VD, gather(positions_TD, logical_axes("embedding/positions"), config.dtype)


def unembed(hidden_BTD: jax.Array, matrix_VD: jax.Array) -> jax.Array:
    """Scores of the next token, [B, T, V] in the dtype of the hidden states."""
    return constrain(jnp.einsum("btd,vd->btv", hidden_BTD, matrix_VD), "batch", "time", "vocab")


class Decoder(nn.Module):
    """The decoder as a Flax module: `Decoder(config).init(key, tokens)`, `.apply({"params": params}, tokens)`.

    It only names the parameters; everything is computed by the functions of this file.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, tokens_BT: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Logits [B, T, V] of int32 `tokens_BT`; `key` switches dropout on."""
        config = self.config
        params = {
            name: self.param(name, lambda key, specs=specs: init_parameters(specs, key, jnp.dtype(config.param_dtype)))
            for name, specs in parameter_specs(config).items()
        }
        params = drop_embeddings(params, config, key)
        return unembed(hidden_states(params, config, tokens_BT, key), output_matrix(params, config))


def init(config: ModelConfig, key: jax.Array) -> dict:
    """A fresh tree of parameters, `Decoder`'s."""
    tokens = jnp.zeros((1, 1), jnp.int32)
    return Decoder(config).init(key, tokens)["params"]
