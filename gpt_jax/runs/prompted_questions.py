"""Prompted tasks as questions: zero, one or a few solved examples, then the one that is asked (GPT-3 §2)."""

import dataclasses
import math
import re
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from gpt_jax.data.rows import Row as TableRow
from gpt_jax.data.sources import open_source
from gpt_jax.data.tables import open_table
from gpt_jax.disk import digest
from gpt_jax.errors import UserError
from gpt_jax.inference.sampling import Sampling
from gpt_jax.parallel.runtime import announce
from gpt_jax.runs.problem import sample
from gpt_jax.runs.questions import Answers, Asked, Row, batches_of
from gpt_jax.runs.workdir import cache_folder
from gpt_jax.tasks.answers import mean_of, require_packages, score_choices, score_texts
from gpt_jax.tasks.generated import GENERATED, generated_rows
from gpt_jax.tasks.pairs import encode_pairs
from gpt_jax.tasks.prompting import PromptedExample, read_prompts
from gpt_jax.tasks.shots import MOST_SHOTS, Room, draw_shots
from gpt_jax.tasks.templates import PromptedTask, Template, prompted_tasks, with_fields
from gpt_jax.text.tokenizer import Tokenizer

NORMALISATION_IN_WORDS = {
    "none": "log-probability",
    "token": "log-probability a token",
    "character": "log-probability a character",
    "answer_context": "log-probability less that after {!r}",
}


