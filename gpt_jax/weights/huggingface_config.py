"""config.json of the Hugging Face architectures <-> ModelConfig: one table per architecture, read in both directions.

Field names, defaults and what they compute: transformers 5.23, models/{openai,gpt2,llama,qwen2}/configuration_*.py
and modeling_*.py; a key that is absent has the default of its configuration class.
"""

import dataclasses
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpt_jax.errors import UserError, did_you_mean
from gpt_jax.models.config import ModelConfig
from gpt_jax.weights.export import differences, resolved
from gpt_jax.weights.layouts import GPT2, LLAMA, OPENAI_GPT, Layout
from gpt_jax.weights.tensors import described_model


@dataclasses.dataclass(frozen=True)
class Architecture:
    """One `model_type`: which decoder it is, and where config.json says the rest."""

    model_type: str
    language_model: str  # the class that has an output matrix
    prefix: str  # of every tensor but lm_head in that class
    layout: Layout
    always: Mapping[str, Any]  # our fields that are the same in all its models
    fields: Mapping[str, tuple[str, Any]]  # ours -> (theirs, default)
    activation: tuple[str, str, Mapping[str, str]]  # (theirs, default, their value -> ours)
    only: Mapping[str, Any]  # theirs -> the default, and the one value that the decoder computes


_TANH = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
_OTHERS = {"relu": "relu", "relu2": "relu_squared", "silu": "silu", "swish": "silu"}

_GPT_FIELDS = {
    "num_layers": ("n_layer", 12),
    "num_heads": ("n_head", 12),
    "embed_dim": ("n_embd", 768),
    "norm_epsilon": ("layer_norm_epsilon", 1e-5),
    "init_std": ("initializer_range", 0.02),
    "position_init_std": ("initializer_range", 0.02),
    "tied_output": ("tie_word_embeddings", True),
    "embedding_dropout": ("embd_pdrop", 0.1),
    "attention_dropout": ("attn_pdrop", 0.1),
    "residual_dropout": ("resid_pdrop", 0.1),
}
_LLAMA_FIELDS = {
    "num_layers": ("num_hidden_layers", 32),
    "num_heads": ("num_attention_heads", 32),
    "embed_dim": ("hidden_size", 4096),
    "head_dim": ("head_dim", None),
    "norm_epsilon": ("rms_norm_eps", 1e-6),
    "init_std": ("initializer_range", 0.02),
    "tied_output": ("tie_word_embeddings", False),
    "attention_dropout": ("attention_dropout", 0.0),
}
_LLAMA_ALWAYS = dict(norm="rmsnorm", gated_mlp=True, positions="rotary", embedding_dropout=0.0, residual_dropout=0.0)

