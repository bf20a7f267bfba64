"""GGUF files, written here with the gguf package in the order of llama.cpp's converter."""

import dataclasses
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from golden_models import part, write_golden_folder

from gpt_jax.errors import UserError
from gpt_jax.parallel.mesh import single_device_mesh
from gpt_jax.text.gguf import tokenizer_from_metadata
from gpt_jax.text.imported import open_tokenizer
from gpt_jax.text.tokenizer_json import byte_alphabet
from gpt_jax.weights.export import differences
from gpt_jax.weights.gguf import read_gguf
from gpt_jax.weights.huggingface import read_folder
from gpt_jax.weights.load import load_parameters

gguf = pytest.importorskip("gguf")

NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "model.layers.": "blk.",
}  # fmt: skip


def interleaved(x: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head from half-split to interleaved order, element by element: row i of each half to 2i, 2i + 1."""
    width = x.shape[0] // heads
    out = np.empty_like(x)
    for head in range(heads):
        for i in range(width // 2):
            out[head * width + 2 * i] = x[head * width + i]
            out[head * width + 2 * i + 1] = x[head * width + width // 2 + i]
    return out


def write_gguf(
    path: Path, architecture: str, config, tensors: dict[str, np.ndarray], *, kind=None, tokenizer=None, **keys
) -> None:
    """`tensors` under Hugging Face's names; `keys` override or, with None, remove; `tokenizer` has full names."""
    writer = gguf.GGUFWriter(path, architecture)
    values = {
        "context_length": config.context_length, "embedding_length": config.embed_dim,
        "block_count": config.num_layers, "feed_forward_length": config.mlp_width,
        "attention.head_count": config.num_heads, "attention.head_count_kv": config.kv_heads,
        "attention.layer_norm_rms_epsilon": config.norm_epsilon, "rope.freq_base": config.rope_theta,
        "rope.dimension_count": config.head_width, "attention.key_length": config.head_width,
    }  # fmt: skip
    for name, value in (values | {name.replace("__", "."): value for name, value in keys.items()}).items():
        if value is None:
            continue
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, list: writer.add_array}[
            type(value)
        ]
        add(f"{architecture}.{name}", value)
    for name, value in (tokenizer or {"tokenizer.ggml.tokens": ["a", "b"]}).items():
        {int: writer.add_uint32, str: writer.add_string, list: writer.add_array}[type(value)](name, value)
    for name, tensor in tensors.items():
        if architecture == "llama" and (".q_proj." in name or ".k_proj." in name):
            tensor = interleaved(tensor, config.num_heads if ".q_proj." in name else config.kv_heads)
        for theirs, ours in NAMES.items():
            name = name.replace(theirs, ours)
        if kind is not None and tensor.ndim == 2:
            writer.add_tensor(name, gguf.quants.quantize(tensor, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, np.ascontiguousarray(tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(params=["llama", "qwen2"])
def model(request, tmp_path):
    """Architecture, its golden config without scaling, and its tensors."""
    tensors = part(write_golden_folder(request.param, tmp_path / "folder"), "param")
    config = dataclasses.replace(read_folder(tmp_path / "folder").config, rope_scaling="none")
    return request.param, config, tensors, tmp_path


def test_a_gguf_holds_the_parameters_of_the_folder_it_was_made_from(model):
    architecture, config, tensors, folder = model
    write_gguf(folder / "model.gguf", architecture, config, tensors)
    checkpoint = read_gguf(folder / "model.gguf")
    assert not differences(checkpoint.config, config)
    mesh = single_device_mesh()
    ours = load_parameters(checkpoint, mesh)
    theirs = load_parameters(read_folder(folder / "folder"), mesh)
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert checkpoint.metadata["tokenizer.ggml.tokens"] == ["a", "b"]


def test_the_metadata_of_a_checkpoint_give_the_tokenizer_of_its_file(model):
    pytest.importorskip("tokenizers", reason="the extra 'gguf' is not installed")
    architecture, config, tensors, folder = model
    alphabet = [*byte_alphabet()]
    keys = {
        "model": "gpt2", "pre": "llama-bpe", "tokens": [*alphabet, "th", "<s>", "</s>"], "merges": ["t h"],
        "token_type": [1] * len(alphabet) + [1, 3, 3], "bos_token_id": 257, "eos_token_id": 258,
    }  # fmt: skip
    tokenizer = {f"tokenizer.ggml.{name}": value for name, value in keys.items()}
    tokenizer |= {"tokenizer.chat_template": "{{ messages }}"}
    path = folder / "model.gguf"
    write_gguf(path, architecture, config, tensors, tokenizer=tokenizer)
    ours, theirs = tokenizer_from_metadata(read_gguf(path).metadata, str(path)), open_tokenizer(path)
    assert ours.fingerprint == theirs.fingerprint
    assert ours.encode("the").tolist() == [256, alphabet.index("e")]
    assert ours.specials == theirs.specials and ours.specials.beginning_of_text == 257
    assert ours.chat_template == theirs.chat_template == "{{ messages }}"


@pytest.mark.parametrize("kind", ["F16", "BF16"])
def test_half_precision_is_read_as_the_numbers_it_holds(model, kind):
    architecture, config, tensors, folder = model
    kind = gguf.GGMLQuantizationType[kind]
    write_gguf(folder / "model.gguf", architecture, config, tensors, kind=kind)
    read = read_gguf(folder / "model.gguf").tensors["blk.1.ffn_up.weight"].read()
    expected = gguf.quants.dequantize(gguf.quants.quantize(tensors["model.layers.1.mlp.up_proj.weight"], kind), kind)
    np.testing.assert_array_equal(read, expected)


def rope_factors(factor: float, theta: float, width: int, original: int = 8192) -> np.ndarray:
    """By the branches of llama.cpp's converter."""
    factors = []
    for i in range(width // 2):
        wave = 2 * np.pi * theta ** (2 * i / width)
        if wave < original / 4:
            factors.append(1.0)
        elif wave > original:
            factors.append(factor)
        else:
            smooth = (original / wave - 1) / 3
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, np.float32)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama_3s_scaling_is_recognised_by_its_divisors(factor, tmp_path):
    tensors = part(write_golden_folder("llama", tmp_path / "folder"), "param")
    config = read_folder(tmp_path / "folder").config
    config = dataclasses.replace(
        config, rope_theta=500_000.0, rope_factor=factor, rope_original_context=8192, head_dim=8
    )
    factors = rope_factors(factor, 500_000.0, 8)
    assert factors[0] == 1 and factors[-1] == factor
    write_gguf(tmp_path / "model.gguf", "llama", config, tensors | {"rope_freqs.weight": factors})
    checkpoint = read_gguf(tmp_path / "model.gguf")
    assert not differences(checkpoint.config, config)
    assert "rope_freqs.weight" not in checkpoint.tensors
    factors[1] *= 1.01
    write_gguf(tmp_path / "other.gguf", "llama", config, tensors | {"rope_freqs.weight": factors})
    with pytest.raises(UserError, match="other.gguf: the divisors in rope_freqs.weight are not those of Llama 3.1"):
        read_gguf(tmp_path / "other.gguf")


def test_linear_scaling_is_read(model):
    architecture, config, tensors, folder = model
    keys = dict(rope__scaling__type="linear", rope__scaling__factor=4.0)
    write_gguf(folder / "model.gguf", architecture, config, tensors, **keys)
    read = read_gguf(folder / "model.gguf").config
    assert (read.rope_scaling, read.rope_factor) == ("linear", 4.0)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (dict(rope__scaling__type="yarn"), "rope.scaling.type='yarn'"),
        (dict(expert_count=8), "llama.expert_count=8"),
        (dict(attention__sliding_window=4096), "llama.attention.sliding_window=4096"),
        (dict(rope__dimension_count=4), "rope.dimension_count=4"),
        (dict(attention__layer_norm_rms_epsilon=None), "attention.layer_norm_rms_epsilon is missing"),
        (dict(attention__head_count_kv=[2, 1, 2]), "llama.attention.head_count_kv differs from layer to layer"),
        (dict(attention__head_count_kv=3), "key_value_heads=3 does not divide num_heads=4"),
        (dict(attention__head_count=0), "model.num_heads=0: expected at least 1"),
        (dict(attention__head_count="4"), "llama.attention.head_count='4': expected a whole number"),
        (dict(embedding_length=24.0), "llama.embedding_length=24.0: expected a whole number"),
        (dict(block_count=2**32 - 1), "model.num_layers=4294967295: expected at most 10,000"),
        (dict(rope__freq_base="1"), "llama.rope.freq_base='1': expected a number"),
        (dict(rope__freq_base=0.0), "model.rope_theta=0.0: expected a positive number"),
    ],
)
def test_what_the_decoder_does_not_compute_is_refused_by_name(keys, words, tmp_path):
    tensors = part(write_golden_folder("llama", tmp_path / "folder"), "param")
    config = read_folder(tmp_path / "folder").config
    write_gguf(tmp_path / "model.gguf", "llama", config, tensors, **keys)
    with pytest.raises(UserError, match=f"model.gguf: .*{words}"):
        read_gguf(tmp_path / "model.gguf")


def test_an_unknown_architecture_is_named(tmp_path):
    tensors = part(write_golden_folder("llama", tmp_path / "folder"), "param")
    config = read_folder(tmp_path / "folder").config
    write_gguf(tmp_path / "model.gguf", "gemma", config, tensors)
    with pytest.raises(UserError, match="general.architecture='gemma' is none of those known here: llama, qwen2"):
        read_gguf(tmp_path / "model.gguf")


def test_a_missing_tensor_is_named(model):
    architecture, config, tensors, folder = model
    del tensors["model.layers.2.mlp.up_proj.weight"]
    write_gguf(folder / "model.gguf", architecture, config, tensors)
    with pytest.raises(UserError, match="1 missing: blk.2.ffn_up.weight .40, 24."):
        load_parameters(read_gguf(folder / "model.gguf"), single_device_mesh())


def test_a_kind_that_cannot_be_dequantised_is_named(model):
    architecture, config, tensors, folder = model
    tensors["model.layers.1.mlp.up_proj.weight"] = np.zeros((40, 24), np.int8)
    write_gguf(folder / "model.gguf", architecture, config, tensors)
    with pytest.raises(UserError, match="model.gguf: tensors of kind I8, which the gguf package cannot de-quantise"):
        read_gguf(folder / "model.gguf")


@pytest.mark.parametrize("kept", [0, 3, 10, 300, 0.5, -1])
def test_a_truncated_file_is_named(kept, tmp_path):
    tensors = part(write_golden_folder("qwen2", tmp_path / "folder"), "param")
    path = tmp_path / "model.gguf"
    write_gguf(path, "qwen2", read_folder(tmp_path / "folder").config, tensors)
    whole = path.read_bytes().rstrip(b"\0")  # the last tensor ends in padding
    path.write_bytes(whole[: int(kept * len(whole)) if 0 < kept < 1 else kept])
    with pytest.raises(UserError, match="model.gguf: not a GGUF file, or cut short"):
        read_gguf(path)


def test_the_package_is_asked_for_by_name(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match=r"gpt_jax\[gguf\]"):
        read_gguf(tmp_path / "model.gguf")
