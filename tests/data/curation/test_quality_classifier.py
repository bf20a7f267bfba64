"""The classifier learns what good text looks like; the keep rule follows GPT-3's law and nothing but seed and id."""

import json
import random
from dataclasses import asdict

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from gpt_jax.data.curation.quality_classifier import agreement, keep, load, train, uniform
from gpt_jax.errors import UserError


def corpus(words, number, seed):
    rng = random.Random(seed)
    return [" ".join(rng.choices(words, k=40)) for _ in range(number)]


GOOD = corpus("thus therefore river chapter evening remembered quiet the of and to".split(), 200, 0)
CRAWL = corpus("click buy login cart cheap free shipping the of and to".split(), 400, 1)


@pytest.fixture(scope="module")
def classifier():
    return train(GOOD, CRAWL, seed=0)


@pytest.mark.parametrize("score", [0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0])
def test_a_document_is_kept_with_probability_two_minus_score_to_the_minus_nine(score):
    number = 20_000
    kept = sum(keep(score, f"document {i}", seed=7).kept for i in range(number))
    expected = (2 - score) ** -9
    assert abs(kept / number - expected) <= 4 * (expected * (1 - expected) / number) ** 0.5


def test_the_decision_follows_from_seed_and_id_alone_and_tells_its_numbers():
    decision = keep(0.9, "crawl-17", seed=3)
    assert decision == keep(0.9, "crawl-17", seed=3)
    assert json.loads(json.dumps(asdict(keep(np.float64(0.9), "crawl-17", seed=3)))) == asdict(decision)
    assert decision.numbers == {"score": 0.9, "needed": 1 - 0.9, "pareto": uniform(3, "crawl-17") ** (-1 / 9) - 1}
    assert decision.kept == (decision.numbers["pareto"] > decision.numbers["needed"])
    draws = {uniform(seed, name) for seed in (0, 1) for name in ("a", "b", "\ud800")}
    assert len(draws) == 6 and all(0 < draw < 1 for draw in draws)
    assert uniform(0, "a") == 0.8278145087896003


def test_a_document_that_is_dropped_says_by_what():
    decision = keep(0.0, "x", seed=0)
    assert (decision.stage, decision.kept, decision.reason) == ("quality_classifier", False, "pareto")


def test_good_text_scores_high_and_crawl_low_and_held_out_texts_say_so(classifier):
    scores = classifier.score(corpus(GOOD[0].split(), 20, 2) + corpus(CRAWL[0].split(), 20, 3))
    assert scores.dtype == np.float64 and scores.shape == (40,)
    assert scores[:20].min() > 0.9 and scores[20:].max() < 0.1
    assert classifier.held_out["f1"] == 1.0
    assert 5 < classifier.held_out["positives"] < 40 < classifier.held_out["negatives"] + 20
    assert classifier.score([]).shape == (0,)
    assert np.isfinite(classifier.score(["", "\ud800 odd", "?"])).all()


@pytest.mark.parametrize("threads", [1, 2])
def test_training_again_gives_the_same_classifier_on_any_number_of_cores(classifier, threads):
    with threadpool_limits(threads):
        assert train(GOOD, CRAWL, seed=0).fingerprint == classifier.fingerprint


def test_another_seed_holds_other_texts_out(classifier):
    assert train(GOOD, CRAWL, seed=1).fingerprint != classifier.fingerprint


def test_a_saved_classifier_is_the_same_one(classifier, tmp_path):
    classifier.save(tmp_path / "quality.npz")
    again = load(tmp_path / "quality.npz")
    assert again.fingerprint == classifier.fingerprint and again.held_out == classifier.held_out
    assert np.array_equal(again.score(GOOD[:9]), classifier.score(GOOD[:9]))


def test_agreement_counts_precision_and_recall():
    numbers = agreement(np.array([0.9, 0.8, 0.1, 0.7]), np.array([True, True, True, False]))
    assert numbers == {"positives": 3, "negatives": 1, "precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3}


@pytest.mark.parametrize(
    "positives, negatives, missing", [(GOOD, [], "negatives"), ([], CRAWL, "positives"), ([], [], "p")]
)
def test_a_classifier_with_one_class_is_refused(positives, negatives, missing):
    with pytest.raises(UserError, match=f"got {len(positives)} positives and .*too few {missing}.*Give it a source"):
        train(positives, negatives, seed=0)


@pytest.mark.parametrize("damage", ["missing", "other", "cut", "fields", "format", "pickle"])
def test_a_file_that_is_no_classifier_is_refused(classifier, damage, tmp_path):
    path = tmp_path / "quality.npz"
    classifier.save(path)
    match damage:
        case "missing":
            path.unlink()
        case "other":
            path.write_text("not a classifier")
        case "cut":
            path.write_bytes(path.read_bytes()[:-500])
        case "fields":
            np.savez(path, format=1, weights=classifier.weights)
        case "format":
            np.savez(path, format=2, weights=classifier.weights)
        case "pickle":
            np.savez(path, format=1, weights=np.array([None]), bias=0.0, held_out="{}")
    with pytest.raises(UserError, match="quality.npz"):
        load(path)
