"""Near-duplicates: what the bands propose is compared exactly, and clusters do not depend on any order."""

import itertools
import random
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_jax.data.books import find_books
from gpt_jax.data.curation.near_duplicates import (
    COMPARISONS,
    band_keys,
    best,
    bucket_edges,
    clusters,
    jaccard,
    shingles,
    signatures,
)
from gpt_jax.errors import UserError

BOOKS = ("chesterton-thursday.txt", "chesterton-brown.txt")
# signatures of the shingles of "one two three four five six seven" by rensa 0.5.0, and the keys of their bands
GOLDEN_SIGNATURE = [3543120846, 3848635203, 1328247279, 3561104084, 3834000457, 3255927709, 3276882547, 3246503196]
GOLDEN_KEYS = [9214993362226137788, 857868378905880529, 54107484558692195]


def edited(words, rate, rng):
    """A copy in which a share `rate` of the words is another."""
    return [f"other{rng.randrange(10**9)}" if rng.random() < rate else word for word in words]


def deduplicated(sets):
    """What a runner does: bucket by each band, join what is near in a bucket, unite."""
    keys = band_keys(signatures(list(sets.values())))
    edges = []
    for band in keys.T:
        buckets = {}
        for name, key in zip(sets, band.tolist(), strict=True):
            buckets.setdefault(key, []).append((name, sets[name]))
        edges += [edge for members in buckets.values() for edge in bucket_edges(members)]
    return clusters(edges), edges


def test_a_shingle_is_a_run_of_five_words_whatever_their_case_and_punctuation():
    text = "One two, three four five six; seven"
    assert len(shingles(text)) == 3 and shingles(text).dtype == np.uint64
    assert np.array_equal(shingles(text), shingles("one TWO three (four) five\nsix seven!"))


def test_a_text_of_few_words_is_one_shingle_and_of_none_has_none():
    assert len(shingles("only four words here")) == len(shingles("one")) == 1
    assert not np.array_equal(shingles("one"), shingles("two"))
    assert len(shingles("?!")) == len(shingles("")) == 0
    assert bucket_edges([("a", shingles("")), ("b", shingles("..."))]) == []


def test_signatures_and_keys_are_these_and_no_others_wherever_they_are_computed():
    own = signatures([shingles("one two three four five six seven"), shingles("")])
    assert own.shape == (2, 128) and own.dtype == np.uint32
    assert own[0, :8].tolist() == GOLDEN_SIGNATURE
    keys = band_keys(own)
    assert keys.shape == (2, 21) and keys.dtype == np.uint64
    assert keys[0, :3].tolist() == GOLDEN_KEYS
    assert signatures([]).shape == (0, 128) and band_keys(signatures([])).shape == (0, 21)


def test_a_signature_does_not_depend_on_its_neighbours():
    sets = [shingles(" ".join(str(i * j) for j in range(50 + i))) for i in range(20)]
    assert np.array_equal(signatures(sets)[7], signatures(sets[7:8])[0])


def test_equal_minima_estimate_the_jaccard_similarity():
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, 2**64, (200, 400), np.uint64)
    sets = [np.sort(row[part]) for row in numbers for part in (slice(0, 350), slice(50, 400))]
    own = signatures(sets)
    assert jaccard(sets[0], sets[1]) == 0.75
    estimates = (own[::2] == own[1::2]).mean(1)
    assert abs(estimates.mean() - 0.75) < 4 * (0.75 * 0.25 / 128 / 200) ** 0.5


def test_planted_near_duplicates_are_found_and_nothing_else_is_joined():
    """Against all pairs compared exactly; the full table at 5,000 documents is made by benchmarks/curation.py."""
    rng = random.Random(0)
    sets = {}
    for i in range(150):
        words = [f"w{rng.randrange(20_000)}" for _ in range(120)]
        sets[f"{i:03d}"] = shingles(" ".join(words))
        for j, rate in enumerate(rng.sample([0.002, 0.005, 0.01, 0.02, 0.04, 0.08], 2)):
            sets[f"{i:03d}copy{j}"] = shingles(" ".join(edited(words, rate, rng)))
    near = {pair for pair in itertools.combinations(sorted(sets), 2) if jaccard(sets[pair[0]], sets[pair[1]]) >= 0.8}
    cluster_of, edges = deduplicated(sets)
    assert len(near) > 100
    assert all((a, b) in near and similarity == jaccard(sets[a], sets[b]) for a, b, similarity in edges)
    found = sum(cluster_of.get(a, a) == cluster_of.get(b, b) for a, b in near)
    assert found >= 0.98 * len(near)


