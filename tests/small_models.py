"""Small models in Hugging Face folders, for tests that read weights."""

from pathlib import Path

import jax
import pytest

from gpt_jax.models import decoder
from gpt_jax.models.presets import model_config
from gpt_jax.parallel.mesh import single_device_mesh
from gpt_jax.text.export import save_huggingface
from gpt_jax.text.huggingface import HuggingFaceTokenizer
from gpt_jax.text.tokenizer_json import GPT2, added_token, byte_alphabet, byte_level
from gpt_jax.weights.huggingface import write_folder

SIZES = dict(num_layers=2, num_heads=4, embed_dim=32, context_length=24, vocab_size=257)


def byte_tokenizer() -> HuggingFaceTokenizer:
    """256 bytes and an end of text."""
    pytest.importorskip("tokenizers")
    end = "<|endoftext|>"
    document = byte_level(byte_alphabet() | {end: 256}, [], [added_token(256, end)], GPT2)
    return HuggingFaceTokenizer.from_json(document, {"eos_token": end})


def write_model(folder: Path, preset: str, *, key: int = 0, **fields) -> Path:
    """A Hugging Face folder with a small model of the family, its numbers of large spread, and the byte tokenizer."""
    config = model_config(preset, **SIZES | fields)
    with jax.set_mesh(single_device_mesh()):
        params = decoder.init(config, jax.random.key(key))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    params = tree.unflatten([x + 0.25 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)])
    write_folder(params, config, folder, add_files=lambda new: save_huggingface(byte_tokenizer(), new))
    return folder
