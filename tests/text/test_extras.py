"""A package that is missing is named with the command that brings it."""

import sys

import pytest
from vocabularies import small_byte_level, small_llama, small_openai_gpt

from gpt_jax.errors import UserError
from gpt_jax.extras import require
from gpt_jax.text.huggingface import HuggingFaceTokenizer
from gpt_jax.text.imported import open_tokenizer


def test_a_package_that_is_there_is_returned():
    assert require("json.decoder", "any") is sys.modules["json.decoder"]


def test_a_missing_package_is_named_with_the_command_that_brings_it():
    words = r"'no_such_package'.*pip install -e \"\.\[some\]\".*pip install \"gpt_jax\[some\]\""
    with pytest.raises(UserError, match=words):
        require("no_such_package.inner", "some")


def test_a_package_that_is_broken_inside_keeps_its_traceback(tmp_path, monkeypatch):
    (tmp_path / "broken_package.py").write_text("import no_such_dependency")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        require("broken_package", "some")


def test_each_kind_asks_for_its_own_extra(tmp_path, monkeypatch):
    for module in ("tokenizers", "gguf", "ftfy", "spacy", "google.protobuf"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=r"gpt_jax\[huggingface\]"):
        HuggingFaceTokenizer.from_json(small_byte_level()[2], {"eos_token": "<|endoftext|>"})
    with pytest.raises(UserError, match=r"gpt_jax\[gpt1\]"):
        open_tokenizer(small_openai_gpt(tmp_path))
    (tmp_path / "tokenizer.model").write_bytes(small_llama())
    with pytest.raises(UserError, match=r"'google.protobuf'.*gpt_jax\[huggingface\]"):
        open_tokenizer(tmp_path / "tokenizer.model")
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(UserError, match=r"gpt_jax\[gguf\]"):
        open_tokenizer(tmp_path / "x.gguf")
