"""What a pretrained model says of a task that it never learnt: an example as texts whose likelihood is the answer.

The heuristics are those of the GPT-1 paper (Radford et al. 2018, section 5, "Zero-shot Behaviors"; Figure 2, right):

cola             the mean log-probability of the sentence's tokens; what lies above a threshold is acceptable
sst2             "very" is appended, and "positive" compared with "negative" as the word that follows
race, and any    the mean log-probability of each answer's tokens after document and question
multiple choice
winograd         the pronoun is replaced by each candidate; the mean log-probability of the rest of the sentence

What the paper leaves open and we chose: every text follows the symbol that the model saw before a text (its beginning
of text, else the end of text between documents), and that symbol is nobody's target; CoLA's threshold is the one with
the best Matthews correlation on training rows, or without such rows the median of the scored sentences, which looks at
no label; a word of several tokens is as likely as all of them together, so "positive" and "negative" need not be single
tokens; document, question and answer are joined by spaces.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from gpt_jax.errors import UserError
from gpt_jax.tasks.examples import Classification, Example, Inputs, MultipleChoice, Substitution
from gpt_jax.tasks.task import Task
from gpt_jax.text.tokenizer import Tokenizer

_NO_SPACE_BEFORE = tuple(".,;:!?)")


@dataclass(frozen=True)
class Candidate:
    """A text of which `continuation` is scored, given `context` (maybe empty).

    The space between them belongs to the continuation, as it does to the word in most vocabularies.
    """

    context: str
    continuation: str


@dataclass(frozen=True)
class Heuristic:
    """How a model that only predicts text answers a task.

    description: for reports.
    candidates: an example's inputs -> its candidates, in the order of the task's labels or the example's answers; a
        single one where the answer is whether its score lies above a threshold.
    per_token: whether candidates are compared by the mean log-probability of their tokens; else by the sum.
    """

    description: str
    candidates: Callable[[Inputs], tuple[Candidate, ...]]
    per_token: bool = True

    def scores(self, log_probabilities: np.ndarray, prompts: "Prompts") -> list[np.ndarray]:
        """Of each example, float64 [candidates], from the summed log-probabilities of all continuations."""
        values = np.asarray(log_probabilities, np.float64)
        values = values / prompts.scored_tokens if self.per_token else values
        return np.split(values, np.cumsum(prompts.candidates)[:-1])


def heuristic_of(task: Task) -> Heuristic:
    """UserError: there is none for `task`."""
    heuristic = _BY_NAME.get(task.name) or _BY_KIND.get(task.kind)
    if heuristic is None:
        raise UserError(
            f"{task.name}: no heuristic makes a pretrained model answer it. There is one for {', '.join(_BY_NAME)}, "
            f"winograd and every multiple-choice task; for the others fine-tune: configs/finetune.py:{task.name}."
        )
    return heuristic


# --- candidates


def _whole_text(inputs: Classification) -> tuple[Candidate, ...]:
    return (Candidate("", inputs.text),)


def _one_of_two_words(inputs: Classification) -> tuple[Candidate, ...]:
    return tuple(_candidate(f"{inputs.text} very", word) for word in ("negative", "positive"))


def _each_answer(inputs: MultipleChoice) -> tuple[Candidate, ...]:
    asked = f"{inputs.context} {inputs.question}".rstrip()
    return tuple(_candidate(asked, answer) for answer in inputs.answers)


def _rest_after_each_option(inputs: Substitution) -> tuple[Candidate, ...]:
    return tuple(_candidate(option, inputs.continuation) for option in inputs.options)


def _candidate(context: str, continuation: str) -> Candidate:
    return Candidate(context, continuation if continuation.startswith(_NO_SPACE_BEFORE) else f" {continuation}")


_BY_NAME = {
    "cola": Heuristic("mean log-probability of the sentence's tokens, against a threshold", _whole_text),
    "sst2": Heuristic('after the text and "very": "positive" or "negative"', _one_of_two_words, per_token=False),
}
_BY_KIND = {
    "multiple_choice": Heuristic("mean log-probability of the answer's tokens after the question", _each_answer),
    "substitution": Heuristic(
        "mean log-probability of what follows, the pronoun replaced by each candidate", _rest_after_each_option
    ),
}

# --- tokens


@dataclass(frozen=True)
class Prompts:
    """The candidates of many examples as token sequences.

    sequences: int32 [length] each, those of an example side by side; the first token is predicted by none.
    starts: int [len(sequences)], where in its sequence each continuation begins, at least 1.
    candidates: int [examples], how many sequences each example has.
    truncated: examples of which tokens were cut.
    """

    sequences: list[np.ndarray]
    starts: np.ndarray
    candidates: np.ndarray
    truncated: int

    @property
    def scored_tokens(self) -> np.ndarray:
        """int [len(sequences)], the tokens of each continuation."""
        return np.array([len(sequence) for sequence in self.sequences]) - self.starts


def encode_prompts(
    examples: Sequence[Example], heuristic: Heuristic, tokenizer: Tokenizer, context_length: int
) -> Prompts:
    """All candidates of all `examples`, each of at most `context_length` tokens.

    A candidate is tokenized as one text, as training saw texts; its continuation begins at the first token that the
    context alone does not have, so a token that spells characters of both is scored. Of an example's candidates with
    the same context all begin at the same token. Where they are too long, the first tokens are cut, as many of each, so
    that they still follow the same.

    UserError: a continuation that the tokenizer has no token for, with its example's place.
    """
    specials = tokenizer.specials
    first = specials.end_of_text if specials.beginning_of_text is None else specials.beginning_of_text
    groups = [heuristic.candidates(example.inputs) for example in examples]
    texts = [text for group in groups for one in group for text in (one.context, one.context + one.continuation)]
    texts = list(dict.fromkeys(texts))  # what many candidates share is encoded once
    ids_of = dict(zip(texts, tokenizer.encode_batch(texts), strict=True))
    sequences, starts, truncated = [], [], 0
    for example, group in zip(examples, groups, strict=True):
        whole = [ids_of[one.context + one.continuation] for one in group]
        shared: dict[str, int] = {}
        for one, ids in zip(group, whole, strict=True):
            length = _shared_prefix(ids_of[one.context], ids)
            shared[one.context] = min(length, shared.get(one.context, length))
            if len(ids) == length:
                raise UserError(
                    f"{example.place}: the tokenizer has no token for {one.continuation[:40]!r}. Correct or delete the "
                    "example."
                )
        too_many = max(1 + len(ids) - context_length for ids in whole)
        truncated += too_many > 0
        for one, ids in zip(group, whole, strict=True):
            start = 1 + shared[one.context]
            own_excess = 1 + len(ids) - context_length
            cut = max(own_excess, min(too_many, start - 1), 0)  # one token stays before the continuation, if it can
            sequences.append(np.concatenate([[first], ids]).astype(np.int32)[cut:])
            starts.append(max(start - cut, 1))
    return Prompts(sequences, np.array(starts), np.array([len(group) for group in groups]), truncated)


def _shared_prefix(first: np.ndarray, second: np.ndarray) -> int:
    """How many tokens both begin with."""
    length = min(len(first), len(second))
    differ = np.flatnonzero(first[:length] != second[:length])
    return int(differ[0]) if len(differ) else length


# --- answers


def likeliest(scores: Sequence[np.ndarray]) -> np.ndarray:
    """int [examples]: the candidate with the highest score, the first of equal ones."""
    return np.array([own.argmax() for own in scores])


def above(scores: Sequence[np.ndarray], threshold: float) -> np.ndarray:
    """int [examples]: 1 where the only candidate's score lies above `threshold`."""
    return (np.concatenate(scores) > threshold).astype(int)


def best_threshold(scores: Sequence[np.ndarray], targets: Sequence[int]) -> float:
    """The threshold with the best Matthews correlation: halfway between two neighbouring scores.

    The lowest of equally good ones. Where none does better than chance, one below all scores.
    """
    values = np.concatenate(scores)
    order = np.argsort(values, kind="stable")
    values, positive = values[order], np.asarray(targets)[order].astype(float)
    cuts = np.flatnonzero(values[:-1] < values[1:])  # what stands behind a cut is called 1
    missed = np.cumsum(positive)[cuts]
    rejected = cuts + 1.0 - missed
    hits, alarms = positive.sum() - missed, (1 - positive).sum() - rejected
    product = (hits + alarms) * (hits + missed) * (rejected + alarms) * (rejected + missed)
    matthews = (hits * rejected - alarms * missed) / np.sqrt(np.maximum(product, 1))
    if not len(cuts) or matthews.max() <= 0:
        return float(np.nextafter(values[0], -np.inf))
    best = cuts[matthews.argmax()]
    return float((values[best] + values[best + 1]) / 2)
