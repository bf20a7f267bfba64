"""Beam search finds what transformers' `generate` finds (tests/golden/generation.py)."""

import json
from pathlib import Path

import numpy as np
import pytest
from golden_models import write_golden_folder

from gpt_jax.errors import UserError
from gpt_jax.inference.beam_search import beam_search
from gpt_jax.inference.engine import Engine
from gpt_jax.inference.sampling import Sampling
from gpt_jax.parallel.mesh import single_device_mesh
from gpt_jax.weights.huggingface import read_folder
from gpt_jax.weights.load import load_parameters

with np.load(Path(__file__).resolve().parents[1] / "golden" / "generation.npz") as stored:
    CASES = json.loads(str(stored["beams"]))


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def family(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    write_golden_folder(request.param, folder)
    checkpoint = read_folder(folder)
    return request.param, checkpoint.config, load_parameters(checkpoint, single_device_mesh())


def engine_for(family, end):
    _, config, params = family
    return Engine(params, config, single_device_mesh(), end_ids=[end])


def test_beams_and_their_scores_are_transformers(family):
    for end in sorted({case["end"] for case in CASES}):
        engine = engine_for(family, end)
        for case in CASES:
            if case["model"] != family[0] or case["end"] != end or case["beams"] == 1:
                continue
            found = beam_search(
                engine,
                case["prompt"],
                beams=case["beams"],
                max_new_tokens=case["max_new_tokens"],
                length_penalty=case["length_penalty"],
            )
            assert [beam.ids for beam in found] == case["sequences"], case
            np.testing.assert_allclose([beam.score for beam in found], case["scores"], atol=2e-5)


def test_some_golden_beams_end_early_and_others_have_no_more_room():
    lengths = [(len(ids), case["max_new_tokens"]) for case in CASES for ids in case["sequences"]]
    assert sum(length < most for length, most in lengths) > 20 and sum(length == most for length, most in lengths) > 20


def test_one_beam_is_greedy(family):
    for case in (case for case in CASES if case["model"] == family[0] and case["beams"] == 1):
        engine = engine_for(family, case["end"])
        [beam] = beam_search(engine, case["prompt"], beams=1, max_new_tokens=6)
        engine.submit(case["prompt"], Sampling(6, temperature=0))
        [event] = engine.step(6)
        assert [event.tokens] == [beam.ids] == case["sequences"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(beams=0, max_new_tokens=4), "beams=0"),
        (dict(beams=2, max_new_tokens=0), "max_new_tokens=0"),
        (dict(beams=40, max_new_tokens=4), "beams=40: a vocabulary of 61 tokens has enough for at most 30"),
        (dict(beams=2, max_new_tokens=1000), "Ask for at most"),
    ],
)
def test_a_search_that_cannot_be_is_refused(family, options, words):
    with pytest.raises(UserError, match=words):
        beam_search(engine_for(family, 7), [1, 2], **options)
