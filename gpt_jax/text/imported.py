"""The one door for tokenizers that others made, and for our own: `open_tokenizer(path)`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpt_jax.errors import UserError
from gpt_jax.text.bpe_files import (
    checked_merges,
    checked_vocabulary,
    read_json,
    read_merges,
    read_text,
    read_vocabulary,
)
from gpt_jax.text.huggingface import HuggingFaceTokenizer, vocabulary_of
from gpt_jax.text.openai_gpt import NEWLINE, OPENAI_FILES, WORD_END, OpenAIGPTTokenizer
from gpt_jax.text.sentencepiece_json import sentencepiece_document
from gpt_jax.text.tokenizer import FINE_TUNING_SYMBOLS, MANIFEST, Tokenizer, load_tokenizer
from gpt_jax.text.tokenizer_json import GPT2, added_token, beginning_with, byte_alphabet, byte_level

# What ends a text in vocabularies that do not say so, the most usual first.
_ENDS_OF_TEXT = ("<|endoftext|>", "</s>", "<|end_of_text|>", "<|eot_id|>", "<|im_end|>", "<eos>", "[EOS]", "[SEP]")
_GPT2_END = "<|endoftext|>"
_CONFIGS = ("tokenizer_config.json", "special_tokens_map.json", "config.json", "generation_config.json")

# Pairs of file names, pieces and merges, in the order in which they are looked for.
_GPT2_FILES = ("encoder.json", "vocab.bpe")
_HUGGING_FACE_FILES = ("vocab.json", "merges.txt")
_NAME_ANOTHER = "Name the one that the model was trained with: --config.tokenizer.path=FOLDER-OR-FILE."


def open_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer at `path`, whoever made it.

    Understood are, in this order:
      - a GGUF file, a tokenizer.json file, a SentencePiece model file (*.model);
      - a folder that our `save` wrote;
      - a folder with GPT-1's encoder_bpe_40000.json and vocab_40000.bpe, or Hugging Face's of an openai-gpt model: both
        give OpenAI's own text pipeline (`gpt_jax.text.openai_gpt`), also if a tokenizer.json is there, because that
        one computes other ids than those the model was trained on;
      - a Hugging Face folder with tokenizer.json;
      - a folder with GPT-2's encoder.json and vocab.bpe, or vocab.json and merges.txt;
      - a folder with a SentencePiece model, tokenizer.model, as Llama 1 and 2 came.

    UserError: nothing of that is there, something is damaged, or a package is missing that reads it.
    """
    path = Path(path)
    if path.is_file():
        return _open_file(path)
    if not path.is_dir():
        raise UserError(f"There is no tokenizer at {path}: no such file or folder. {_NAME_ANOTHER}")
    configs = _configs(path)
    if (path / MANIFEST).is_file() and "kind" in (manifest := _json_object(path / MANIFEST)) and "file" in manifest:
        return load_tokenizer(path)
    if _has(path, OPENAI_FILES):
        return OpenAIGPTTokenizer.from_files(*_paths(path, OPENAI_FILES))
    if _has(path, _HUGGING_FACE_FILES) and _is_openai_gpt(configs, path / "vocab.json"):
        return OpenAIGPTTokenizer.from_files(*_paths(path, _HUGGING_FACE_FILES))
    if (path / MANIFEST).is_file():
        if _claims_openai_gpt(configs):
            return _openai_gpt_from_json(path / MANIFEST)
        return _from_tokenizer_json(path / MANIFEST, configs)
    for names in (_GPT2_FILES, _HUGGING_FACE_FILES):
        if _has(path, names):
            return gpt2_tokenizer(*_paths(path, names))
    if (path / "tokenizer.model").is_file():
        return _from_sentencepiece(path / "tokenizer.model", configs)
    pairs = ", ".join(" with ".join(pair) for pair in (OPENAI_FILES, _GPT2_FILES, _HUGGING_FACE_FILES))
    raise UserError(
        f"There is no tokenizer in {path}. Looked for: tokenizer.json, {pairs}, tokenizer.model. Found: "
        f"{', '.join(sorted(file.name for file in path.iterdir())[:12]) or 'nothing'}. {_NAME_ANOTHER}"
    )


def gpt2_tokenizer(vocabulary: Path, merges: Path) -> HuggingFaceTokenizer:
    """GPT-2's byte-level BPE from `encoder.json` and `vocab.bpe`, as OpenAI published it. UserError: they are damaged.

    Also what other models took over with vocabularies of their own (GPT-3, OPT, ...), as long as text is cut in
    GPT-2's way; `<|endoftext|>` ends a text.
    """
    pieces = read_vocabulary(vocabulary)
    pairs = read_merges(merges, pieces)
    if lacking := [sign for sign in byte_alphabet() if sign not in pieces]:
        raise UserError(
            f"{vocabulary} is no byte-level vocabulary: it lacks {len(lacking)} of the 256 bytes ({lacking[0]!r}, ...)."
        )
    end = next((symbol for symbol in _ENDS_OF_TEXT if symbol in pieces), None)
    if end is None:
        raise UserError(f"{vocabulary} has no symbol that ends a text; looked for {', '.join(_ENDS_OF_TEXT)}.")
    document = byte_level(pieces, pairs, [added_token(pieces[end], end)], GPT2)
    return HuggingFaceTokenizer.from_json(document, {"eos_token": end, "bos_token": end})


