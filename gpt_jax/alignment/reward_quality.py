"""How far a reward agrees with people on answers that it did not learn from, and how far length alone does. NumPy.

P: pairs of answers to one prompt that are ranked apart; [G, K] as in comparisons.py.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from gpt_jax.alignment.comparisons import Calibration, better_pairs, calibration

DRAWS = 2000  # of the bootstrap


class Pairs(NamedTuple):
    """int [P] each: the prompt of each pair, the place of the better answer among its answers, and of the worse."""

    prompt: np.ndarray
    better: np.ndarray
    worse: np.ndarray

    def differences(self, scores_GK: np.ndarray) -> np.ndarray:
        """Of each pair, the better answer's score minus the worse one's, float64 [P]."""
        scores_GK = np.asarray(scores_GK, np.float64)
        return scores_GK[self.prompt, self.better] - scores_GK[self.prompt, self.worse]

    def hits(self, scores_GK: np.ndarray) -> np.ndarray:
        """1 where the better answer has the higher score, 1/2 where both have the same, else 0; [P]."""
        return (np.sign(self.differences(scores_GK)) + 1) / 2


def pairs_of(ranks_GK: np.ndarray, mask_GK: np.ndarray) -> Pairs:
    """All pairs of answers that are ranked apart."""
    return Pairs(*np.nonzero(np.asarray(better_pairs(ranks_GK, mask_GK))))


class Estimate(NamedTuple):
    """A mean, and the interval in which 95% of its bootstrap replicates lie."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4f} ({self.low:.4f} to {self.high:.4f})"


def estimate(values_P: np.ndarray, pairs: Pairs, seed: int = 0) -> Estimate:
    """The mean over all pairs. The bootstrap draws prompts, since the pairs of one prompt are not independent."""
    _, prompt_P = np.unique(pairs.prompt, return_inverse=True)
    sums_G, counts_G = np.bincount(prompt_P, values_P), np.bincount(prompt_P)
    draw, means = np.random.default_rng(seed), np.empty(DRAWS)
    for number in range(DRAWS):
        chosen = draw.integers(len(sums_G), size=len(sums_G))
        means[number] = sums_G[chosen].sum() / counts_G[chosen].sum()
    return Estimate(float(np.mean(values_P)), *np.quantile(means, (0.025, 0.975)).tolist())


class Length(NamedTuple):
    """The rule that the longer answer is the better one, or the shorter."""

    longer: bool

    @classmethod
    def learnt(cls, lengths_GK: np.ndarray, pairs: Pairs) -> "Length":
        """Whichever agrees with more of these pairs."""
        return cls(bool(pairs.hits(lengths_GK).mean() >= 0.5))

    def scores(self, lengths_GK: np.ndarray) -> np.ndarray:
        """What the rule says of answers of these lengths, [G, K]."""
        return np.asarray(lengths_GK, np.float64) * (1 if self.longer else -1)

    def __str__(self) -> str:
        return "the longer answer is better" if self.longer else "the shorter answer is better"


class Judgement(NamedTuple):
    """Of held-out pairs.

    Attributes:
      accuracy: the share in which the better answer has the higher reward; by_length: in which `rule` finds it; gain:
        by how much the first is larger, pair by pair.
    """

    pairs: int
    accuracy: Estimate
    by_length: Estimate
    gain: Estimate
    rule: Length
    calibration: Calibration


def judge(rewards_GK: np.ndarray, lengths_GK: np.ndarray, pairs: Pairs, rule: Length) -> Judgement:
    """The rewards of answers of these lengths, against a rule that was learnt elsewhere."""
    hits, rule_hits = pairs.hits(rewards_GK), pairs.hits(rule.scores(lengths_GK))
    estimates = (estimate(values, pairs) for values in (hits, rule_hits, hits - rule_hits))
    differences = pairs.differences(rewards_GK)
    return Judgement(len(hits), *estimates, rule, calibration(differences, np.zeros(len(hits))))


def draw_reliability(found: Calibration, path: Path) -> None:
    """Draws how often the preferred answer is the better one, by how sure the reward is of it, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5), layout="constrained")
    FigureCanvasAgg(figure)  # drawn in memory: no display, no global state
    axes = figure.subplots()
    axes.plot((0.5, 1), (0.5, 1), color="0.7", linestyle="--", label="perfect")
    counts, confidences, accuracies = (np.array(values) for values in zip(*found.bins, strict=True))
    axes.plot(confidences, accuracies, color="C3", label="reward model")
    axes.scatter(confidences, accuracies, s=20 + 300 * counts / counts.sum(), color="C3")
    axes.set(xlabel="probability that it gives", ylabel="share in which it is right", xlim=(0.48, 1.02), ylim=(0, 1.02))
    axes.set_title(f"{found.pairs:,} pairs, calibration error {found.error:.3f}")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=120)