@dataclasses.dataclass(frozen=True)
class PromptedQuestion:
    """A task with some number of shots; see `questions.Question`.

    own: the examples as they are asked without shots; prompted: with them.
    shots_used: int [examples].
    tables: split -> fingerprint.
    """

    name: str
    task: str
    split: str
    shots: int | str
    template: Template
    own: list[PromptedExample]
    prompted: list[PromptedExample]
    shots_used: np.ndarray
    tables: dict[str, str]

    @property
    def metrics(self) -> tuple[str, ...]:
        """The template's; `Answers.metrics` of choices also has the accuracy by the other normalisations."""
        return self.template.metrics

    @property
    def examples(self) -> int:
        """How many are asked."""
        return len(self.own)

    @property
    def described(self) -> str:
        """How, in words."""
        template = self.template
        if template.kind == "free_form":
            said = f"best of {template.beams} beams, log-probability / tokens^{template.length_penalty:g}"
            exactly = ", compared exactly" if template.comparison == "exact" else ""
            return (said if template.beams else "greedy continuation") + exactly
        if template.kind == "cloze":
            return "the word is the greedy continuation"
        words = NORMALISATION_IN_WORDS[template.normalisation].format(template.answer_context)
        return words + (" of the same continuation" if template.kind == "partial_evaluation" else " of each choice")

    @property
    def chance(self) -> float | None:
        """Of choices, the accuracy of guessing."""
        if self.metrics[0] != "accuracy" or self.template.kind == "cloze":
            return None
        return float(np.mean([len(one.gold) / len(one.continuations) for one in self.own]))

    @property
    def facts(self) -> Row:
        """For data.json."""
        return {
            "tables": self.tables,
            "examples": self.examples,
            "shots": float(np.mean(self.shots_used)),
            "template": dataclasses.asdict(self.template),
        }

    def batches(self, size: int) -> int:
        """How many batches of `size` texts it takes."""
        if self.template.kind == "free_form":
            return batches_of(self.examples, size)
        pairs = self._pairs  # equal ones are scored once
        count = batches_of(len(set(pairs)), size)
        if self.template.normalisation == "answer_context" and self.template.kind != "cloze":
            count += batches_of(len({continuation for _, continuation in pairs}), size)
        return count

    def answer(self, model: Asked) -> Answers:
        """What `model` says."""
        if self.template.kind == "free_form":
            return self._written(model)
        pairs = self._pairs
        values, greedy, tokens = _scored(model, pairs)
        if self.template.kind == "cloze":
            return self._cloze(values, greedy)
        unconditional = None
        if self.template.normalisation == "answer_context":
            contexts = [(self.template.answer_context, continuation) for _, continuation in pairs]
            unconditional = _scored(model, contexts)[0]
        return self._chosen(values, tokens, unconditional)

    def _chosen(self, values: np.ndarray, tokens: np.ndarray, unconditional: np.ndarray | None) -> Answers:
        ends = np.cumsum([len(one.continuations) for one in self.own])[:-1]
        characters = np.array([len(c.strip()) for one in self.own for c in one.continuations])
        compared = {"none": values, "token": values / tokens, "character": values / characters}
        if unconditional is not None:
            compared["answer_context"] = values - unconditional
        chosen = {name: np.array([x.argmax() for x in np.split(own, ends)]) for name, own in compared.items()}
        metrics = score_choices(self.metrics, self.own, chosen[self.template.normalisation])
        for name, own in chosen.items():
            metrics[f"accuracy_{name}"] = score_choices(["accuracy"], self.own, own)["accuracy"]
        rows = []
        parts = zip(*(np.split(x, ends) for x in (values, tokens, compared[self.template.normalisation])), strict=True)
        for one, label, (sums, counts, scores) in zip(
            self.own, chosen[self.template.normalisation], parts, strict=True
        ):
            wrong = [score for number, score in enumerate(scores) if number not in one.gold]
            rows.append(
                {
                    "id": one.id,
                    "prediction": int(label),
                    "gold": list(one.gold),
                    "right": bool(label in one.gold),
                    "margin": float(max(wrong) - scores[list(one.gold)].max()) if wrong else None,
                    "log_probabilities": sums.tolist(),
                    "tokens": counts.tolist(),
                    "contexts": list(dict.fromkeys(one.contexts)),
                    "continuations": list(dict.fromkeys(one.continuations)),
                }
            )
        return Answers(metrics, rows, self._facts)

    def _cloze(self, values: np.ndarray, greedy: np.ndarray) -> Answers:
        nats = mean_of("nats", -values)
        perplexity = math.exp(min(nats["nats"], 700))
        error = nats["nats_stderr"] and perplexity * nats["nats_stderr"]
        known = mean_of("accuracy", greedy.astype(float)) | {"perplexity": perplexity, "perplexity_stderr": error}
        metrics = {name: value for name, value in known.items() if name.removesuffix("_stderr") in self.metrics}
        rows = [
            {
                "id": one.id,
                "right": bool(hit),
                "margin": float(-value),
                "log_probabilities": [float(value)],
                "contexts": list(one.contexts),
                "continuations": list(one.continuations),
            }
            for one, value, hit in zip(self.own, values, greedy, strict=True)
        ]
        return Answers(metrics, rows, self._facts)

    def _written(self, model: Asked) -> Answers:
        template = self.template
        prompts = [one.contexts[0] for one in self.prompted]
        if template.beams:
            texts = model.best_beams(
                prompts, template.beams, template.max_new_tokens, template.length_penalty, stop=template.stop
            )
        else:
            greedy = Sampling(template.max_new_tokens, temperature=0.0)
            texts = model.continuations(prompts, greedy, stop=template.stop)
        texts = [_first_sentences(text, template.sentences).strip() for text in texts]
        metrics, own = score_texts(template.metrics, self.own, texts, template.comparison)
        rows = [
            {
                "id": one.id,
                "prediction": text,
                "answers": list(one.answers),
                "right": bool(score == 1),
                "margin": float(1 - score),
                "contexts": list(one.contexts),
            }
            for one, text, score in zip(self.own, texts, own, strict=True)
        ]
        return Answers(metrics, rows, self._facts)

    @property
    def _pairs(self) -> list[tuple[str, str]]:
        """Every candidate of every example."""
        return [pair for one in self.prompted for pair in zip(one.contexts, one.continuations, strict=True)]

    @property
    def _facts(self) -> Row:
        return {"shots_used": float(np.mean(self.shots_used))} if self.shots == "most" else {}


