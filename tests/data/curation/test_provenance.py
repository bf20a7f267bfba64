"""Tallies add up: whatever the parts, and what came in is what went out and what was lost."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from small_crawl import documents

from gpt_jax.data.curation.cleanup import Cleanup
from gpt_jax.data.curation.documents import Decision, Document
from gpt_jax.data.curation.passes import (
    Record,
    Treatment,
    Verdict,
    duplicate_decisions,
    first_pass,
    second_pass,
    shard_of,
)
from gpt_jax.data.curation.provenance import KEPT, READ, Tally, explain, harmless
from gpt_jax.data.curation.quality_rules import Thresholds
from gpt_jax.data.curation.reading import Parsed, Skipped

TREATMENT = Treatment(cleanup=Cleanup(), thresholds=Thresholds())
TEXTS = st.sampled_from([row["text"] for row in documents()["web"]]) | st.text(
    st.characters(exclude_categories=["Cs"]), max_size=60
)
SKIPPED = Skipped("web", "a.jsonl, line 1", "broken", "not JSON")


def finished(texts: list[str], dropped: set[int] = frozenset()) -> list:
    parsed = [Parsed(Document(f"web:{n}", "web", text), f"a, line {n}", False) for n, text in enumerate(texts)]
    verdict = Verdict(Decision("near_duplicates", False, "near_duplicate", {"similarity": 0.9}))
    return [
        second_pass(record, verdict if n in dropped else Verdict(), np.zeros(0, np.uint64), TREATMENT)
        for n, record in enumerate(first_pass(parsed, TREATMENT))
    ]


@settings(max_examples=40, deadline=None)
@given(st.lists(TEXTS, max_size=12), st.sets(st.integers(0, 11)), st.data())
def test_the_sum_does_not_depend_on_the_parts_and_nothing_is_missing(texts, dropped, data):
    documents = finished(texts, dropped)
    whole, parts = Tally(), [Tally() for _ in range(3)]
    for one in documents:
        whole.add(one)
        data.draw(st.sampled_from(parts)).add(one)
    for tally in (whole, parts[1]):
        tally.add_skipped(SKIPPED)
    merged = Tally()
    for part in data.draw(st.permutations(parts)):
        merged.merge(Tally(part.as_json()))
    for tally in (merged, whole):
        for own in tally.sources.values():
            own.counts, own.changed, own.samples, own.histograms = (
                dict(sorted(one.items())) for one in (own.counts, own.changed, own.samples, own.histograms)
            )
    assert merged.as_json() == whole.as_json()
    own = whole.sources["web"]
    lost = [counts for name, counts in own.counts.items() if name not in (READ, KEPT)]
    cut = [[0, *counts[1:]] for counts in own.changed.values()]
    left = np.array(own.counts[READ]) - np.array([[0, 0, 0], *lost, *cut]).sum(axis=0)
    assert own.counts.get(KEPT, [0, 0, 0]) == left.tolist()


@given(st.text(), st.integers(1, 50))
def test_a_document_has_one_shard_which_its_id_alone_decides(text, shards):
    name = text.encode("utf-8", "replace").decode()
    assert shard_of(name, shards) == shard_of(name, shards) < shards
    assert shard_of("web:17", 8) == 7  # as it was when this was written: files keep their documents


def test_of_a_cluster_the_best_stays_and_every_decision_names_it():
    edges = [("a", "b", 0.9), ("b", "c", 0.95), ("x", "y", 0.8), ("b", "a", 0.9)]
    facts = {"a": (0.5, 100), "b": (0.9, 10), "c": (0.9, 20), "x": (0.0, 5), "y": (0.0, 5)}
    decisions = duplicate_decisions(edges, facts)
    assert {name: decision.kept for name, decision in decisions.items()} == {
        "a": False, "b": False, "c": True, "x": True, "y": False
    }  # fmt: skip
    assert decisions["a"].numbers == {
        "cluster": "a", "documents": 3, "kept": "c", "nearest": "b", "similarity": 0.9
    }  # fmt: skip
    assert decisions == duplicate_decisions(edges[::-1], facts)


def test_a_record_is_the_same_after_a_round_trip_through_json():
    import json

    for one in finished([row["text"] for row in documents()["web"]]):
        again = Record.from_json(json.loads(json.dumps(one.record.as_json())))
        assert again.as_json() == json.loads(json.dumps(one.record.as_json()))


def test_nothing_that_a_terminal_acts_on_is_shown():
    assert harmless("a\x1b[2Jb\nc\td\u202ee") == "a�[2Jb␤c d�e"
    row = {"id": "web:1", "source": "web", "place": "p", "words": 1, "bytes": 2, "decisions": [], "written": []}
    assert list(explain(row))[-1] == "  not in the training set"
