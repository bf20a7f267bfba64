"""Metrics are scikit-learn's and SciPy's; where those are undefined, 0 without a warning."""

import warnings

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_jax import extras
from gpt_jax.errors import UserError
from gpt_jax.tasks import metrics
from gpt_jax.tasks.metrics import METRICS, compute_metrics, confusion_matrix
from gpt_jax.tasks.scores import expected_score, soft_score_targets


@st.composite
def labels(draw):
    """(predictions, targets, number of classes), some of which may be nowhere."""
    classes = draw(st.integers(2, 5))
    pairs = draw(st.lists(st.tuples(*[st.integers(0, classes - 1)] * 2), min_size=1, max_size=40))
    predictions, targets = np.array(pairs).T
    return predictions, targets, classes


@st.composite
def scores(draw):
    """(predictions, targets) with many ties."""
    values = st.integers(0, 6).map(lambda value: value / 2)
    pairs = draw(st.lists(st.tuples(values, values), min_size=2, max_size=40))
    return np.array(pairs, np.float64).T


@settings(max_examples=60, deadline=None)
@given(labels())
def test_metrics_of_labels_are_scikit_learns(drawn):
    predictions, targets, classes = drawn
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = compute_metrics(("accuracy", "f1", "matthews"), predictions, targets, classes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        per_class = sklearn.metrics.f1_score(targets, predictions, average=None, labels=range(classes), zero_division=0)
        assert found["f1"] == pytest.approx(per_class[1] if classes == 2 else per_class.mean())
        assert found["matthews"] == pytest.approx(sklearn.metrics.matthews_corrcoef(targets, predictions))
    assert found["accuracy"] == pytest.approx((predictions == targets).mean())


@settings(max_examples=60, deadline=None)
@given(labels())
def test_the_confusion_matrix_counts_truth_by_row(drawn):
    predictions, targets, classes = drawn
    matrix = confusion_matrix(predictions, targets, classes)
    expected = np.zeros((classes, classes), int)
    np.add.at(expected, (targets, predictions), 1)
    assert matrix.tolist() == expected.tolist()


@settings(max_examples=60, deadline=None)
@given(scores())
def test_correlations_are_scipys_and_zero_where_undefined(drawn):
    predictions, targets = drawn
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = compute_metrics(("pearson", "spearman"), predictions, targets)
    if len(set(predictions)) == 1 or len(set(targets)) == 1:
        assert found == {"pearson": 0.0, "spearman": 0.0}
    else:
        assert found["pearson"] == pytest.approx(scipy.stats.pearsonr(predictions, targets).statistic)
        assert found["spearman"] == pytest.approx(scipy.stats.spearmanr(predictions, targets).statistic)


def test_what_is_undefined_is_zero():
    constant, other = np.zeros(4, int), np.array([0, 1, 0, 1])
    assert compute_metrics(("f1", "matthews"), constant, other, 2) == {"f1": 0.0, "matthews": 0.0}
    assert compute_metrics(("f1", "matthews"), constant, constant, 2) == {"f1": 0.0, "matthews": 0.0}
    assert compute_metrics(("pearson", "spearman"), [1.5], [1.5]) == {"pearson": 0.0, "spearman": 0.0}


def test_scores_are_plain_numbers():
    found = compute_metrics(METRICS[:3], [0, 1], [0, 1], 2) | compute_metrics(METRICS[3:], [0.0, 1.0], [0.0, 1.0])
    assert found == pytest.approx(dict.fromkeys(METRICS, 1.0))
    assert all(type(score) is float for score in found.values())


def test_missing_scikit_learn_is_answered_with_the_extra_that_brings_it(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(name=name.split(".")[0])

    monkeypatch.setattr(extras.importlib, "import_module", missing)
    for metric in METRICS:
        with pytest.raises(UserError, match=r'pip install "gpt_jax\[finetune\]"'):
            metrics.compute_metrics([metric], [0, 1], [0, 1], 2)


# --- scores as distributions


@given(st.lists(st.floats(0, 5), min_size=1, max_size=20))
def test_soft_targets_are_distributions_over_two_neighbours_whose_mean_is_the_score(drawn):
    targets = soft_score_targets(np.array(drawn))
    assert targets.shape == (len(drawn), 6) and targets.dtype == np.float32
    assert np.allclose(targets.sum(-1), 1) and (targets >= 0).all()
    assert np.allclose(expected_score(targets), drawn, atol=1e-5)
    for row in targets:
        places = np.flatnonzero(row)
        assert len(places) <= 2 and places[-1] - places[0] <= 1


def test_soft_targets_are_tais():
    assert np.allclose(soft_score_targets([3.8]), [[0, 0, 0, 0.2, 0.8, 0]])
    assert np.allclose(soft_score_targets([0, 5]), np.eye(6)[[0, 5]])
    assert np.allclose(soft_score_targets([-0.25], low=-1, high=1), [[0.25, 0.75, 0]])
    assert expected_score(np.array([0.25, 0.75, 0]), low=-1) == -0.25
    with pytest.raises(ValueError, match="expected 0 to 5"):
        soft_score_targets([5.5])
