"""Rows of packed texts: each text whole, once, apart from the others."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_jax.data.packing import MarkedText, PackedTexts, pack

LENGTH, PAD = 12, 0
texts = st.lists(
    st.integers(2, LENGTH + 1).flatmap(
        lambda n: st.builds(
            MarkedText,
            st.lists(st.integers(1, 50), min_size=n, max_size=n).map(lambda ids: np.array(ids, np.int32)),
            st.lists(st.booleans(), min_size=n, max_size=n).map(np.array),
        )
    ),
    min_size=1,
    max_size=20,
)


@settings(max_examples=60, deadline=None)
@given(texts)
def test_every_prediction_of_every_text_stands_in_one_row_once(drawn):
    rows = PackedTexts(drawn, LENGTH, PAD)
    assert sorted(number for row in rows.rows for number in row) == list(range(len(drawn)))
    batch = rows.batch(range(len(rows)))
    assert {name: x.dtype for name, x in batch.items()} == {
        "tokens": np.int32, "targets": np.int32, "loss_mask": np.float32, "segments": np.int32
    }  # fmt: skip
    for row, numbers in enumerate(rows.rows):
        for segment, number in enumerate(numbers, 1):
            own = batch["segments"][row] == segment
            np.testing.assert_array_equal(batch["tokens"][row][own], drawn[number].ids[:-1])
            np.testing.assert_array_equal(batch["targets"][row][own], drawn[number].ids[1:])
            np.testing.assert_array_equal(batch["loss_mask"][row][own], drawn[number].counted[1:])
    rest = batch["segments"] == 0
    assert (batch["tokens"][rest] == PAD).all() and (batch["loss_mask"][rest] == 0).all()
    assert abs(rows.filled - (1 - rest.mean())) < 1e-12


@settings(max_examples=60, deadline=None)
@given(texts)
def test_without_packing_a_text_has_a_row_of_its_own_and_there_are_no_segments(drawn):
    rows = PackedTexts(drawn, LENGTH, PAD, packed=False)
    assert len(rows) == len(drawn)
    batch = rows.batch(range(len(rows)))
    assert "segments" not in batch
    assert batch["loss_mask"].sum() == sum(text.counted[1:].sum() for text in drawn)


def test_rows_past_the_last_count_nothing():
    rows = PackedTexts([MarkedText(np.arange(5, dtype=np.int32), np.ones(5, bool))], LENGTH, PAD)
    batch = rows.batch([0, 1, 7])
    assert batch["loss_mask"].sum(axis=1).tolist() == [4, 0, 0] and (batch["segments"][1:] == 0).all()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 100), max_size=200))
def test_no_two_bins_could_be_one(sizes):
    bins = pack(sizes, 100)
    assert sorted(item for own in bins for item in own) == list(range(len(sizes)))
    contents = sorted(sum(sizes[item] for item in own) for own in bins)
    assert all(content <= 100 for content in contents)
    assert len(bins) < 2 or contents[0] + contents[1] > 100
    assert bins == pack(sizes, 100)
