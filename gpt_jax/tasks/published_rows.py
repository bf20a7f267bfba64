"""Rows of published tables to the columns that the templates name, where a format string cannot say it.

Each function takes a row's fields and yields the fields of the examples that it holds: mostly one, of MultiRC and
ReCoRD a row an answer or a query. What a row lacks is a KeyError, and what has another shape a TypeError, ValueError or
AttributeError; `gpt_jax.tasks.prompting` makes a message of them.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from gpt_jax.text.detokenizers import penn_treebank

Fields = Mapping[str, Any]


def _last_word(row: Fields) -> Iterator[dict[str, Any]]:
    """LAMBADA's passages: the last word is asked for."""
    context, _, word = row["text"].strip().rpartition(" ")
    yield {"context": context, "word": word}


def _hellaswag(row: Fields) -> Iterator[dict[str, Any]]:
    """WikiHow's titles end as sentences do; other notes in brackets go."""

    def cleaned(text: str) -> str:
        return re.sub(r"\s+", " ", re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", "."))).strip()

    activity = cleaned(row["activity_label"])
    text = cleaned(row.get("ctx") or f"{row['ctx_a']} {row['ctx_b'][:1].upper()}{row['ctx_b'][1:]}")
    endings = [cleaned(ending) for ending in row["endings"]]
    yield {"activity": activity, "text": text, "endings": endings, "label": row["label"]}


def _arc(row: Fields) -> Iterator[dict[str, Any]]:
    """ARC and OpenBookQA: the release's question with its choices inside, or Hugging Face's columns."""
    question = row.get("question", row.get("question_stem"))
    choices = row["choices"] if isinstance(question, str) else question["choices"]
    if isinstance(choices, Mapping):
        texts, labels = choices["text"], choices["label"]
    else:
        texts, labels = [one["text"] for one in choices], [one["label"] for one in choices]
    stem = question if isinstance(question, str) else question["stem"]
    yield {"question": stem, "choices": list(texts), "gold": list(labels).index(row["answerKey"].strip())}


def _copa(row: Fields) -> Iterator[dict[str, Any]]:
    connective = {"cause": "because", "effect": "therefore"}[row["question"]]
    lowered = {name: row[name][:1].lower() + row[name][1:] for name in ("choice1", "choice2")}
    yield {"premise": row["premise"].strip().rstrip("."), "connective": connective, "label": row["label"]} | lowered


def _winograd(row: Fields) -> Iterator[dict[str, Any]]:
    """The pronoun gives way to each candidate, in the pronoun's case and its genitive."""
    text, start, pronoun = row["text"], int(row["pronoun_loc"]), row["pronoun"]
    before, after = text[:start], text[start + len(pronoun) :]

    def in_place(candidate: str) -> str:
        first, _, rest = candidate.partition(" ")
        if first in ("The", "A", "An", "My", "His", "Her", "Their") and before.strip() and before.rstrip()[-1] != ".":
            candidate = f"{first.lower()} {rest}"
        return before + candidate + ("'s" if pronoun.lower() in ("my", "his", "her", "its", "our", "their") else "")

    yield {"options": [in_place(o) for o in row["options"]], "label": row["label"]} | _rest(after)


def _winogrande(row: Fields) -> Iterator[dict[str, Any]]:
    before, blank, after = row["sentence"].partition("_")
    if not blank:
        raise ValueError("no _ in the sentence")
    options = [before + row["option1"], before + row["option2"]]
    yield {"options": options, "answer": row["answer"]} | _rest(after)


def _rest(after: str) -> dict[str, str]:
    """What follows a pronoun or a blank, close to it or not as the row has it: "Ann's wallet", "Ann was tall"."""
    return {"continuation": after.strip(), "_separator": " " if after[:1].isspace() else ""}


def _cbt(row: Fields) -> Iterator[dict[str, Any]]:
    """The choices are what follows XXXXX, with each candidate in its place; PTB's spaces are undone (GPT-2 §3.2)."""
    before, blank, after = row["question"].partition("XXXXX")
    if not blank:
        raise ValueError("no XXXXX in the question")
    context = penn_treebank(" ".join([*row["sentences"], before.strip()]))
    endings = [penn_treebank(f"{option.strip()} {after.strip()}") for option in row["options"]]
    yield {"context": context, "endings": endings, "gold": list(row["options"]).index(row["answer"])}


def _wsc(row: Fields) -> Iterator[dict[str, Any]]:
    """The pronoun stands between stars in the text."""
    spans = row.get("target", row)
    words = row["text"].split(" ")
    place, pronoun = int(spans["span2_index"]), spans["span2_text"]
    words[place] = words[place].replace(pronoun, f"*{pronoun}*", 1)
    yield {"text": " ".join(words), "pronoun": pronoun, "noun": spans["span1_text"], "label": row["label"]}


def _multirc(row: Fields) -> Iterator[dict[str, Any]]:
    """A row an answer; Hugging Face's flat rows as they are."""
    if "paragraph" in row:
        index = row.get("idx")
        own = f"{index['paragraph']}/{index['question']}" if isinstance(index, Mapping) else row["question"]
        yield {**row, "question_id": own}
        return
    for number, question in enumerate(row["passage"]["questions"]):
        for answer in question["answers"]:
            yield {
                "paragraph": row["passage"]["text"],
                "question": question["question"],
                "answer": answer["text"],
                "label": answer["label"],
                "question_id": f"{row.get('idx')}/{number}",
            }


def _record(row: Fields) -> Iterator[dict[str, Any]]:
    """A row a query; right is every entity that is called as one of the answers."""
    if isinstance(row["passage"], Mapping):
        text = row["passage"]["text"]
        names = [text[entity["start"] : entity["end"] + 1] for entity in row["passage"]["entities"]]
        queries = [(query["query"], [answer["text"] for answer in query["answers"]]) for query in row["qas"]]
    else:
        text, names, queries = row["passage"], row["entities"], [(row["query"], row["answers"])]
    names = list(dict.fromkeys(names))
    for query, answers in queries:
        yield {
            "passage": re.sub(r"\n?@highlight\n", "\n- ", text),
            "statements": [query.replace("@placeholder", name) for name in names],
            "gold": [number for number, name in enumerate(names) if name in set(answers)],
        }


def _squad(row: Fields) -> Iterator[dict[str, Any]]:
    answers = row["answers"]
    yield {**row, "answers": list(answers["text"]) if isinstance(answers, Mapping) else answers}


READERS: Mapping[str, Callable[[Fields], Iterator[dict[str, Any]]]] = {
    "last_word": _last_word,
    "hellaswag": _hellaswag,
    "arc": _arc,
    "copa": _copa,
    "winograd": _winograd,
    "winogrande": _winogrande,
    "cbt": _cbt,
    "wsc": _wsc,
    "multirc": _multirc,
    "record": _record,
    "squad": _squad,
}
