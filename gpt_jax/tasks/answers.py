"""Prompted examples' predictions to scores, with their standard errors.

Free-form answers are compared as SQuAD compares them (Rajpurkar et al. 2016): in small letters, without punctuation,
articles and extra spaces; or exactly, where the template says so.
"""

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from gpt_jax.extras import require
from gpt_jax.tasks.metrics import compute_metrics
from gpt_jax.tasks.prompting import PromptedExample
from gpt_jax.tasks.templates import Comparison

# metric -> the package that computes it, and the extra that brings it.
PACKAGES = {
    "bleu": ("sacrebleu", "lm-eval"),
    **dict.fromkeys(("rouge1", "rouge2", "rougeL"), ("rouge_score.rouge_scorer", "lm-eval")),
    **dict.fromkeys(("macro_f1", "binary_f1"), ("sklearn.metrics", "finetune")),
}


def require_packages(metrics: Sequence[str]) -> None:
    """UserError: a package that one of `metrics` needs is not installed."""
    for metric in metrics:
        if metric in PACKAGES:
            require(*PACKAGES[metric])


def normalised(text: str) -> str:
    """`text` as answers are compared."""
    text = "".join(sign for sign in text.lower() if sign not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


_FORMS: Mapping[Comparison, Callable[[str], str]] = {"normalised": normalised, "exact": str.strip}


def exact_match(prediction: str, answer: str, comparison: Comparison = "normalised") -> float:
    """1 if both are the same, once normalised; or as they stand but for spaces around them."""
    form = _FORMS[comparison]
    return float(form(prediction) == form(answer))


def word_f1(prediction: str, answer: str, comparison: Comparison = "normalised") -> float:
    """The harmonic mean of the shares of words that both have."""
    form = _FORMS[comparison]
    first, second = form(prediction).split(), form(answer).split()
    shared = (Counter(first) & Counter(second)).total()
    if not shared:
        return float(first == second)
    return 2 * shared / (len(first) + len(second))


def score_choices(
    metrics: Sequence[str], examples: Sequence[PromptedExample], predictions: np.ndarray
) -> dict[str, float]:
    """metric -> score of the chosen candidates, int [examples], each mean with its `_stderr`."""
    right = np.array([number in one.gold for one, number in zip(examples, predictions, strict=True)], float)
    targets = np.array([one.gold[0] for one in examples])
    scores: dict[str, float] = {}
    for metric in metrics:
        if metric == "accuracy":
            scores |= mean_of("accuracy", right)
        elif metric == "group_exact_match":
            groups: dict[str, list[float]] = {}
            for one, value in zip(examples, right, strict=True):
                groups.setdefault(one.group, []).append(value)
            scores |= mean_of(metric, np.array([min(own) for own in groups.values()]))
        else:
            labels = max(len(one.continuations) for one in examples)
            # Macro-averaged over as many classes as there are, or of the class "yes" alone.
            scores[metric] = compute_metrics(["f1"], predictions, targets, num_labels=labels)["f1"]
    return scores


def score_texts(
    metrics: Sequence[str],
    examples: Sequence[PromptedExample],
    predictions: Sequence[str],
    comparison: Comparison = "normalised",
) -> tuple[dict[str, float], np.ndarray]:
    """metric -> score of what was written, and each example's own by the first metric; of several answers the best.

    comparison: how exact_match and f1 compare; see `Template`.
    """
    scores: dict[str, float] = {}
    own = None
    for metric in metrics:
        values = np.array(
            [_best(metric, p, one.answers, comparison) for p, one in zip(predictions, examples, strict=True)]
        )
        own = values if own is None else own
        if metric == "bleu":
            scores[metric] = _corpus_bleu(predictions, [one.answers for one in examples])
        else:
            scores |= mean_of(metric, values)
    return scores, own


def mean_of(metric: str, values: np.ndarray) -> dict[str, float]:
    """The mean of `values` and its standard error, None for a single one."""
    error = float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None
    return {metric: float(np.mean(values)), f"{metric}_stderr": error}


def _best(metric: str, prediction: str, answers: Sequence[str], comparison: Comparison) -> float:
    if metric == "bleu":
        return require(*PACKAGES[metric]).sentence_bleu(prediction, list(answers)).score / 100
    if metric.startswith("rouge"):
        scorer = require(*PACKAGES[metric]).RougeScorer([metric], use_stemmer=True)
        return max(scorer.score(answer, prediction)[metric].fmeasure for answer in answers)
    compare = exact_match if metric == "exact_match" else word_f1
    return max(compare(prediction, answer, comparison) for answer in answers)


def _corpus_bleu(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> float:
    most = max(map(len, answers))
    references = [[own[number] if number < len(own) else None for own in answers] for number in range(most)]
    return require(*PACKAGES["bleu"]).corpus_bleu(list(predictions), references).score / 100