def _scored(model: Asked, pairs: Sequence[tuple[str, str]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each pair the log-probability, whether it is greedy, and its tokens; equal ones are scored once."""
    unique = list(dict.fromkeys(pairs))
    encoded = encode_pairs(unique, model.tokenizer, model.config.context_length)
    values, greedy = model.log_probabilities(model.texts(encoded.sequences, encoded.starts))
    place = {pair: number for number, pair in enumerate(unique)}
    index = np.array([place[pair] for pair in pairs])
    return values[index], greedy[index], encoded.scored_tokens[index]


def _first_sentences(text: str, count: int) -> str:
    return " ".join(re.split(r"(?<=[.!?])\s+", text.strip())[:count]) if count else text


# --- from tables to questions


def open_prompted(data: ConfigDict, tokenizer: Tokenizer, context_length: int, seed: int) -> list[PromptedQuestion]:
    """One task, asked with each of `data.shots`.

    Raises:
      UserError: for what is wrong with the task, its template, its tables or the shots.
    """
    own_fields = {name: value for name, value in data.template.items() if value is not None}
    task = with_fields(prompted_tasks()[data.task], own_fields)
    for layout in task.layouts:
        require_packages(layout.metrics)
    rows, tables = _tables(task, data, seed)
    questions = []
    for shots in _wanted_shots(data):
        asked, template = read_prompts(rows["test"], task, shots=shots != 0)
        if template.kind == "free_form" and template.max_new_tokens >= context_length:
            raise UserError(
                f"data.template.max_new_tokens={template.max_new_tokens}: that leaves no room for the prompts of "
                f"{task.name} in a context of {context_length:,}. Ask for fewer."
            )
        numbers = sample(list(range(len(asked))), data.max_test)
        own = [asked[number] for number in numbers]
        asked_in_pool = template.shots_from == "test" and "train" not in rows
        pool = []
        if shots:
            pool = asked if asked_in_pool else _train_prompts(rows, task)
        solved = _solved(pool, numbers, shots, asked_in_pool, seed, task.name)
        room = Room(task.name, own, template, tokenizer, context_length)
        solved = room.as_many_as_fit(solved) if shots == "most" else solved
        prefixes, used = room.prefixes(solved), np.array([len(each) for each in solved])
        if cut := room.too_long(prefixes):
            announce(
                f"{task.name}: of {cut:,} of {len(own):,} examples the first tokens are cut to fit the context of "
                f"{context_length:,}"
            )
        prompted = [one.after(prefix) for one, prefix in zip(own, prefixes, strict=True)]
        name = "test" if len(data.shots) == 1 else f"test/{shots}-shot"
        questions.append(PromptedQuestion(name, task.name, "test", shots, template, own, prompted, used, tables))
    return questions


def _solved(
    pool: list[PromptedExample], numbers: list[int], shots: int | str, asked_in_pool: bool, seed: int, task: str
) -> list[list[str]]:
    """The solved examples of each asked one. UserError: there are not as many."""
    there = len(pool) - asked_in_pool
    if shots != 0 and there < (1 if shots == "most" else shots):
        raise UserError(f"data.shots={shots}: {task} has {there} examples to draw from. Ask for fewer, or name others.")
    most = MOST_SHOTS if shots == "most" else shots
    drawn = (
        draw_shots(number, most, len(pool), seed=seed, task=task, asked_in_pool=asked_in_pool) for number in numbers
    )
    return [[pool[index].solved for index in own] for own in drawn] if shots else [[] for _ in numbers]


def _wanted_shots(data: ConfigDict) -> list[int | str]:
    found: list[int | str] = []
    for shots in data.shots:
        if str(shots) != "most" and not (str(shots).isdigit()):
            raise UserError(f"data.shots={shots!r}: expected a number of examples from 0 on, or most.")
        found.append("most" if str(shots) == "most" else int(shots))
    if not found or len(set(found)) < len(found):
        raise UserError(f"data.shots={tuple(data.shots)}: expected some numbers, each once.")
    return found


def _tables(task: PromptedTask, data: ConfigDict, seed: int) -> tuple[dict[str, list], dict[str, str]]:
    """The rows of each split, and their fingerprints."""
    if data.test is None and task.name in GENERATED:
        return _generated(task.name, data, seed)
    if data.test is None:
        raise UserError(
            f"data.test is missing: the address of the examples of {task.name}, file:PATH (csv, tsv, jsonl, json), "
            "race:FOLDER or tfds:NAME#SPLIT."
        )
    rows, tables = {}, {}
    for split in ("test", "train"):
        if data[split]:
            table = open_table(data[split], encoding=data.encoding, skip_bad_rows=data.skip_bad_rows)
            rows[split] = list(table)
            tables[split] = table.fingerprint
    return rows, tables


def _generated(name: str, data: ConfigDict, seed: int) -> tuple[dict[str, list], dict[str, str]]:
    words: list[str] = []
    if name.startswith("words"):
        source = open_source(data.words, validation_fraction=0.0, cache_dir=cache_folder(None))
        words = [word for piece in source.pieces("train") for word in re.findall(r"[A-Za-z]+", piece.text)]
    rows = {}
    for split in ("test", "train"):
        found = generated_rows(name, words, seed, split)
        rows[split] = [TableRow(fields, f"{name}, {split} {n}", n) for n, fields in enumerate(found)]
    return rows, {split: digest([row.fields for row in own]) for split, own in rows.items()}


def _train_prompts(rows: dict[str, list], task: PromptedTask) -> list[PromptedExample]:
    if "train" not in rows:
        raise UserError(
            f"data.train is missing: {task.name} takes its solved examples from there. Name the training split, "
            "file:PATH, or say --config.data.template.shots_from=test to draw them from the asked rows, all but the "
            "one that is asked."
        )
    return read_prompts(rows["train"], task, shots=True)[0]
