"""The texts of evaluation sets, which training text must not hold."""

import json
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

from gpt_jax.data.curation.reading import BrokenDocument, Format, InputFile, input_files, parse, raw_documents
from gpt_jax.errors import UserError

_FORMAT = Format(id_field=None, max_bytes=2**30, on_error="skip")  # so that a problem is told here, in our words


def evaluation_texts(address: str | None, fields: Sequence[str]) -> list[str]:
    """Each example as one text: its `fields` (by default all text in it, at any depth), a line each.

    Of a .jsonl file each line is an example, of a .txt file the whole. None where `address` is empty.
    UserError: a file that cannot be read or parsed, or an example without text in these fields.
    """
    if not address:
        return []
    if "://" in address:
        raise UserError(f"contamination.sets={address}: evaluation sets are read on this machine. Copy the files here.")
    texts = []
    for file in input_files("contamination.sets", "evaluation", address):
        for raw in raw_documents(file, _FORMAT):
            texts.append(unicodedata.normalize("NFC", _text_of(file, raw, fields)))  # as clean-up leaves the documents
    if not texts:
        raise UserError(
            f"contamination.sets={address}: there is no example in it. Correct the address or leave it out."
        )
    return texts


def _text_of(file: InputFile, raw, fields: Sequence[str]) -> str:
    try:
        if raw.problem:
            raise BrokenDocument(f"{raw.message.rstrip('.')}.")
        if file.kind == "txt":
            return parse(raw, _FORMAT).document.text
        record = json.loads(raw.data)
        if not isinstance(record, dict):
            raise BrokenDocument(f"an object was expected, and there is {type(record).__name__}.")
        if absent := [name for name in fields if name not in record]:
            raise BrokenDocument(
                f"no field {absent[0]!r} (found: {', '.join(map(repr, record))}). Correct "
                "--config.contamination.fields, or leave it empty for all text of an example."
            )
        text = "\n".join(_strings([record[name] for name in fields] if fields else record))
        if not text.strip():
            raise BrokenDocument("no text in it.")
        return text
    except (ValueError, RecursionError, BrokenDocument) as error:
        raise UserError(
            f"{raw.place}, of the evaluation set contamination.sets, cannot be used: {error} Nothing was done; correct "
            "the file or leave it out."
        ) from None


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _strings(one)
