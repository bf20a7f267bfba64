"""Tables yield every row once, with its place; what cannot be read is named, or skipped and counted."""

import csv
import gzip
import json
import lzma

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_jax.data.tables import open_table, split_held_out
from gpt_jax.errors import UserError

RACE = {
    "article": "A fox ran.",
    "questions": ["Who ran?", "What did it do?"],
    "options": [["a dog", "a fox", "a cat", "a hen"], ["ran", "sat"]],
    "answers": ["B", "A"],
    "id": "high1.txt",
}


def write(path, content, encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return path


def fields(table):
    return [row.fields for row in table]


def rows_of(tmp_path, name, content, **settings):
    return fields(open_table(f"file:{write(tmp_path / name, content)}", **settings))


def problem(tmp_path, name, content, **settings):
    """The message for a file that cannot be read, which must name it."""
    with pytest.raises(UserError) as error:
        rows_of(tmp_path, name, content, **settings)
    assert name in str(error.value)
    return str(error.value)


# --- formats


def test_the_four_formats_hold_the_same_rows(tmp_path):
    expected = [{"text": "one, two", "label": "a"}, {"text": "drei\u2028é", "label": "b"}]
    contents = {
        "a.csv": 'text,label\n"one, two",a\ndrei\u2028é,b\n',
        "a.tsv": "text\tlabel\none, two\ta\ndrei\u2028é\tb",
        "a.jsonl": "\n".join(json.dumps(row, ensure_ascii=False) for row in expected) + "\n\n",
        "a.json": json.dumps(expected, indent=1),
    }
    fingerprints = set()
    for name, content in contents.items():
        table = open_table(f"file:{write(tmp_path / name, content)}")
        assert fields(table) == expected and table.skipped == 0
        fingerprints.add(table.fingerprint)
    assert len(fingerprints) == 1


cells = st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), max_size=12)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(cells.filter(str.strip), cells), min_size=1, max_size=8))
def test_csv_files_come_back_with_their_quotes_commas_and_newlines(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("first", "second"), *rows])
    assert fields(open_table(f"file:{path}")) == [{"first": first, "second": second} for first, second in rows]


def test_a_row_over_several_lines_stands_at_its_first(tmp_path):
    path = write(tmp_path / "a.csv", 'text,label\n"one\ntwo",a\nthree,b\n')
    assert [(row.fields["text"], row.place) for row in open_table(f"file:{path}")] == [
        ("one\ntwo", f"{path}, line 2"),
        ("three", f"{path}, line 4"),
    ]


def test_quotation_marks_in_tsv_files_are_text_unless_asked(tmp_path):
    content = 'text\tlabel\n"Stop," he said\t1\n"whole"\t0\n'
    assert [row["text"] for row in rows_of(tmp_path, "a.tsv", content)] == ['"Stop," he said', '"whole"']
    assert rows_of(tmp_path, "a.tsv", 'text\tlabel\n"a\tb"\t0\n', quotes=True) == [{"text": "a\tb", "label": "0"}]


def test_files_without_a_header_take_the_one_that_is_given(tmp_path):
    header = ("source", "label", "mark", "sentence")
    assert rows_of(tmp_path, "train.tsv", "gj04\t0\t*\tHim ran.\n", header=header) == [
        dict(zip(header, ("gj04", "0", "*", "Him ran."), strict=True))
    ]


def test_byte_order_marks_windows_line_ends_and_blank_lines_are_no_content(tmp_path):
    for name in ("a.csv", "a.tsv"):
        separator = "," if name == "a.csv" else "\t"
        content = f"\ufefftext{separator}label\r\n\r\na{separator}1\r\n{separator}\r\n".encode()
        assert rows_of(tmp_path, name, content) == [{"text": "a", "label": "1"}]
    assert rows_of(tmp_path, "a.jsonl", '\ufeff{"a": 1}\r\n') == [{"a": 1}]


def test_other_encodings_are_read_when_named_and_their_names_are_proposed(tmp_path):
    content = "InputStoryid,InputSentence1\n1,Café\n".encode("latin-1")
    assert rows_of(tmp_path, "story.csv", content, encoding="latin-1")[0]["InputSentence1"] == "Café"
    assert "data.encoding=latin-1" in problem(tmp_path, "story.csv", content)
    with pytest.raises(UserError, match="data.encoding='klingon'"):
        rows_of(tmp_path, "story.csv", content, encoding="klingon")


def test_compressed_files_are_the_same_table(tmp_path):
    content = b"text,label\na,1\nb,0\n"
    plain = open_table(f"file:{write(tmp_path / 'a.csv', content)}")
    for suffix, compress in (
        (".gz", gzip.compress),
        (".xz", lzma.compress),
        (".zst", zstandard.ZstdCompressor().compress),
    ):
        packed = open_table(f"file:{write(tmp_path / f'a.csv{suffix}', compress(content))}")
        assert fields(packed) == fields(plain) and packed.fingerprint == plain.fingerprint


