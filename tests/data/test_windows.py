"""Windows tile the corpus: each token but the first is predicted in exactly one of them."""

import numpy as np
import pytest

from gpt_jax.data.windows import EvaluationWindows, Windows
from gpt_jax.errors import UserError


class Numbers:
    """A token store whose tokens are their own positions."""

    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def read_many(self, starts, length):
        assert all(0 <= start and start + length <= self.length for start in starts)
        return np.array([range(start, start + length) for start in starts], np.int32).reshape(len(starts), length)

    def read(self, start, stop):
        return self.read_many([start], stop - start)[0]


@pytest.mark.parametrize("tokens, length, count", [(101, 10, 10), (100, 10, 9), (110, 10, 10), (11, 10, 1), (2, 1, 1)])
def test_training_windows_predict_each_token_once_and_leave_out_only_the_last_few(tokens, length, count):
    windows = Windows(Numbers(tokens), length)
    assert len(windows) == count
    batch = windows.batch(range(count))
    assert np.array_equal(batch["targets"].ravel(), np.arange(1, count * length + 1))
    assert np.array_equal(batch["tokens"].ravel(), np.arange(count * length))
    assert batch["loss_mask"].all() and batch["loss_mask"].shape == (count, length)
    assert tokens - 1 - count * length < length


def test_a_window_follows_from_its_index_alone():
    windows = Windows(Numbers(1000), 16)
    for i in (61, 0, 7):
        assert windows[i].dtype == np.int32
        assert np.array_equal(windows[i], np.arange(i * 16, i * 16 + 17))
        assert np.array_equal(windows.batch([3, i])["tokens"][1], windows[i][:-1])
    for i in (-1, 62):
        with pytest.raises(IndexError):
            windows[i]


def test_a_text_shorter_than_a_window_says_which_field_to_lower():
    with pytest.raises(UserError, match="10 tokens.*data.sequence_length=10 .*at most 9"):
        Windows(Numbers(10), 10)


@pytest.mark.parametrize("tokens, length, count", [(101, 10, 10), (100, 10, 10), (102, 10, 11), (3, 10, 1), (2, 1, 1)])
def test_evaluation_windows_predict_every_token_once_and_mask_the_padding(tokens, length, count):
    windows = EvaluationWindows(Numbers(tokens), length, pad=-7)
    assert len(windows) == count
    predicted = []
    for i in range(count):
        window = windows[i]
        assert {name: (rows.shape, rows.dtype) for name, rows in window.items()} == {
            "tokens": ((length,), np.int32),
            "targets": ((length,), np.int32),
            "loss_mask": ((length,), np.float32),
        }
        counted = window["loss_mask"] == 1
        assert np.array_equal(window["tokens"][counted] + 1, window["targets"][counted])
        assert (window["targets"][~counted] == -7).all() and not window["loss_mask"][~counted].any()
        predicted += window["targets"][counted].tolist()
    assert predicted == list(range(1, tokens))


def test_an_index_past_the_last_evaluation_window_counts_nothing_in_a_batch():
    batch = EvaluationWindows(Numbers(15), 10, pad=0).batch([1, 2, 3])
    assert batch["loss_mask"].sum(axis=1).tolist() == [4, 0, 0]
    with pytest.raises(IndexError):
        EvaluationWindows(Numbers(15), 10, pad=0)[2]


def test_held_out_text_of_one_token_is_a_clear_error():
    with pytest.raises(UserError, match="nothing to predict"):
        EvaluationWindows(Numbers(1), 10, pad=0)
