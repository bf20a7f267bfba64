"""`gpt_jax.load` and what it hands out."""

import jax
import numpy as np
import pytest
from small_models import write_model

import gpt_jax
from gpt_jax.errors import UserError


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return gpt_jax.load(write_model(tmp_path_factory.mktemp("lm") / "model", "gpt2-small"))


def test_scores_are_the_log_probabilities_of_the_logits(lm):
    texts = ["a text", "another one", ""]
    for text, scores in zip(texts, lm.score(texts), strict=True):
        ids = lm.tokenizer.encode(text)
        before = np.array([[lm.tokenizer.specials.end_of_text, *ids[:-1]]]) if len(ids) else np.zeros((1, 0), int)
        assert scores.shape == (len(ids),)
        if len(ids):
            expected = jax.nn.log_softmax(lm.logits(before))[0][np.arange(len(ids)), ids]
            np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-5)


def test_greedy_generation_takes_the_likeliest_token_each_time(lm):
    (continuation,) = lm.generate(["ab"], max_new_tokens=4)
    ids = lm.tokenizer.encode("ab").tolist()
    for _ in range(4):
        ids.append(int(np.argmax(lm.logits([ids])[0, -1])))
    end = lm.tokenizer.specials.end_of_text
    new = ids[2:]
    assert continuation == lm.tokenizer.decode(new[: new.index(end)] if end in new else new)


def test_sampling_follows_the_seed(lm):
    draws = [lm.generate(["ab"], max_new_tokens=8, temperature=1.0, seed=seed) for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda lm: lm.logits([[0] * 25]), "time at most 24"),
        (lambda lm: lm.logits([[257]]), "the vocabulary has 0 to 256"),
        (lambda lm: lm.generate(["a"], max_new_tokens=24), "max_new_tokens=24"),
        (lambda lm: lm.score(["x" * 25]), "time at most 24"),
    ],
)
def test_what_does_not_fit_is_refused(lm, call, words):
    with pytest.raises(UserError, match=words):
        call(lm)