def test_several_files_are_one_table_in_order(tmp_path):
    for name in "ba":
        write(tmp_path / f"{name}.csv", f"text\n{name}\n")
    assert [row["text"] for row in fields(open_table(f"file:{tmp_path}/b.csv, {tmp_path}/*.csv"))] == ["b", "a"]


def test_a_fingerprint_follows_the_rows_and_their_order_only(tmp_path):
    def fingerprint(name, content):
        table = open_table(f"file:{write(tmp_path / name, content)}")
        assert table.fingerprint is None
        list(table)
        return table.fingerprint

    first = fingerprint("a.csv", "text\na\nb\n")
    assert first == fingerprint("folder/other.csv", 'text\r\n"a"\r\nb')
    assert len({first, fingerprint("c.csv", "text\nb\na\n"), fingerprint("d.csv", "word\na\nb\n")}) == 3


def test_a_table_can_be_read_twice(tmp_path):
    path = write(tmp_path / "a.csv", "text,label\na,1\nb\n")
    table = open_table(f"file:{path}", skip_bad_rows=True)
    assert fields(table) == fields(table) and table.skipped == 1


# --- RACE


def test_a_race_folder_is_a_row_a_question_in_the_order_of_the_files(tmp_path):
    for name in ("10.txt", "2.txt"):
        write(tmp_path / "RACE/train/high" / name, json.dumps(RACE | {"id": f"high{name}"}) + "\n")
    rows = list(open_table(f"race:{tmp_path}/RACE/train"))
    assert [row.fields["id"] for row in rows] == [f"high{n}.txt/{k}" for n in (2, 10) for k in (1, 2)]
    assert rows[1].fields == {
        "article": "A fox ran.",
        "question": "What did it do?",
        "options": ["ran", "sat"],
        "answer": "A",
        "id": "high2.txt/2",
    }
    assert rows[1].place == f"{tmp_path}/RACE/train/high/2.txt, question 2"


def test_broken_race_files_are_named_or_skipped(tmp_path):
    write(tmp_path / "1.txt", json.dumps(RACE))
    write(tmp_path / "2.txt", json.dumps(RACE)[:-9])
    with pytest.raises(UserError, match="2.txt: not JSON"):
        list(open_table(f"race:{tmp_path}"))
    write(tmp_path / "2.txt", json.dumps(RACE | {"answers": ["A"]}))
    with pytest.raises(UserError, match="2.txt: not a passage of RACE"):
        list(open_table(f"race:{tmp_path}"))
    table = open_table(f"race:{tmp_path}", skip_bad_rows=True)
    assert len(list(table)) == 2 and table.skipped == 1
    with pytest.raises(UserError, match="no .txt files there .*RACE/train/middle"):
        open_table(f"race:{tmp_path}/nothing")


# --- what a user can get wrong


def test_broken_lines_are_named_with_their_number(tmp_path):
    assert "a.jsonl, line 3: not JSON" in problem(tmp_path, "a.jsonl", '{"a": 1}\n\n{"a": 2\n{"a": 3}\n')
    assert "b.jsonl, line 2: a JSON list" in problem(tmp_path, "b.jsonl", '{"a": 1}\n["a"]\n')
    assert "c.json, item 2: a JSON str" in problem(tmp_path, "c.json", '[{"a": 1}, "b"]')
    assert "d.csv, line 3: 1 cells, and there are 2 columns (a, b)" in problem(tmp_path, "d.csv", "a,b\n1,2\n3\n")
    assert "e.tsv, line 2: 3 cells" in problem(tmp_path, "e.tsv", "a\tb\n1\t2\t3\n")
    assert "f.csv, line 3: not a row of csv" in problem(tmp_path, "f.csv", 'a,b\n1,2\n"3,4\n5,6\n')
    assert "g.csv, line 2: not a row of csv" in problem(tmp_path, "g.csv", 'a,b\n"1"x,2\n')


def test_broken_lines_are_skipped_and_counted_when_asked(tmp_path):
    contents = {
        "a.jsonl": '{"a": "1"}\n{"a": \n["x"]\n{"a": "2"}\n',
        "a.json": '[{"a": "1"}, 3, null, {"a": "2"}]',
        "a.csv": 'a\n1\n"x"y\n1,2\n2\n',
        "a.tsv": "a\n1\nx\ty\n\t\t9\n2\n",
    }
    for name, content in contents.items():
        table = open_table(f"file:{write(tmp_path / name, content)}", skip_bad_rows=True)
        assert [row["a"] for row in fields(table)] == ["1", "2"], name
        assert table.skipped == 2