@settings(deadline=None)
@given(st.lists(st.sets(st.integers(0, 7), min_size=1), max_size=12), st.randoms(use_true_random=False))
def test_a_small_bucket_joins_exactly_what_near_pairs_join_whatever_the_order(sets, rng):
    members = [(f"d{i:02d}", np.array(sorted(own), np.uint64)) for i, own in enumerate(sets)]
    near = [(a, b, jaccard(s, t)) for (a, s), (b, t) in itertools.combinations(members, 2) if jaccard(s, t) >= 0.5]
    edges = bucket_edges(members, 0.5)
    assert set(edges) <= set(near)
    joined = clusters(edges)
    assert joined == clusters(near)
    assert len(edges) == len(joined) - len(set(joined.values()))  # nothing is compared to join what is joined
    assert bucket_edges(rng.sample(members, len(members)), 0.5) == edges


def test_a_huge_bucket_costs_so_many_comparisons_a_document_and_no_more(monkeypatch):
    compared = []
    monkeypatch.setattr(
        "gpt_jax.data.curation.near_duplicates.jaccard", lambda a, b: compared.append(1) or float(a[0] == b[0])
    )
    for distinct in (1, 10, 1000):
        members = [(f"{i:04d}", np.array([i % distinct], np.uint64)) for i in range(1000)]
        compared.clear()
        cluster_of = clusters(bucket_edges(members))
        assert len(compared) <= 1000 * min(distinct, COMPARISONS)
        assert len(set(cluster_of.values())) == (distinct if distinct < 1000 else 0)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=15), st.randoms(use_true_random=False))
def test_a_cluster_is_named_by_its_least_id_whatever_the_order_of_the_edges(pairs, rng):
    edges = [(str(a), str(b), 1.0) for a, b in pairs]
    cluster_of = clusters(edges)
    assert set(cluster_of) == {name for a, b, _ in edges for name in (a, b)}
    for name, least in cluster_of.items():
        reached = {name}
        while more := {x for a, b, _ in edges for x in (a, b) if {a, b} & reached} - reached:
            reached |= more
        assert least == min(reached)
    assert clusters(rng.sample(edges, len(edges))) == cluster_of


@pytest.mark.parametrize(
    "kept, candidates",
    [
        ("b", [("a", 0.5, 900), ("b", 0.9, 10), ("c", 0.1, 10)]),
        ("c", [("a", 0.5, 10), ("c", 0.5, 90), ("b", 0.5, 80)]),
        ("a", [("b", 0.5, 90), ("a", 0.5, 90)]),
    ],
)
def test_the_best_of_a_cluster_has_the_highest_score_then_most_text_then_the_least_id(kept, candidates):
    assert best(candidates) == best(reversed(candidates)) == kept


def test_two_editions_of_a_novel_are_found_and_another_novel_of_its_author_is_not():
    archive = Path(__file__).resolve().parents[4] / "shared/data/books/novels97.tar.xz"
    if not archive.exists():
        pytest.skip(f"measures with {archive}, which is not here")
    with tarfile.open(archive, "r|xz") as novels:  # read up to the one that is wanted, not whole
        edition = next(
            novels.extractfile(file).read().decode() for file in novels if "Chesterton_Thursday" in file.name
        )
    try:
        books = {path.name: path.read_text("utf-8") for path in find_books() if path.name in BOOKS}
    except UserError as error:
        pytest.skip(str(error))
    sets = {name: shingles(text) for name, text in {"novels97": edition, **books}.items()}
    cluster_of, edges = deduplicated(sets)
    assert cluster_of == dict.fromkeys(["chesterton-thursday.txt", "novels97"], "chesterton-thursday.txt")
    assert edges[0][2] > 0.95
