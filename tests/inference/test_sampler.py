"""The sampler: what it draws, and that rows do not disturb each other."""

import dataclasses

import jax
import numpy as np
import pytest

from gpt_jax.inference.sampler import compile_sampler
from gpt_jax.models import decoder
from gpt_jax.models.config import ModelConfig
from gpt_jax.parallel.mesh import single_device_mesh

CONFIG = ModelConfig(vocab_size=17, context_length=24, num_layers=2, num_heads=2, embed_dim=16, init_std=0.5)


@pytest.fixture
def params(one_device):
    return decoder.init(CONFIG, jax.random.key(0))


@jax.jit
def all_logits(params, ids):
    return decoder.Decoder(CONFIG).apply({"params": params}, ids)


def last_logits(params, ids):
    """Scores of what follows `ids`; one program for all lengths."""
    padded = np.zeros((1, CONFIG.context_length), np.int32)
    padded[0, : len(ids)] = ids
    return np.asarray(all_logits(params, padded)[0, len(ids) - 1], np.float64)


def greedy_by_hand(params, prompt, new):
    ids = list(prompt)
    for _ in range(new):
        ids.append(int(last_logits(params, ids).argmax()))
    return ids[len(prompt) :]


def test_greedy_takes_the_likeliest_token_whatever_the_batch(params):
    sample = compile_sampler(CONFIG, single_device_mesh(), max_new_tokens=6, temperature=0.0)
    prompts = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10]]
    together = sample(params, prompts, 0).tolist()
    assert together == [greedy_by_hand(params, prompt, 6) for prompt in prompts]
    assert together == [sample(params, [prompt], 1).tolist()[0] for prompt in prompts]


def test_draws_follow_the_distribution_that_temperature_and_top_k_state(params):
    temperature, top_k, draws = 1.7, 5, 4000
    sample = compile_sampler(CONFIG, single_device_mesh(), max_new_tokens=1, temperature=temperature, top_k=top_k)
    ids = sample(params, [[3, 1, 4]] * draws, 0)[:, 0]
    logits = last_logits(params, [3, 1, 4])
    logits[np.argsort(logits)[:-top_k]] = -np.inf
    expected = np.exp(logits / temperature)
    expected *= draws / expected.sum()
    found = np.bincount(ids, minlength=17)
    assert (found[expected == 0] == 0).all()
    kept = expected > 0
    assert ((found[kept] - expected[kept]) ** 2 / expected[kept]).sum() < 18.5  # chi-square, 4 degrees, p = 0.001


def test_the_same_seed_draws_the_same_and_another_does_not(params):
    sample = compile_sampler(CONFIG, single_device_mesh(), max_new_tokens=12)
    assert (sample(params, [[1], [1]], 5) == sample(params, [[1], [1]], 5)).all()
    assert (sample(params, [[1], [1]], 5) != sample(params, [[1], [1]], 6)).any()
    first, second = sample(params, [[1], [1]], 5)
    assert (first != second).any()  # equal prompts draw from keys of their own


def test_a_long_prompt_keeps_its_end(params):
    sample = compile_sampler(CONFIG, single_device_mesh(), max_new_tokens=4, temperature=0.0)
    long = [int(x) for x in np.random.default_rng(0).integers(0, 17, 60)]
    assert sample(params, [long], 0).tolist()[0] == greedy_by_hand(params, long[-20:], 4)


def test_what_cannot_be_is_refused(params):
    with pytest.raises(ValueError, match="leaves no room"):
        compile_sampler(dataclasses.replace(CONFIG, context_length=4), single_device_mesh(), max_new_tokens=4)
    with pytest.raises(ValueError, match="empty prompt"):
        compile_sampler(CONFIG, single_device_mesh(), max_new_tokens=4)(params, [[]], 0)
