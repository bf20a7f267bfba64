"""Scores as distributions over whole numbers, after Tai, Socher and Manning 2015 (Improved Semantic Representations
From Tree-Structured Long Short-Term Memory Networks, §4.2), as OpenAI's `stsb_label_encoding` has it too.

The model gives a probability to each whole number of the range and is trained on the Kullback-Leibler divergence from
the target's distribution; its prediction is the expected score.
"""

import numpy as np


def soft_score_targets(scores: np.ndarray, low: int = 0, high: int = 5) -> np.ndarray:
    """[n] scores in low..high to float32 [n, high - low + 1] distributions whose mean is the score.

    A score between two whole numbers is shared between them, by its distance from the other one.
    """
    scores = np.asarray(scores, np.float64)
    if scores.size and not (low <= scores.min() and scores.max() <= high):
        raise ValueError(f"scores from {scores.min()} to {scores.max()}, expected {low} to {high}")
    distances = np.abs(scores[:, None] - np.arange(low, high + 1))
    return np.maximum(0, 1 - distances).astype(np.float32)


def expected_score(probabilities: np.ndarray, low: int = 0) -> np.ndarray:
    """[..., k] probabilities of low, low + 1, ... to [...] scores."""
    probabilities = np.asarray(probabilities)
    return probabilities @ np.arange(low, low + probabilities.shape[-1], dtype=probabilities.dtype)