def test_json_files_that_are_no_list_are_told_what_is_expected(tmp_path):
    assert "rename it to .jsonl" in problem(tmp_path, "a.json", '{"a": 1}\n{"a": 2}\n')
    assert "a JSON dict. Expected a list" in problem(tmp_path, "b.json", '{"a": 1}')
    assert "not JSON" in problem(tmp_path, "c.json", "[{]")


def test_tables_without_rows_are_refused(tmp_path):
    for name, content in (("a.csv", "text,label\n"), ("b.tsv", ""), ("c.jsonl", "\n"), ("d.json", "[]")):
        assert "there are no rows in it" in problem(tmp_path, name, content)
    assert "but 1 broken ones" in problem(tmp_path, "e.csv", "a\n1,2\n", skip_bad_rows=True)


def test_a_header_that_names_a_column_twice_is_refused(tmp_path):
    assert "'a' stands there more than once" in problem(tmp_path, "a.csv", "a,b,a \n1,2,3\n")


def test_unknown_addresses_and_files_are_answered_with_the_known_ones(tmp_path):
    for address in ("books", "s3:a.csv", "file:", "books-nothing#train"):
        with pytest.raises(UserError, match="Expected file:PATH .*books-author, books-next, books-same, books-choice"):
            open_table(address)
    with pytest.raises(UserError, match="no such file .*texts/\\*.csv"):
        open_table(f"file:{tmp_path}/none.csv")
    with pytest.raises(UserError, match="is a folder. Name its files.*/\\*.csv"):
        open_table(f"file:{tmp_path}")
    assert ".csv, .tsv, .jsonl, .json" in problem(tmp_path, "a.xlsx", "")


def test_damaged_and_binary_files_are_named(tmp_path):
    assert "NUL byte" in problem(tmp_path, "a.csv", b"a,b\n1,\0\n")
    assert "cannot be decompressed" in problem(tmp_path, "a.csv.gz", b"a,b\n")


# --- held out


def test_examples_of_one_text_are_held_out_together_whatever_their_order():
    items = [(f"text {number // 3}", number) for number in range(900)]
    train, valid = split_held_out(items, lambda item: item[0], 0.2)
    assert sorted(train + valid) == sorted(items) and 0.1 < len(valid) / 900 < 0.3
    assert not {text for text, _ in train} & {text for text, _ in valid}
    assert set(valid) == set(split_held_out(items[::-1], lambda item: item[0], 0.2)[1])
    for fraction in (0.0, 1.0):
        with pytest.raises(UserError, match=f"data.validation_fraction={fraction}"):
            split_held_out(items, lambda item: item[0], fraction)


# --- TensorFlow Datasets


@pytest.fixture(scope="module")
def tfds(tmp_path_factory):
    """TFDS with a data folder of its own and a small data set of labels, lists and missing classes."""
    tfds = pytest.importorskip("tensorflow_datasets")
    patch = pytest.MonkeyPatch()
    patch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path_factory.mktemp("tfds")))

    class TinyTable(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.FeaturesDict(
                {
                    "premise": tfds.features.Text(),
                    "label": tfds.features.ClassLabel(names=["yes", "no"]),
                    "endings": tfds.features.Sequence(tfds.features.Text()),
                    "score": np.float32,
                }
            )
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(4), "validation": self._generate_examples(2)}

        def _generate_examples(self, count):
            for number in range(count):
                yield (
                    number,
                    {
                        "premise": f"é {number}",
                        "label": (0, 1, -1)[number % 3],
                        "endings": ["a", f"b {number}"],
                        "score": 0.5,
                    },
                )

    yield tfds
    patch.undo()


def test_tfds_rows_are_plain_values_with_classes_by_name(tfds):
    rows = list(open_table("tfds:tiny_table#train"))
    by_premise = {row.fields["premise"]: row.fields for row in rows}
    assert sorted(by_premise) == ["é 0", "é 1", "é 2", "é 3"]
    assert by_premise["é 1"] == {"premise": "é 1", "label": "no", "endings": ["a", "b 1"], "score": 0.5}
    assert by_premise["é 2"]["label"] == "-1"
    assert rows[0].place == "tfds:tiny_table#train, example 0"
    assert len(list(open_table("tfds:tiny_table#train[:50%]"))) == 2
    assert len(list(open_table("tfds:tiny_table#train,tiny_table#validation"))) == 6


def test_an_unknown_tfds_split_is_answered_with_the_known_ones(tfds):
    for split in ("", "#test"):
        with pytest.raises(UserError, match="tfds:tiny_table#SPLIT.*train, validation"):
            list(open_table(f"tfds:tiny_table{split}"))
    with pytest.raises(UserError, match="knows no such data set"):
        list(open_table("tfds:no_such_thing_at_all#train"))
