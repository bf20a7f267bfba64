"""`gpt_jax.load` and what it hands out."""

import jax
import numpy as np
import pytest
from small_models import write_model

import gpt_jax
from gpt_jax.errors import UserError
from gpt_jax.inference.generation import continue_prompts
from gpt_jax.inference.sampling import Sampling


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


def test_a_refused_or_abandoned_call_leaves_nothing_behind(lm):
    expected = lm.generate(["ab"], max_new_tokens=4)
    with pytest.raises(UserError, match="40 tokens"):
        lm.generate(["ab", "x" * 40], max_new_tokens=4)
    assert lm.generate(["ab"], max_new_tokens=4) == expected
    sampling = Sampling(20, temperature=0)
    pieces = continue_prompts(lm._engine, lm.tokenizer, [[97], [98]], sampling, steps=1)
    next(pieces)
    pieces.close()
    assert not lm._engine.busy and lm.generate(["ab"], max_new_tokens=4) == expected


def test_nothing_in_gives_nothing_out(lm):
    assert lm.score([]) == [] and lm.generate([], max_new_tokens=4) == []
    assert [scores.shape for scores in lm.score(["", ""])] == [(0,), (0,)]


def test_rows_that_only_round_the_vocabulary_up_are_never_drawn(tmp_path):
    """The model has 300 rows, the tokenizer 257 ids; sampling hot, a row beyond would come up at once."""
    padded = gpt_jax.load(write_model(tmp_path / "model", "gpt2-small", vocab_size=300))
    assert len(padded.generate(["a"] * 8, max_new_tokens=16, temperature=100.0)) == 8


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda lm: lm.logits([[0] * 25]), "25 tokens, and the context holds 24"),
        (lambda lm: lm.logits([[257]]), "the vocabulary has 0 to 256"),
        (lambda lm: lm.logits([1, 2]), "expected integers .batch, time."),
        (lambda lm: lm.logits([[1.5]]), "float64"),
        (lambda lm: lm.generate(["a"], max_new_tokens=24), "max_new_tokens=24 .*Ask for at most 23"),
        (lambda lm: lm.generate(["a" * 24]), "24 tokens .*Shorten the prompt"),
        (lambda lm: lm.generate(["a"], 4, top_k=5), "temperature=0 .*top_k=5"),
        (lambda lm: lm.generate(["a"], 4, stop=[""]), "empty stop string"),
        (lambda lm: lm.generate(["a"], 4, temperature=1.0, beams=2), "beams=2 with temperature=1"),
        (lambda lm: lm.generate(["a"], 4, top_k=2**31, temperature=1.0), "top_k=2147483648"),
        (lambda lm: lm.generate(["a"], 4, temperature=-1), "temperature=-1"),
        (lambda lm: lm.generate(["a"], 4, seed=-1), "seed=-1"),
        (lambda lm: lm.generate("a text", 4), "expected a list of texts"),
        (lambda lm: lm.score("a text"), "expected a list of texts"),
        (lambda lm: lm.score(["short", "x" * 25]), "text 1 .*25 tokens"),
    ],
)
def test_what_does_not_fit_is_refused(lm, call, words):
    with pytest.raises(UserError, match=words):
        call(lm)
