"""The tasks made of the books: the same everywhere, balanced, and no text of one split in another."""

from collections import Counter

import pytest

from gpt_jax.data import book_tasks
from gpt_jax.data.book_tasks import BOOK_TASKS, SPLITS
from gpt_jax.data.sources import open_source
from gpt_jax.data.tables import open_table
from gpt_jax.errors import UserError


@pytest.fixture(scope="module")
def tables():
    return {(task, split): list(open_table(f"{task}#{split}")) for task in BOOK_TASKS for split in SPLITS}


def texts_of(row):
    values = (row.fields[name] for name in ("text", "first", "second", "context") if name in row.fields)
    return [*values, *row.fields.get("answers", ())]


@pytest.mark.parametrize("task", BOOK_TASKS)
def test_there_are_thousands_of_rows_to_train_on_and_hundreds_to_evaluate(tables, task):
    assert len(tables[task, "train"]) == (2000 if task == "books-choice" else 4000)
    assert all(len(tables[task, split]) >= 200 for split in ("valid", "test"))
    for split in SPLITS:
        assert len({row.fields["id"] for row in tables[task, split]}) == len(tables[task, split])
        assert tables[task, split][6].place == f"{task}#{split}, row 7"


@pytest.mark.parametrize("task", BOOK_TASKS)
def test_labels_are_balanced(tables, task):
    for split in SPLITS:
        counts = Counter(row.fields["label"] for row in tables[task, split])
        assert len(counts) == {"books-author": 5, "books-choice": 4}.get(task, 2)
        assert max(counts.values()) / len(tables[task, split]) < 1.1 / len(counts) + 0.03


def test_the_rows_are_the_same_on_every_machine():
    fingerprints = {}
    for task in BOOK_TASKS:
        table = open_table(f"{task}#valid")
        list(table)
        fingerprints[task] = table.fingerprint[:8]
    assert fingerprints == {
        "books-author": "7fc3425c",
        "books-next": "53b49ec2",
        "books-same": "42759299",
        "books-choice": "98b9b815",
    }


@pytest.mark.parametrize("task", BOOK_TASKS)
def test_no_text_stands_in_two_splits(tables, task):
    texts = {split: {text for row in tables[task, split] for text in texts_of(row)} for split in SPLITS}
    for one, other in (("train", "valid"), ("train", "test"), ("valid", "test")):
        both = texts[one] & texts[other]
        assert not [text for text in both if len(text.split()) > 40], both  # refrains aside


def test_evaluation_texts_are_in_what_pretraining_holds_out(tables, tmp_path):
    source = open_source("books", cache_dir=tmp_path)
    held_out, documents = {"train": "", "valid": ""}, {}
    for split in held_out:
        documents[split] = book_tasks._VERSE_NUMBER.sub("", "".join(piece.text for piece in source.pieces(split)))
        documents[split] = " ".join(documents[split].split())
    for task in BOOK_TASKS:
        for split in SPLITS:
            document = documents["train" if split == "train" else "valid"]
            for row in tables[task, split][:50]:
                assert all(text in document for text in texts_of(row))


def test_passages_are_runs_of_whole_sentences(tables):
    for row in tables["books-author", "train"]:
        book = row.fields["id"].rpartition("-")[0]
        assert 16 <= len(row.fields["text"].split()) <= 32 and "\n" not in row.fields["text"]
        assert row.fields["text"] in " ".join(book_tasks._sentences(book, "train"))
    complete = sum(row.fields["text"][-1] in ".!?\"')" for row in tables["books-author", "train"])
    assert complete > 0.85 * 4000  # the others end with a paragraph: headings, verses, lines of a play


def position(document, text):
    place = document.find(text)
    assert place >= 0
    return place, place + len(text)


def test_the_label_says_whether_the_second_passage_follows(tables):
    sentences = {}
    for row in tables["books-next", "valid"] + tables["books-choice", "valid"]:
        book = row.fields["id"].rpartition("-")[0]
        document = sentences.setdefault(book, " ".join(book_tasks._sentences(book, "valid")))
        if "answers" in row.fields:
            end = position(document, row.fields["context"])[1]
            follows = [document.startswith(answer, end + 1) for answer in row.fields["answers"]]
            assert follows == [number == row.fields["label"] for number in range(4)]
        else:
            end = position(document, row.fields["first"])[1]
            assert document.startswith(row.fields["second"], end + 1) == (row.fields["label"] == "follows")
            assert (row.fields["second"] in document) == (row.fields["label"] == "follows")


def test_the_label_says_whether_two_passages_are_of_one_book(tables):
    for row in tables["books-same", "test"]:
        book = row.fields["id"].rpartition("-")[0]
        document = " ".join(book_tasks._sentences(book, "test"))
        assert row.fields["first"] in document and row.fields["first"] != row.fields["second"]
        assert (row.fields["second"] in document) == (row.fields["label"] == "same")


def test_an_author_is_the_one_of_the_book(tables):
    assert all(row.fields["id"].startswith(row.fields["label"]) for row in tables["books-author", "train"])


def test_an_unknown_split_is_answered_with_the_known_ones():
    for address in ("books-author", "books-author#dev"):
        with pytest.raises(UserError, match="expected books-author# with one of train, valid, test"):
            list(open_table(address))
