"""GPT-3's quality filter: a classifier of good text against raw crawl, and a keep rule that lets some of the rest in.

Brown et al. 2020, appendix A: logistic regression on hashed counts of lower-cased words, positives the curated corpora,
negatives unfiltered crawl; a document is kept where pareto(9) > 1 - score. The draw is a function of the seed and the
document's id alone, so it does not depend on order, sharding or machine. Classes weigh the same, however many texts
each has: a score says which of the two a text looks like, not how rare good text is in the crawl.
"""

import hashlib
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from gpt_jax.data.curation.documents import Decision
from gpt_jax.disk import write_atomically
from gpt_jax.errors import UserError
from gpt_jax.extras import require
from gpt_jax.progress import say, task_progress

FORMAT = 1
FEATURES = 2**18  # as Spark's HashingTF, which GPT-3 used
ALPHA = 9.0  # GPT-3
HELD_OUT = 0.1  # of the texts, to measure with
INVERSE_PENALTY = 100.0  # scikit-learn's C; less of it leaves the scores of rows of length 1 too near 0.5


@dataclass(frozen=True)
class Classifier:
    """weights: float64 [FEATURES]; bias; held_out: how it does on texts that it did not learn from, see `train`."""

    weights: np.ndarray
    bias: float
    held_out: dict[str, float]

    def score(self, texts: Sequence[str]) -> np.ndarray:
        """The probability that each text is of the positives, float64 [len(texts)]. UserError: no scikit-learn."""
        return self.probabilities(_features(texts, len(self.weights))) if len(texts) else np.zeros(0)

    def probabilities(self, features) -> np.ndarray:
        """As `score`, of hashed features: a sparse matrix [n, FEATURES]."""
        return 1 / (1 + np.exp(-(features @ self.weights + self.bias)))

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 of what decides the scores."""
        return hashlib.sha256(self.weights.tobytes() + np.float64(self.bias).tobytes()).hexdigest()

    def save(self, path: Path) -> None:
        """Writes an .npz of plain arrays, whole or not at all."""
        buffer = io.BytesIO()
        held_out = json.dumps(self.held_out)
        np.savez_compressed(buffer, format=FORMAT, weights=self.weights, bias=self.bias, held_out=held_out)
        write_atomically(Path(path), buffer.getvalue())


def load(path: Path) -> Classifier:
    """The classifier that `save` wrote. UserError: no such file, or another kind of file."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if arrays["format"] != FORMAT:
                raise UserError(
                    f"The quality classifier {path} has format {arrays['format']}, and this version of gpt_jax reads "
                    f"{FORMAT}. Train it again."
                )
            return Classifier(arrays["weights"], float(arrays["bias"]), json.loads(str(arrays["held_out"])))
    except FileNotFoundError:
        raise UserError(f"There is no quality classifier {path}. Train one, or correct the path.") from None
    except (OSError, ValueError, KeyError, EOFError, AttributeError, BadZipFile) as error:
        raise UserError(
            f"{path} is not a quality classifier that gpt_jax saved, or only a part of one ({error}). Give the .npz "
            "file that it wrote, or train it again."
        ) from error


def train(positives: Sequence[str], negatives: Sequence[str], *, seed: int) -> Classifier:
    """A classifier of `positives` (score near 1) against `negatives` (near 0), without those drawn to be held out.

    A tenth of the texts is not learnt from; on it are measured `precision`, `recall` and `f1` of score > 0.5, with
    `positives` and `negatives`, their numbers. That is honest only where the parts of one book or site are one text.
    UserError: a class without text to learn from; no scikit-learn.
    """
    texts = [*positives, *negatives]
    labels = np.repeat([True, False], [len(positives), len(negatives)])
    held_out = np.array([uniform(seed, text) < HELD_OUT for text in texts], bool)
    for label, name in ((True, "positives"), (False, "negatives")):
        if not (labels[~held_out] == label).any():
            raise UserError(
                f"The quality classifier learns to tell good texts (positives) from raw crawl (negatives), and got "
                f"{len(positives):,} positives and {len(negatives):,} negatives: too few {name}. Give it a source of "
                "them with some hundred texts or more, or a trained classifier, or leave this stage out."
            )
    features = _features(task_progress("Hashing the words of texts", texts, len(texts)), FEATURES)
    say("Fitting the quality classifier")
    regression = require("sklearn.linear_model", "data").LogisticRegression(
        C=INVERSE_PENALTY, class_weight="balanced", solver="liblinear", random_state=0
    )
    with require("threadpoolctl", "data").threadpool_limits(1, "blas"):  # or the last bits follow the number of cores
        regression.fit(features[~held_out], labels[~held_out])
    classifier = Classifier(regression.coef_[0], float(regression.intercept_[0]), {})
    return replace(classifier, held_out=agreement(classifier.probabilities(features[held_out]), labels[held_out]))


def agreement(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Precision, recall and F1 of score > 0.5 for the positives, and how many there are of each class."""
    found = scores > 0.5
    right = int((found & labels).sum())
    return {
        "positives": int(labels.sum()),
        "negatives": int((~labels).sum()),
        "precision": right / max(1, int(found.sum())),
        "recall": right / max(1, int(labels.sum())),
        "f1": 2 * right / max(1, int(found.sum() + labels.sum())),
    }


def keep(score: float, document_id: str, *, seed: int, alpha: float = ALPHA) -> Decision:
    """Kept where a draw of numpy's pareto(alpha) exceeds 1 - score: with probability (2 - score)^-alpha."""
    score = float(score)  # NumPy's would make NumPy's bool, which json does not write
    pareto = uniform(seed, document_id) ** (-1 / alpha) - 1
    kept = pareto > 1 - score
    numbers = {"score": score, "pareto": pareto, "needed": 1 - score}
    return Decision("quality_classifier", kept, "" if kept else "pareto", numbers)


def uniform(seed: int, document_id: str) -> float:
    """A number in (0, 1) that only the seed and the id decide, of 53 random bits."""
    digest = hashlib.blake2b(f"{seed}\0{document_id}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return ((int.from_bytes(digest, "little") >> 11) + 0.5) / 2**53


def _features(texts: Iterable[str], features: int):
    """Counts of lower-cased words, hashed into `features` columns, each row of length 1; scipy.sparse [n, features]."""
    vectorizer = require("sklearn.feature_extraction.text", "data").HashingVectorizer
    return vectorizer(analyzer=_words, n_features=features).transform(texts)


def _words(text: str) -> list[str]:
    return text.lower().encode("utf-8", "replace").decode().split()  # a lone surrogate cannot be hashed