def _open_file(path: Path) -> Tokenizer:
    with open(path, "rb") as file:
        start = file.read(4)
    if start == b"GGUF" or path.suffix == ".gguf":
        from gpt_jax.text.gguf import read_tokenizer

        return read_tokenizer(path)
    if path.suffix == ".model":
        return _from_sentencepiece(path, _configs(path.parent))
    if path.suffix != ".json":
        raise UserError(f"{path} is not a tokenizer: expected a folder, or a file *.gguf, tokenizer.json or *.model.")
    content = _json_object(path)
    if "kind" in content and "file" in content:
        return load_tokenizer(path.parent)
    return _from_tokenizer_json(path, _configs(path.parent))


def _from_tokenizer_json(path: Path, configs: Mapping[str, Any]) -> HuggingFaceTokenizer:
    document = _json_object(path)
    contents = {id: content for content, id in vocabulary_of(document, str(path)).items()}
    names = _symbol_names(configs, contents)
    if "eos_token" not in names:
        raise UserError(
            f"{path} does not say which symbol ends a text, and has none of {', '.join(_ENDS_OF_TEXT)}. Put a "
            'tokenizer_config.json with {"eos_token": "..."} beside it.'
        )
    if (begins := configs.get("tokenizer_config.json", {}).get("add_bos_token")) and "bos_token" in names:
        id = vocabulary_of(document, str(path))[names["bos_token"]]
        document = beginning_with(document, names["bos_token"], id)
    elif begins is False:
        document = {**document, "post_processor": None}
    return HuggingFaceTokenizer.from_json(document, names, _chat_template(path.parent, configs), where=str(path))


def _from_sentencepiece(path: Path, configs: Mapping[str, Any]) -> HuggingFaceTokenizer:
    document, names = sentencepiece_document(path.read_bytes(), str(path))
    contents = {id: content for content, id in vocabulary_of(document, str(path)).items()}
    names |= _symbol_names({"tokenizer_config.json": configs.get("tokenizer_config.json", {})}, contents)
    if "bos_token" in names and configs.get("tokenizer_config.json", {}).get("add_bos_token", True):
        id = vocabulary_of(document, str(path))[names["bos_token"]]
        document = beginning_with(document, names["bos_token"], id)
    return HuggingFaceTokenizer.from_json(document, names, _chat_template(path.parent, configs), where=str(path))


def _configs(folder: Path) -> dict[str, Any]:
    """{file name: its JSON object} of the configuration files that are there."""
    return {name: _json_object(folder / name) for name in _CONFIGS if (folder / name).is_file()}


def _symbol_names(configs: Mapping[str, Any], contents: Mapping[int, str]) -> dict[str, str]:
    """What the configuration files, the first to say so, call the end, the beginning and the padding of a text."""
    names = {}
    for name in ("eos_token", "bos_token", "pad_token"):
        for config in configs.values():
            if (content := _content(config.get(name))) is None:
                id = config.get(f"{name}_id")
                content = contents.get(id[0] if isinstance(id, list) and id else id if isinstance(id, int) else None)
            if content is not None:
                names[name] = content
                break
    for config in configs.values():  # what `save_huggingface` wrote
        if isinstance(own := config.get("extra_special_tokens"), dict):
            names |= {name: own[name] for name in map("{}_token".format, FINE_TUNING_SYMBOLS) if name in own}
    known = set(contents.values())
    if "eos_token" not in names and (end := next((end for end in _ENDS_OF_TEXT if end in known), None)):
        names["eos_token"] = end
    return {name: content for name, content in names.items() if name == "eos_token" or content in known}


def _content(symbol: Any) -> str | None:
    """The spelling of a symbol, which a configuration gives as text or as {"content": text, ...}."""
    symbol = symbol.get("content") if isinstance(symbol, dict) else symbol
    return symbol if isinstance(symbol, str) and symbol else None


def _chat_template(folder: Path, configs: Mapping[str, Any]) -> str | None:
    template = configs.get("tokenizer_config.json", {}).get("chat_template")
    if isinstance(template, list):  # several by name
        templates = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = templates.get("default") or next(iter(templates.values()), None)
    if template is None and (folder / "chat_template.jinja").is_file():
        template = read_text(folder / "chat_template.jinja")
    return template if isinstance(template, str) else None


def _claims_openai_gpt(configs: Mapping[str, Any]) -> bool:
    classes = str(configs.get("tokenizer_config.json", {}).get("tokenizer_class", ""))
    return configs.get("config.json", {}).get("model_type") == "openai-gpt" or classes.startswith("OpenAIGPT")


def _is_openai_gpt(configs: Mapping[str, Any], vocabulary: Path) -> bool:
    """Whether vocab.json is GPT-1's: as the configuration says, or else by its pieces (CLIP's end in "</w>" too)."""
    if _claims_openai_gpt(configs):
        return True
    if "model_type" in configs.get("config.json", {}):
        return False
    return NEWLINE in read_vocabulary(vocabulary)


def _openai_gpt_from_json(path: Path) -> OpenAIGPTTokenizer:
    model = _json_object(path).get("model", {})
    vocabulary = checked_vocabulary(model.get("vocab"), str(path))
    merges = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in model.get("merges", [])]
    return OpenAIGPTTokenizer(vocabulary, checked_merges(merges, vocabulary, str(path), WORD_END))


def _json_object(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a JSON object but a {type(content).__name__}. Fetch it again.")
    return content


def _has(folder: Path, names: tuple[str, str]) -> bool:
    return all((folder / name).is_file() for name in names)


def _paths(folder: Path, names: tuple[str, str]) -> list[Path]:
    return [folder / name for name in names]
