"""Our tokenizers as files that others read: those of a Hugging Face folder, and those of OpenAI's GPT-1."""

import json
from pathlib import Path
from typing import Any

from gpt_jax.disk import write_atomically
from gpt_jax.errors import UserError
from gpt_jax.text.huggingface import HuggingFaceTokenizer, vocabulary_of
from gpt_jax.text.openai_gpt import FINE_TUNING_PIECES, OPENAI_FILES, UNKNOWN, OpenAIGPTTokenizer
from gpt_jax.text.sentencepiece import SentencePieceTokenizer
from gpt_jax.text.sentencepiece_json import sentencepiece_document
from gpt_jax.text.symbols import AppendedSymbols
from gpt_jax.text.tokenizer import Tokenizer
from gpt_jax.text.tokenizer_json import added_token


def save_huggingface(tokenizer: Tokenizer, folder: str | Path) -> None:
    """Writes the tokenizer files of a Hugging Face folder; `open_tokenizer(folder)` gives the same ids.

    openai-gpt: vocab.json, merges.txt and tokenizer_config.json. `transformers` reads them, but its own pipeline is not
        OpenAI's (no ftfy, no spaCy, accents lost), so most texts get other ids there than here.
    huggingface: tokenizer.json and tokenizer_config.json (names of the symbols, chat template).
    sentencepiece (BPE): the same two files, which give the ids of our own tokenizer for every text without U+2581 (that
        is a space to the library) and without the spelling of a special symbol (which `transformers` looks for).

    `transformers` 5 opens all of this with `AutoTokenizer`, except a vocabulary that is not Qwen's beside a config.json
    of model_type "qwen2": there it insists on Qwen's way of cutting text; use `PreTrainedTokenizerFast` instead.

    UserError: a unigram SentencePiece model, which no tokenizer.json follows exactly.
    """
    folder = Path(folder)
    base, appended = _parts(tokenizer)
    if isinstance(base, OpenAIGPTTokenizer):
        _write_openai_gpt(base, appended, folder)
    elif isinstance(base, HuggingFaceTokenizer):
        _write_document(base.document, dict(base.symbol_names), base.chat_template, appended, folder)
    elif isinstance(base, SentencePieceTokenizer):
        document, names = sentencepiece_document(base.model_file()[1], "This tokenizer")
        _write_document(document, names | _own_symbols(base, document), None, appended, folder)
    else:
        raise UserError(f"A tokenizer of kind {base.kind!r} has no Hugging Face form.")


def save_openai_files(tokenizer: Tokenizer, folder: str | Path) -> None:
    """Writes encoder_bpe_40000.json and vocab_40000.bpe, from which `OpenAIGPTTokenizer.from_files` gives the same.

    Appended symbols are left out: OpenAI's fine-tuning code appends them itself when it has read these files.

    UserError: the tokenizer is not of the kind openai-gpt.
    """
    base, _ = _parts(tokenizer)
    if not isinstance(base, OpenAIGPTTokenizer):
        raise UserError(
            f"A tokenizer of kind {base.kind!r} has no form as OpenAI's GPT-1 files ({', '.join(OPENAI_FILES)}); "
            "expected the kind 'openai-gpt'. Write the weights without a tokenizer: --config.tokenizer.include=False."
        )
    pieces, merges = (Path(folder) / name for name in OPENAI_FILES)
    _write_json(pieces, base.vocabulary)
    _write_merges(merges, base)


def _parts(tokenizer: Tokenizer) -> tuple[Tokenizer, tuple[str, ...]]:
    """The tokenizer without appended symbols, and those."""
    return (tokenizer.base, tokenizer.appended) if isinstance(tokenizer, AppendedSymbols) else (tokenizer, ())


def _write_openai_gpt(tokenizer: OpenAIGPTTokenizer, appended: tuple[str, ...], folder: Path) -> None:
    pieces = {FINE_TUNING_PIECES[name]: tokenizer.vocab_size + place for place, name in enumerate(appended)}
    _write_json(folder / "vocab.json", tokenizer.vocabulary | pieces)
    _write_merges(folder / "merges.txt", tokenizer)
    config: dict[str, Any] = {"tokenizer_class": "OpenAIGPTTokenizer", "unk_token": UNKNOWN}
    _write_json(folder / "tokenizer_config.json", config | ({"extra_special_tokens": list(pieces)} if pieces else {}))


def _write_merges(path: Path, tokenizer: OpenAIGPTTokenizer) -> None:
    merges = "".join(f"{left} {right}\n" for left, right in tokenizer.merges)
    write_atomically(path, f"#version: 0.2\n{merges}".encode())


def _write_document(
    document: dict[str, Any],
    names: dict[str, str],
    chat_template: str | None,
    appended: tuple[str, ...],
    folder: Path,
) -> None:
    """tokenizer.json with the symbols `appended` behind it, and what `transformers` has to know besides."""
    vocabulary = vocabulary_of(document)
    size = max(vocabulary.values()) + 1
    contents = {name: _free_name(f"<|{name}|>", vocabulary) for name in appended}
    tokens = [added_token(size + place, content) for place, content in enumerate(contents.values())]
    known = {token["content"] for token in document["added_tokens"]}
    tokens += [added_token(vocabulary[content], content) for content in {*names.values()} - known]
    tokens = sorted([*document["added_tokens"], *tokens], key=lambda token: token["id"])
    names |= {f"{name}_token": content for name, content in contents.items()}
    standard = {name: names[name] for name in ("bos_token", "eos_token", "pad_token") if name in names}
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        **standard,
        "extra_special_tokens": {name: content for name, content in names.items() if name not in standard},
    }
    if chat_template is not None:
        config["chat_template"] = chat_template
    _write_json(folder / "tokenizer.json", {**document, "added_tokens": tokens})
    _write_json(folder / "tokenizer_config.json", config)


def _own_symbols(tokenizer: SentencePieceTokenizer, document: dict[str, Any]) -> dict[str, str]:
    contents = {id: content for content, id in vocabulary_of(document).items()}
    ids = {name: getattr(tokenizer.specials, name) for name in FINE_TUNING_PIECES}
    return {f"{name}_token": contents[id] for name, id in ids.items()}


def _free_name(name: str, vocabulary: dict[str, int]) -> str:
    while name in vocabulary:
        name = f"<{name}>"
    return name


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_atomically(path, json.dumps(content, ensure_ascii=False, indent=1).encode())
