"""A prompt's log-probabilities are those of the logits, in one chunk or many."""

import functools

import jax
import numpy as np
import pytest
from small_models import write_model

import gpt_jax
from gpt_jax.inference import prompt_logprobs
from gpt_jax.inference.engine import Engine
from gpt_jax.parallel.mesh import single_device_mesh


@pytest.mark.parametrize("preset", ["gpt2-small", "gpt1"])
def test_they_are_those_of_the_logits(tmp_path, monkeypatch, preset):
    lm = gpt_jax.load(write_model(tmp_path / "model", preset))
    engine = Engine(lm.params, lm.config, single_device_mesh(), vocab_size=250, slots=1)
    ids = np.random.default_rng(0).integers(0, 250, 24).tolist()
    expected = np.asarray(jax.nn.log_softmax(lm.logits([ids])[0, :, :250]))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
    for chunk, length in ((256, 24), (5, 24), (5, 11), (5, 1)):
        monkeypatch.setattr(prompt_logprobs, "CHUNK", chunk)
        told = prompt_logprobs.prompt_logprobs(engine, ids[:length], alternatives=3)
        assert len(told) == length - 1
        for place, (logprob, likeliest) in enumerate(told):
            close(logprob, expected[place, ids[place + 1]])
            close([p for _, p in likeliest], np.sort(expected[place])[::-1][:3])
            assert likeliest[0][0] == np.argmax(expected[place])
