"""The engine: what it makes is what the whole forward pass says, whatever else is at work."""

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_jax.errors import UserError
from gpt_jax.inference.engine import Engine
from gpt_jax.inference.sampling import Sampling
from gpt_jax.models import decoder
from gpt_jax.models.config import ModelConfig
from gpt_jax.parallel.mesh import single_device_mesh

CONFIG = ModelConfig(vocab_size=17, context_length=80, num_layers=2, num_heads=2, embed_dim=16, init_std=0.5)
BANDED = dataclasses.replace(CONFIG, attention_pattern="alternating", attention_window=5)
GREEDY = Sampling(8, temperature=0)


@pytest.fixture(scope="module")
def params():
    with jax.set_mesh(single_device_mesh()):
        return decoder.init(CONFIG, jax.random.key(0))


@jax.jit
def all_logits(params, ids):
    return decoder.Decoder(CONFIG).apply({"params": params}, ids)


def last_logits(params, ids):
    """Scores of what follows `ids`; one program for all lengths."""
    padded = np.zeros((1, CONFIG.context_length), np.int32)
    padded[0, : len(ids)] = ids
    with jax.set_mesh(single_device_mesh()):
        return np.asarray(all_logits(params, padded)[0, len(ids) - 1], np.float64)


def greedy_by_hand(params, prompt, new):
    ids = list(prompt)
    for _ in range(new):
        ids.append(int(last_logits(params, ids).argmax()))
    return ids[len(prompt) :]


def engine_of(params, **options):
    return Engine(params, CONFIG, single_device_mesh(), **options)


def finish(engine, steps=5):
    """Everything until nothing is at work: {request: (tokens, what ended it)}."""
    tokens, finished = {}, {}
    while engine.busy:
        for event in engine.step(steps):
            tokens.setdefault(event.request, []).extend(event.tokens)
            finished[event.request] = event.finished
    return {request: (own, finished[request]) for request, own in tokens.items()}


def test_prompts_of_any_length_that_come_and_go_are_continued_as_if_alone(params):
    """More prompts than slots, of different lengths, leaving at different times."""
    lengths, news = (3, 1, 20, 7, 40, 2, 70, 33), (10, 20, 5, 13, 8, 30, 3, 40)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 17, length).tolist() for length in lengths]
    engine = engine_of(params, slots=3)
    requests = [engine.submit(p, Sampling(n, temperature=0)) for p, n in zip(prompts, news, strict=True)]
    assert engine.queued == 8
    found = finish(engine, steps=4)
    for request, prompt, new in zip(requests, prompts, news, strict=True):
        assert found[request] == (greedy_by_hand(params, prompt, new), "length")


def test_a_draw_depends_on_its_seed_and_number_not_on_the_company(params):
    hot = dataclasses.replace(GREEDY, temperature=2.0, seed=5)
    alone = finish_one(params, [3, 1], hot, sample=2)
    engine = engine_of(params, slots=4)
    others = [engine.submit([9] * n, Sampling(20, temperature=1.0, seed=n, top_k=3)) for n in (30, 2)]
    engine.step(3)
    request = engine.submit([3, 1], hot, 2)
    found = finish(engine, steps=2)
    assert found[request] == alone
    assert len(found[others[0]][0]) == 17  # what the first steps made was told then
    assert finish_one(params, [3, 1], hot, sample=3) != alone
    assert finish_one(params, [3, 1], dataclasses.replace(hot, seed=6), sample=2) != alone


def finish_one(params, prompt, sampling, sample=0, **options):
    engine = engine_of(params, **options)
    request = engine.submit(prompt, sampling, sample)
    return finish(engine)[request]


def test_an_end_of_text_ends_its_row_and_is_not_told(params):
    tokens = greedy_by_hand(params, [1, 2, 3], 8)
    end = tokens[3]
    assert finish_one(params, [1, 2, 3], GREEDY, end_ids=[end]) == (tokens[: tokens.index(end)], "stop")


def test_ids_beyond_the_tokenizers_are_never_drawn(params):
    tokens, _ = finish_one(params, [1], Sampling(64, temperature=50.0), vocab_size=4)
    assert set(tokens) == {0, 1, 2, 3}