OPENAI_GPT_ARCHITECTURE = Architecture(
    model_type="openai-gpt",
    language_model="OpenAIGPTLMHeadModel",
    prefix="transformer.",
    layout=OPENAI_GPT,
    always=dict(norm_position="post", final_norm=False),
    fields={"vocab_size": ("vocab_size", 40_478), "context_length": ("n_positions", 512), **_GPT_FIELDS},
    # modeling_openai.py has a table of its own in which "gelu" is the tanh approximation.
    activation=("afn", "gelu", {"gelu": "gelu_tanh", "relu": "relu", "silu": "silu", "swish": "silu"}),
    only={},
)
GPT2_ARCHITECTURE = Architecture(
    model_type="gpt2",
    language_model="GPT2LMHeadModel",
    prefix="transformer.",
    layout=GPT2,
    always=dict(scaled_residual_init=True),
    fields={
        "vocab_size": ("vocab_size", 50_257),
        "context_length": ("n_positions", 1024),
        "mlp_dim": ("n_inner", None),
        **_GPT_FIELDS,
    },
    activation=("activation_function", "gelu_new", {**_TANH, "gelu": "gelu", **_OTHERS}),
    only={"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
)
LLAMA_ARCHITECTURE = Architecture(
    model_type="llama",
    language_model="LlamaForCausalLM",
    prefix="model.",
    layout=LLAMA,
    always=_LLAMA_ALWAYS,
    fields={
        "vocab_size": ("vocab_size", 32_000),
        "context_length": ("max_position_embeddings", 2048),
        "key_value_heads": ("num_key_value_heads", None),
        "mlp_dim": ("intermediate_size", 11_008),
        **_LLAMA_FIELDS,
    },
    activation=("hidden_act", "silu", {**_TANH, "gelu": "gelu", **_OTHERS}),
    only={},
)
QWEN2_ARCHITECTURE = Architecture(
    model_type="qwen2",
    language_model="Qwen2ForCausalLM",
    prefix="model.",
    layout=LLAMA,
    always=dict(_LLAMA_ALWAYS, biases="qkv"),
    fields={
        "vocab_size": ("vocab_size", 151_936),
        "context_length": ("max_position_embeddings", 32_768),
        "key_value_heads": ("num_key_value_heads", 32),
        "mlp_dim": ("intermediate_size", 22_016),
        **_LLAMA_FIELDS,
    },
    activation=("hidden_act", "silu", {**_TANH, "gelu": "gelu", **_OTHERS}),
    only={"use_sliding_window": False},
)
ARCHITECTURES = {
    each.model_type: each
    for each in (OPENAI_GPT_ARCHITECTURE, GPT2_ARCHITECTURE, LLAMA_ARCHITECTURE, QWEN2_ARCHITECTURE)
}


def read_config(values: Mapping[str, Any], path: Path) -> tuple[Architecture, ModelConfig]:
    """The architecture that a config.json names, and its ModelConfig.

    Args:
      values: the fields of config.json.
      path: of the file, for messages.

    Raises:
      UserError: for an unknown architecture, and for anything in it that the decoder does not compute, by name.
    """
    model_type = str(values.get("model_type"))
    if model_type not in ARCHITECTURES:
        raise UserError(
            f"{path}: model_type={model_type!r} is none of the architectures known here: {', '.join(ARCHITECTURES)}."
            + did_you_mean(model_type, ARCHITECTURES)
        )
    architecture = ARCHITECTURES[model_type]
    if values.get("quantization_config"):
        raise UserError(f"{path}: quantization_config: quantised weights are not read; fetch the unquantised model.")
    for name, expected in architecture.only.items():
        if (value := _field(values, path, name, expected)) != expected:
            raise UserError(f"{path}: {name}={value!r} is not computed here; expected {expected!r}.")
    kinds = values.get("layer_types") or []
    if not isinstance(kinds, list):
        raise UserError(f"{path}: layer_types={json.dumps(kinds)}: expected a list with the kind of each layer.")
    if strange := [kind for kind in kinds if kind != "full_attention"]:
        raise UserError(f"{path}: layer_types: {strange[0]!r} is not computed here; expected 'full_attention'.")
    fields = {ours: _field(values, path, *theirs) for ours, theirs in architecture.fields.items()}
    fields |= architecture.always
    name, default, known = architecture.activation
    value = _field(values, path, name, default)
    if value not in known:
        raise UserError(f"{path}: {name}={value!r} is not computed here; expected one of {', '.join(known)}.")
    fields["activation"] = known[value]
    if fields.get("positions") == "rotary":
        fields |= _read_rope(values, path, fields["context_length"])
    if architecture is LLAMA_ARCHITECTURE:
        fields["biases"] = _read_llama_biases(values, path)
    rates = {fields[f"{place}_dropout"] for place in ("embedding", "attention", "residual")}
    if len(rates) == 1:  # then one field says it, and one override changes all three
        fields = {ours: value for ours, value in fields.items() if not ours.endswith("_dropout")}
        fields["dropout"] = rates.pop()
    return architecture, described_model(fields, path)


def write_config(config: ModelConfig) -> tuple[Architecture, dict[str, Any]]:
    """The architecture that computes `config`, and the fields of its config.json.

    Found by trying: a config.json is written for each architecture and read back, and must give the same model.

    Raises:
      UserError: when none does; it names the fields that stand in the way of the nearest one.
    """
    obstacles = {}
    for architecture in ARCHITECTURES.values():
        values = _written(config, architecture)
        try:
            in_the_way = differences(config, read_config(values, Path("config.json"))[1])
        except UserError as error:
            in_the_way = [str(error).removeprefix("config.json: ")]
        if config.head_dim and config.embed_dim % config.num_heads:  # transformers wants it of all of them
            in_the_way.append(f"num_heads={config.num_heads} (does not divide embed_dim={config.embed_dim})")
        if not in_the_way:
            return architecture, values
        obstacles[architecture.model_type] = in_the_way
    nearest = min(obstacles, key=lambda model_type: len(obstacles[model_type]))
    raise UserError(
        f"No Hugging Face architecture known here ({', '.join(obstacles)}) computes this model. "
        f"In the way of the nearest, {nearest}: {', '.join(obstacles[nearest])}."
    )


def _written(config: ModelConfig, architecture: Architecture) -> dict[str, Any]:
    ours = resolved(config)
    name, default, known = architecture.activation
    activations = {value: theirs for theirs, value in reversed(known.items())}
    values = {"model_type": architecture.model_type, "architectures": [architecture.language_model]}
    values |= {theirs: getattr(ours, field) for field, (theirs, _) in reversed(architecture.fields.items())}
    values |= {name: activations.get(config.activation, default), **architecture.only}
    if "positions" in architecture.always:
        values |= _written_rope(ours)
    if architecture is LLAMA_ARCHITECTURE:
        values |= dict.fromkeys(("attention_bias", "mlp_bias"), config.biases == "all")
    return values


_KINDS = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}


