"""config.json <-> ModelConfig: what each architecture's fields mean, and what is refused by name."""

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_jax.errors import UserError
from gpt_jax.models.config import ModelConfig
from gpt_jax.models.presets import model_config
from gpt_jax.weights.export import differences
from gpt_jax.weights.huggingface_config import ARCHITECTURES, read_config, write_config

PATH = Path("model/config.json")
LLAMA = dict(model_type="llama", hidden_size=64, num_attention_heads=4, num_hidden_layers=2, intermediate_size=96)
LLAMA3 = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192)


def read(**fields) -> ModelConfig:
    return read_config(fields, PATH)[1]


def test_absent_fields_have_the_defaults_of_the_configuration_class():
    gpt1, gpt2, llama, qwen2 = (read(model_type=name) for name in ("openai-gpt", "gpt2", "llama", "qwen2"))
    assert not differences(gpt1, model_config("gpt1")) and not differences(gpt2, model_config("gpt2-small"))
    assert (gpt1.dropout, gpt2.dropout, llama.dropout, qwen2.dropout) == (0.1, 0.1, 0.0, 0.0)
    assert (gpt1.tied_output, gpt2.tied_output, llama.tied_output, qwen2.tied_output) == (True, True, False, False)
    assert (llama.vocab_size, llama.embed_dim, llama.mlp_width, llama.kv_heads) == (32_000, 4096, 11_008, 32)
    assert (llama.norm_epsilon, llama.rope_theta, llama.biases) == (1e-6, 10_000.0, "none")
    assert (qwen2.vocab_size, qwen2.mlp_width, qwen2.biases) == (151_936, 22_016, "qkv")


@pytest.mark.parametrize(
    ("model_type", "field", "value", "expected"),
    [
        ("openai-gpt", "afn", "gelu", "gelu_tanh"),  # that file's own table: its "gelu" is the approximation
        ("openai-gpt", "afn", "swish", "silu"),
        ("gpt2", "activation_function", "gelu", "gelu"),
        ("gpt2", "activation_function", "gelu_new", "gelu_tanh"),
        ("gpt2", "activation_function", "gelu_pytorch_tanh", "gelu_tanh"),
        ("llama", "hidden_act", "silu", "silu"),
        ("qwen2", "hidden_act", "relu2", "relu_squared"),
    ],
)
def test_an_activation_means_what_its_architecture_computes(model_type, field, value, expected):
    assert read(model_type=model_type, **{field: value}).activation == expected


def test_dropouts_epsilons_and_sizes_are_taken_over():
    config = read(
        model_type="gpt2", resid_pdrop=0.1, embd_pdrop=0.2, attn_pdrop=0.3, layer_norm_epsilon=1e-6, n_inner=10,
        initializer_range=0.01, tie_word_embeddings=False, vocab_size=7, n_positions=9, n_embd=8, n_layer=3, n_head=2,
    )  # fmt: skip
    assert [config.dropout_rate(place) for place in ("residual", "embedding", "attention")] == [0.1, 0.2, 0.3]
    assert (config.norm_epsilon, config.mlp_width, config.init_std, config.tied_output) == (1e-6, 10, 0.01, False)
    assert (config.vocab_size, config.context_length, config.embed_dim) == (7, 9, 8)
    assert (config.num_layers, config.num_heads) == (3, 2)


@pytest.mark.parametrize(
    "rope",
    [
        dict(rope_theta=500_000.0, rope_scaling=dict(LLAMA3, rope_type="llama3")),
        dict(rope_theta=500_000, rope_scaling=dict(LLAMA3, type="llama3")),
        dict(rope_parameters=dict(LLAMA3, rope_type="llama3", rope_theta=500_000.0)),
    ],
    ids=["rope_type", "type", "nested"],
)
def test_rope_scaling_is_read_in_every_spelling(rope):
    config = read(**LLAMA, **rope)
    assert (config.rope_theta, config.rope_scaling, config.rope_factor) == (500_000.0, "llama3", 8.0)
    assert (config.rope_low_frequency_factor, config.rope_high_frequency_factor) == (1.0, 4.0)
    assert config.rope_original_context == 8192