def test_log_probabilities_are_the_models_own(params):
    engine = engine_of(params)
    engine.submit([1, 2], dataclasses.replace(GREEDY, logprobs=3))
    engine.submit([4], dataclasses.replace(GREEDY, temperature=0.7, top_k=2, logprobs=0))
    first, second = engine.step(8)
    ids = [1, 2]
    for token, logprob, alternatives in zip(first.tokens, first.logprobs, first.alternatives, strict=True):
        logits = last_logits(params, ids)
        expected = logits - np.log(np.exp(logits).sum())
        np.testing.assert_allclose(logprob, expected[token], atol=1e-5)
        assert [id for id, _ in alternatives] == np.argsort(-expected)[:3].tolist()
        np.testing.assert_allclose([p for _, p in alternatives], np.sort(expected)[:-4:-1], atol=1e-5)
        ids.append(token)
    assert second.alternatives == [] and len(second.logprobs) == 8 and max(second.logprobs) < 0


def test_a_repetition_penalty_counts_prompt_and_continuation_but_no_padding(params):
    """By hand, token for token; id 0, which fills the rows up, is in no prompt."""
    penalty, ids = 4.0, [3, 7]
    for _ in range(10):
        logits, seen = last_logits(params, ids), np.unique(ids)
        logits[seen] = np.where(logits[seen] > 0, logits[seen] / penalty, logits[seen] * penalty)
        ids.append(int(logits.argmax()))
    engine = engine_of(params)
    request = engine.submit([3, 7], Sampling(10, temperature=0, repetition_penalty=penalty))
    engine.submit([0] * 30, Sampling(10, temperature=0))
    assert finish(engine)[request][0] == ids[2:] != greedy_by_hand(params, [3, 7], 10)


def test_a_cancelled_request_is_heard_of_no_more_and_leaves_room(params):
    engine = engine_of(params, slots=1)
    first, second, third = (engine.submit([n], Sampling(20, temperature=0)) for n in (1, 2, 3))
    engine.step(2)
    engine.cancel(first)
    engine.cancel(third)
    assert finish(engine) == {second: (greedy_by_hand(params, [2], 20), "length")} and not engine.busy


def test_a_reused_prefix_changes_nothing(params):
    engine, ids = engine_of(params, reuse_prefix=True), [5, 6, 7]
    for turn in ([1], [2, 3], [4] * 20):
        request = engine.submit(ids, GREEDY)
        answer, _ = finish(engine)[request]
        assert answer == greedy_by_hand(params, ids, 8)
        ids = [*ids, *answer, *turn]


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_banded_layers_continue_as_they_score(data):
    """Each token that the engine takes is the likeliest by the whole forward pass, as rings turn and rows move."""
    with jax.set_mesh(single_device_mesh()):
        params = decoder.init(BANDED, jax.random.key(1))
    engine = Engine(params, BANDED, single_device_mesh(), slots=2)
    prompts = data.draw(st.lists(st.lists(st.integers(0, 16), min_size=1, max_size=60), min_size=1, max_size=3))
    requests = [engine.submit(prompt, Sampling(9, temperature=0)) for prompt in prompts]
    found = finish(engine, data.draw(st.integers(1, 9)))
    for request, prompt in zip(requests, prompts, strict=True):
        ids = np.zeros((1, BANDED.context_length), np.int32)
        ids[0, : len(prompt) + 9] = [*prompt, *found[request][0]]
        with jax.set_mesh(single_device_mesh()):
            likeliest = np.asarray(banded_logits(params, ids)[0].argmax(-1))
        assert likeliest[len(prompt) - 1 : len(prompt) + 8].tolist() == found[request][0]


@jax.jit
def banded_logits(params, ids):
    return decoder.Decoder(BANDED).apply({"params": params}, ids)


@pytest.mark.parametrize(
    ("prompt", "new", "words"),
    [
        ([], 4, "empty prompt"),
        ([17], 4, "0 to 16"),
        ([-1], 4, "0 to 16"),
        ([1] * 78, 4, "78 tokens .* context of 80. Ask for at most 2"),
        ([1] * 80, 4, "Shorten the prompt"),
    ],
)
def test_a_prompt_that_cannot_be_continued_is_refused(params, prompt, new, words):
    with pytest.raises(UserError, match=words):
        engine_of(params).submit(prompt, Sampling(new))


@pytest.mark.parametrize("options", [dict(slots=0), dict(length=81), dict(length=1)])
def test_an_engine_without_room_is_refused(params, options):
    with pytest.raises(UserError, match="expected a length"):
        engine_of(params, **options)
