"""Documents out of files: what a line or a text file gives, and that nothing depends on how they are cut."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_jax.data.curation.reading import (
    BrokenDocument,
    Format,
    InputFile,
    Raw,
    chunks,
    input_files,
    parse,
    parse_chunk,
    raw_documents,
)
from gpt_jax.errors import UserError

WEB = InputFile("web", "a.jsonl")
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)


def parsed(line: dict | bytes, form: Format = Format(), file: InputFile = WEB):  # noqa: B008
    data = line if isinstance(line, bytes) else json.dumps(line).encode()
    return parse(Raw(file, 1, data), form)


def test_a_document_is_called_by_its_own_id_behind_its_source():
    one = parsed({"id": "x", "text": "t"})
    assert (one.document.id, one.document.source, one.document.text, one.named_by_text) == ("web:x", "web", "t", False)
    assert parsed({"id": 17, "text": "t"}).document.id == "web:17"
    assert parsed({"url": "u", "text": "t"}, Format(id_field="url")).document.id == "web:u"


@given(TEXTS, TEXTS)
def test_without_an_id_it_goes_by_its_text_alone(one, other):
    ids = [parsed({"text": text, "page": n}).document.id for n, text in enumerate((one, one, other))]
    assert ids[0] == ids[1] and (ids[0] == ids[2]) == (one == other)
    assert parsed({"id": "x", "text": one}, Format(id_field=None)).document.id == ids[0]
    assert parsed(one.encode(), file=InputFile("web", "b.txt")).document.id == (
        ids[0] if not one.startswith("\ufeff") else parsed({"text": one[1:]}).document.id
    )


def test_a_text_file_is_one_document_in_its_encoding():
    one = parsed("Café\n".encode("latin-1"), file=InputFile("web", "a.txt.gz", "latin-1"))
    assert one.document.text == "Café\n" and one.named_by_text
    with pytest.raises(BrokenDocument, match="not utf-8 text: byte 0xE9 at offset 3"):
        parsed("Café".encode("latin-1"), file=InputFile("web", "a.txt"))


@given(st.lists(TEXTS, max_size=20), st.integers(1, 3000))
def test_every_line_comes_once_and_in_order_however_chunks_are_cut(tmp_path_factory, texts, size):
    path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    path.write_bytes("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts).encode())
    raws = list(raw_documents(InputFile("web", str(path)), Format()))
    cut = list(chunks(raws, size))
    assert [raw for chunk in cut for raw in chunk] == raws
    assert [one.document.text for chunk in cut for one in parse_chunk(chunk, Format())[0]] == texts
    assert [raw.line for raw in raws] == list(range(1, len(texts) + 1))


@given(st.lists(st.integers(0, 40), min_size=1, max_size=30), st.integers(1, 40), st.booleans())
def test_of_a_line_over_the_limit_nothing_is_kept_but_its_size(tmp_path_factory, lengths, limit, ended):
    path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    path.write_bytes(b"\n".join(b"x" * length for length in lengths) + b"\n" * ended)
    raws = {raw.line: raw for raw in raw_documents(InputFile("web", str(path)), Format(max_bytes=limit))}
    for number, length in enumerate(lengths, 1):
        if length == 0:
            assert number not in raws
        elif length <= limit:
            assert raws[number].data == b"x" * length and not raws[number].problem
        else:
            assert (raws[number].data, raws[number].problem) == (b"", "too_long")
            assert raws[number].message == f"{length} bytes"


def test_a_line_longer_than_many_blocks_is_read_whole(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "x" * (5 * 2**20)}) + '\n{"text": "y"}')
    one, other = raw_documents(InputFile("web", str(tmp_path / "a.jsonl")), Format())
    assert len(one.data) == 5 * 2**20 + 12 and other.line == 2


def test_a_file_on_another_machine_is_left_to_beam(tmp_path):
    with pytest.raises(UserError, match="runner=beam"):
        input_files("sources, web", "web", "file:gs://bucket/*.jsonl")
    with pytest.raises(UserError, match="sources, web: .*that is a folder"):
        input_files("sources, web", "web", f"file:{tmp_path}")