def test_linear_scaling_and_none():
    linear = read(**LLAMA, rope_scaling=dict(type="linear", factor=2))
    assert (linear.rope_scaling, linear.rope_factor, linear.rope_theta) == ("linear", 2.0, 10_000.0)
    assert read(**LLAMA, rope_scaling=None).rope_scaling == "none"
    assert read(**LLAMA, rope_parameters=dict(rope_type="default", rope_theta=7.0)).rope_theta == 7.0


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (dict(model_type="bert"), "model_type='bert' is none of .*openai-gpt, gpt2, llama, qwen2"),
        (dict(), "model_type='None'"),
        (dict(model_type=["gpt2"]), "model_type="),
        (dict(model_type="gpt_2"), "Did you mean 'gpt2'"),
        (dict(model_type="gpt2", scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx=True"),
        (dict(model_type="gpt2", scale_attn_weights=False), "scale_attn_weights=False"),
        (dict(model_type="gpt2", add_cross_attention=True), "add_cross_attention"),
        (dict(model_type="gpt2", activation_function="mish"), "activation_function='mish'.*gelu_new"),
        (dict(model_type="gpt2", n_embd="768"), 'n_embd="768": expected a whole number'),
        (dict(model_type="gpt2", n_embd=7.5), "n_embd=7.5: expected a whole number"),
        (dict(model_type="gpt2", n_embd=770), "num_heads=12 does not divide embed_dim=770"),
        (dict(model_type="qwen2", use_sliding_window=True), "use_sliding_window=True"),
        (dict(model_type="qwen2", layer_types=["sliding_attention"]), "layer_types: 'sliding_attention'"),
        (dict(LLAMA, attention_bias=True), "attention_bias=True, mlp_bias=False"),
        (dict(LLAMA, mlp_bias=True), "attention_bias=False, mlp_bias=True"),
        (dict(LLAMA, rope_scaling=dict(type="dynamic", factor=2.0)), "rope_scaling: the kind 'dynamic'"),
        (dict(LLAMA, rope_parameters=dict(rope_type="yarn", factor=2.0)), "rope_parameters: the kind 'yarn'"),
        (dict(LLAMA, rope_scaling=dict(rope_type="llama3", factor=8.0)), "rope_scaling: low_freq_factor is missing"),
        (dict(LLAMA, rope_scaling=dict(type="linear")), "rope_scaling: factor is missing"),
        (dict(LLAMA, rope_parameters=dict(full_attention=dict(rope_type="default"))), "one set of parameters"),
        (dict(LLAMA, partial_rotary_factor=0.5), "partial_rotary_factor=0.5"),
        (dict(LLAMA, quantization_config=dict(bits=4)), "quantization_config"),
        (dict(LLAMA, layer_types=5), "layer_types=5: expected a list"),
        (dict(LLAMA, layer_types=[5]), "layer_types: 5 is not computed here"),
        (dict(LLAMA, num_hidden_layers=10**30), "model.num_layers=10+: expected at most 10,000"),
        (dict(LLAMA, vocab_size=10**30), "model.vocab_size=10+: expected at most 100,000,000"),
        (dict(LLAMA, head_dim=10**9), "model.head_dim=10+: expected at most 100,000,000"),
        (dict(LLAMA, head_dim=0), "model.head_dim=0: expected at least 1"),
        (dict(LLAMA, intermediate_size=-1), "model.mlp_dim=-1: expected at least 1"),
        (dict(LLAMA, rope_theta=0), "model.rope_theta=0.0: expected a positive number"),
        (dict(LLAMA, rope_theta=10**400), "rope_theta=Infinity: expected a number"),
        (dict(LLAMA, rms_norm_eps=-1), "model.norm_epsilon=-1.0: expected a positive number"),
        (dict(LLAMA, initializer_range=-1), "model.init_std=-1.0: expected 0 or a positive number"),
        (
            dict(LLAMA, rope_scaling=dict(LLAMA3, type="llama3", original_max_position_embeddings=0)),
            "model.rope_original_context=0: expected at least 1",
        ),
    ],
)
def test_what_the_decoder_does_not_compute_is_refused_by_name(fields, words):
    with pytest.raises(UserError, match=f"model/config.json: .*{words}"):
        read(**fields)


NAMES = sorted({theirs for each in ARCHITECTURES.values() for theirs, _ in each.fields.values()} | {"layer_types"})
ROPE = ["rope_type", "type", "rope_theta", "factor", *LLAMA3]
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.integers(10**30, 10**31),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.sampled_from(ROPE), values, max_size=4),
    max_leaves=6,
)