def _field(values: Mapping[str, Any], path: Path | str, name: str, default: Any) -> Any:
    """The field `name`; its default where it is absent or null.

    Raises:
      UserError: when it is not of the default's type (of the fields whose default is None: a whole number).
    """
    value = values.get(name)
    if value is None:
        return default
    kind = int if default is None else type(default)
    if kind is float and type(value) is int:
        value = float(value) if abs(value) <= sys.float_info.max else math.inf
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        raise UserError(f"{path}: {name}={json.dumps(value)}: expected {_KINDS[kind]}.")
    return value


def _read_rope(values: Mapping[str, Any], path: Path, context_length: int) -> dict[str, Any]:
    """Rotary positions: `rope_theta` and `rope_scaling` (its kind under `type` or, later, `rope_type`), or since
    transformers 5 all together in `rope_parameters`."""
    original = "original_max_position_embeddings"
    where = "rope_scaling" if values.get("rope_scaling") else "rope_parameters"
    rope = values.get(where) or {}
    if not isinstance(rope, Mapping) or any(isinstance(value, Mapping) for value in rope.values()):
        raise UserError(f"{path}: {where}: expected one set of parameters for all layers.")
    at = f"{path}: {where}"
    theta = _field(rope, at, "rope_theta", _field(values, path, "rope_theta", 10_000.0))
    kind = rope.get("rope_type", rope.get("type", "default"))
    part = _field(values, path, "partial_rotary_factor", _field(rope, at, "partial_rotary_factor", 1.0))
    if part != 1.0:
        raise UserError(f"{path}: partial_rotary_factor={part} is not computed here; expected 1.0.")

    def required(name: str) -> float:
        if rope.get(name) is None:
            raise UserError(f"{at}: {name} is missing, which {kind} scaling needs.")
        return _field(rope, at, name, 1.0)

    match kind:
        case "default":
            return dict(rope_theta=theta)
        case "linear":
            return dict(rope_theta=theta, rope_scaling="linear", rope_factor=required("factor"))
        case "llama3":
            return dict(
                rope_theta=theta,
                rope_scaling="llama3",
                rope_factor=required("factor"),
                rope_low_frequency_factor=required("low_freq_factor"),
                rope_high_frequency_factor=required("high_freq_factor"),
                rope_original_context=_field(values, path, original, _field(rope, at, original, context_length)),
            )
    raise UserError(f"{at}: the kind {kind!r} is not computed here; expected default, linear or llama3.")


def _written_rope(ours: ModelConfig) -> dict[str, Any]:
    # The older spelling: transformers 4 reads no other, and transformers 5 reads it as well.
    scaling = {
        "none": None,
        "linear": {"rope_type": "linear", "factor": ours.rope_factor},
        "llama3": {
            "rope_type": "llama3",
            "factor": ours.rope_factor,
            "low_freq_factor": ours.rope_low_frequency_factor,
            "high_freq_factor": ours.rope_high_frequency_factor,
            "original_max_position_embeddings": ours.rope_original_context,
        },
    }
    return {"rope_theta": ours.rope_theta, "rope_scaling": scaling[ours.rope_scaling]}


def _read_llama_biases(values: Mapping[str, Any], path: Path) -> str:
    attention, mlp = (_field(values, path, name, False) for name in ("attention_bias", "mlp_bias"))
    if attention != mlp:
        raise UserError(f"{path}: attention_bias={attention}, mlp_bias={mlp}: the decoder here has both or neither.")
    return "all" if attention else "none"
