"""Predictions to scores, by scikit-learn and SciPy.

What is undefined is 0.0, without a warning, as GLUE's evaluation has it: the correlation with predictions (or targets)
that are all the same, Matthews' likewise, and F1 where the class is neither predicted nor there.
"""

import warnings
from collections.abc import Sequence

import numpy as np

from gpt_jax.extras import require

LABEL_METRICS = ("accuracy", "f1", "matthews")
SCORE_METRICS = ("pearson", "spearman")
METRICS = (*LABEL_METRICS, *SCORE_METRICS)


def compute_metrics(
    metrics: Sequence[str], predictions: np.ndarray, targets: np.ndarray, num_labels: int | None = None
) -> dict[str, float]:
    """metric -> score, by names of `METRICS`.

    Args:
      metrics: accuracy | f1 | matthews for labels, pearson | spearman for scores.
      predictions: [n] label numbers (int) or scores (float).
      targets: [n], the same of what is true.
      num_labels: of labels: decides between F1 of class 1 (2) and the mean of all classes' F1 (more).
    """
    return {metric: _METRICS[metric](np.asarray(predictions), np.asarray(targets), num_labels) for metric in metrics}


def confusion_matrix(predictions: np.ndarray, targets: np.ndarray, num_labels: int) -> np.ndarray:
    """int [num_labels, num_labels]: how many of each true label (row) were given each label (column)."""
    return _sklearn().confusion_matrix(targets, predictions, labels=np.arange(num_labels))


def _accuracy(predictions: np.ndarray, targets: np.ndarray, num_labels: int | None) -> float:
    return float(_sklearn().accuracy_score(targets, predictions))


def _f1(predictions: np.ndarray, targets: np.ndarray, num_labels: int | None) -> float:
    """Of two classes that of class 1 (MRPC's and QQP's "the same"); of more the mean over all, whether there or not."""
    if num_labels is None:
        raise TypeError("F1 needs num_labels")
    settings = {"average": "binary"} if num_labels == 2 else {"average": "macro", "labels": np.arange(num_labels)}
    return float(_sklearn().f1_score(targets, predictions, zero_division=0.0, **settings))


def _matthews(predictions: np.ndarray, targets: np.ndarray, num_labels: int | None) -> float:
    with warnings.catch_warnings(action="ignore"):
        return _defined(_sklearn().matthews_corrcoef(targets, predictions))


def _pearson(predictions: np.ndarray, targets: np.ndarray, num_labels: int | None) -> float:
    return _correlation("pearsonr", predictions, targets)


def _spearman(predictions: np.ndarray, targets: np.ndarray, num_labels: int | None) -> float:
    return _correlation("spearmanr", predictions, targets)


def _correlation(name: str, predictions: np.ndarray, targets: np.ndarray) -> float:
    if len(targets) < 2:
        return 0.0
    with warnings.catch_warnings(action="ignore"):
        return _defined(getattr(require("scipy.stats", "finetune"), name)(predictions, targets).statistic)


def _defined(value: float) -> float:
    return float(value) if np.isfinite(value) else 0.0


def _sklearn():
    return require("sklearn.metrics", "finetune")


_METRICS = {
    "accuracy": _accuracy,
    "f1": _f1,
    "matthews": _matthews,
    "pearson": _pearson,
    "spearman": _spearman,
}