@given(
    st.sampled_from(list(ARCHITECTURES)),
    st.dictionaries(st.sampled_from([*NAMES, "rope_scaling", "rope_parameters", "quantization_config"]), anything),
)
@settings(deadline=None)
def test_whatever_stands_in_the_fields_is_a_model_or_refused(model_type, fields):
    try:
        assert read(model_type=model_type, **fields).num_layers <= 10_000
    except UserError as error:
        assert str(error).startswith("model/config.json: ")


def test_llamas_biases_are_both_or_neither():
    assert read(**LLAMA, attention_bias=True, mlp_bias=True).biases == "all"
    assert read(**LLAMA, attention_bias=False, mlp_bias=False).biases == "none"


SIZES = dict(vocab_size=31, context_length=64, num_layers=2, num_heads=4, embed_dim=32)
ROTARY = dict(norm="rmsnorm", gated_mlp=True, activation="silu", positions="rotary")


@st.composite
def exportable(draw) -> tuple[str, ModelConfig]:
    """A config that one of the architectures computes."""
    name = draw(st.sampled_from(list(ARCHITECTURES)))
    fields = dict(
        SIZES,
        tied_output=draw(st.booleans()),
        norm_epsilon=draw(st.sampled_from([1e-5, 1e-6])),
        attention_dropout=draw(st.sampled_from([0.0, 0.1])),
    )
    if name == "openai-gpt":
        fields |= dict(norm_position="post", final_norm=False, activation=draw(st.sampled_from(["gelu_tanh", "relu"])))
    elif name == "gpt2":
        fields |= dict(
            activation=draw(st.sampled_from(["gelu_tanh", "gelu", "relu_squared"])),
            mlp_dim=draw(st.sampled_from([None, 40])),
        )
    else:
        scaling = draw(st.sampled_from(["none", "linear", "llama3"]))
        biases = "qkv" if name == "qwen2" else draw(st.sampled_from(["none", "all"]))
        fields |= dict(
            ROTARY, biases=biases, key_value_heads=draw(st.sampled_from([None, 2, 1])),
            head_dim=draw(st.sampled_from([None, 16])), rope_scaling=scaling, rope_theta=5e5,
            rope_factor=4.0 if scaling != "none" else 1.0, mlp_dim=draw(st.sampled_from([None, 40])),
        )  # fmt: skip
    return name, ModelConfig(**fields)


@given(exportable())
@settings(deadline=None)
def test_what_is_written_is_read_back(case):
    name, config = case
    architecture, values = write_config(config)
    values = json.loads(json.dumps(values))
    read_architecture, read_back = read_config(values, PATH)
    assert architecture is read_architecture is ARCHITECTURES[name]
    assert differences(config, read_back) == []
    assert read_back.dropout_rate("attention") == config.dropout_rate("attention")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(attention_pattern="alternating", attention_window=8), "gpt2: attention_pattern='alternating'"),
        (dict(norm="rmsnorm"), "norm='rmsnorm'"),
        (dict(biases="none"), "biases='none'"),
        (dict(ROTARY, biases="none", norm_position="post"), "llama: norm_position='post'"),
        (dict(ROTARY, biases="none", final_norm=False), "llama: final_norm=False"),
        (dict(norm_position="post", final_norm=False, mlp_dim=40), "openai-gpt: mlp_dim=40"),
        (dict(norm_position="post", final_norm=False, activation="relu_squared"), "activation='relu_squared'"),
        (dict(ROTARY, biases="none", embed_dim=30, head_dim=8), "llama: num_heads=4 .does not divide embed_dim=30"),
    ],
)  # fmt: skip
def test_fields_that_no_architecture_computes_are_named(changes, words):
    with pytest.raises(UserError, match=f"No Hugging Face architecture.*{words}"):
        write_config(ModelConfig(**(SIZES | changes)))


def test_the_project_s_own_small_model_names_what_stands_in_the_way():
    with pytest.raises(UserError, match="gated_mlp=False"):
        write_config(model_config("books"))


def test_how_a_model_is_trained_does_not_stand_in_the_way():
    config = model_config("gpt1", positions_in_softmax=True, embedding_dropout_on="matrix", remat="block")
    assert write_config(config)[0].model_type == "openai-gpt"
    config = dataclasses.replace(model_config("gpt2-small"), scan_layers=True, logits_chunk=64, attention_block=64)
    assert write_config(config)[0].model_type == "gpt2"
