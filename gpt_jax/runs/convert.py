"""Conversion: any weights that this project reads, in; a folder that others, or we, read, out."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from gpt_jax import configuration
from gpt_jax.errors import UserError, did_you_mean
from gpt_jax.models import decoder
from gpt_jax.models.config import ModelConfig
from gpt_jax.parallel.mesh import make_mesh
from gpt_jax.parallel.runtime import announce
from gpt_jax.runs.pretrained import CHAT_TEMPLATE, Pretrained, open_pretrained, with_symbols
from gpt_jax.runs.workdir import environment
from gpt_jax.text.export import save_huggingface, save_openai_files
from gpt_jax.text.symbols import AppendedSymbols, missing_symbols, with_fine_tuning_symbols
from gpt_jax.text.tokenizer import Tokenizer
from gpt_jax.training.checkpoints import Checkpoints
from gpt_jax.training.state import TrainState
from gpt_jax.weights.export import new_folder, refuse_existing
from gpt_jax.weights.huggingface import write_folder
from gpt_jax.weights.openai import write_openai

FORMATS = ("huggingface", "openai", "workdir")
DTYPES = ("float32", "bfloat16", "float16")


def run(config: ConfigDict, workdir: Path) -> dict[str, int]:
    """Reads `config.source` and writes it to the new folder `workdir` in the format `config.to`.

    Returns:
      The number of parameters written.

    Raises:
      UserError: for everything that the caller can mend; nothing is left half-written.
    """
    check(config, workdir)
    source = open_pretrained(config.source)
    model, mesh = source.config, make_mesh(config.mesh)
    tokenizer = open_tokenizer(config, source)
    announce(f"{config.source}: {describe(model)}")
    params = source.parameters(mesh)
    if config.add_symbols:
        tokenizer, ids = add_symbols(tokenizer)
        params = with_symbols(params, model, tokenizer.vocab_size, ids, config.seed, mesh)
        model = dataclasses.replace(model, vocab_size=len(params["embedding"]["tokens"]))
    match config.to:
        case "huggingface":
            write_huggingface(params, model, tokenizer, workdir, config.dtype, source.chat_template)
        case "openai":
            write_release(params, model, tokenizer, workdir)
        case "workdir":
            write_workdir(params, model, tokenizer, workdir, config, source.chat_template)
    announce(f"written: {workdir} ({config.to})")
    return {"parameters": decoder.parameter_count(model)}


def check(config: ConfigDict, workdir: Path) -> None:
    """Raises UserError for what can be refused before any work."""
    if config.to not in FORMATS:
        raise UserError(f"to={config.to!r}: expected one of {', '.join(FORMATS)}.{did_you_mean(config.to, FORMATS)}")
    if config.dtype not in DTYPES:
        raise UserError(f"dtype={config.dtype!r}: expected one of {', '.join(DTYPES)}.")
    if config.to != "huggingface" and config.dtype != "float32":
        raise UserError(f"dtype={config.dtype}: the format {config.to} holds float32; leave it empty.")
    if config.source is None:
        raise UserError(
            "source is missing: --config=configs/convert.py:FORMAT,source=PATH, a Hugging Face folder, a GGUF file, "
            "OpenAI's GPT-1 release or a workdir."
        )
    if config.add_symbols and not config.tokenizer.include:
        raise UserError("add_symbols=True needs the tokenizer: leave tokenizer.include=True.")
    if config.add_symbols and config.to == "openai":
        raise UserError("add_symbols=True: OpenAI's release holds no symbols for fine-tuning; write a workdir.")
    if jax.process_count() > 1:
        raise UserError("a conversion runs in one process; start it on one host.")
    refuse_existing(workdir)


def open_tokenizer(config: ConfigDict, source: Pretrained) -> Tokenizer | None:
    """The tokenizer that goes with the weights; None if it is not asked for, or OpenAI's release could not hold it."""
    if not config.tokenizer.include:
        return None
    if config.to != "openai" or config.tokenizer.path:
        return source.tokenizer(config.tokenizer.path)
    try:
        tokenizer = source.tokenizer()
        reason = None if tokenizer.kind == "openai-gpt" else f"it is of kind {tokenizer.kind}"
    except UserError as error:
        tokenizer, reason = None, str(error)
    if reason:
        announce(f"without the tokenizer's files, which OpenAI's release holds of GPT-1's own kind only: {reason}")
    return None if reason else tokenizer


def describe(model: ModelConfig) -> str:
    """One line for a person."""
    parts = f"{model.num_heads} heads" if model.core == "transformer" else f"an LSTM of {model.lstm_width} units"
    return (
        f"{model.num_layers} layers x {model.embed_dim}, {parts}, vocabulary {model.vocab_size:,}, "
        f"context {model.context_length:,}: {decoder.parameter_count(model):,} parameters"
    )


def add_symbols(tokenizer: Tokenizer) -> tuple[Tokenizer, list[int]]:
    """The tokenizer with the symbols that fine-tuning needs, and the ids of those that it lacked."""
    missing = missing_symbols(tokenizer)
    extended = with_fine_tuning_symbols(tokenizer)
    ids = {name: getattr(extended.specials, name) for name in missing}
    announce(f"symbols for fine-tuning added: {ids or 'none, all are there'}")
    return extended, list(ids.values())


def write_release(params: dict, model: ModelConfig, tokenizer: Tokenizer | None, folder: Path) -> None:
    """OpenAI's layout, which has no symbols for fine-tuning: their rows are left out."""
    vocab_size = model.vocab_size
    if isinstance(tokenizer, AppendedSymbols):
        vocab_size = tokenizer.base.vocab_size
        announce(f"left out, since OpenAI's release has none: the rows of {', '.join(tokenizer.appended)}")

    def add_files(folder: Path) -> None:
        if tokenizer is not None:
            save_openai_files(tokenizer, folder)

    write_openai(params, model, folder, vocab_size=vocab_size, add_files=add_files)


def write_huggingface(
    params: dict, model: ModelConfig, tokenizer: Tokenizer | None, folder: Path, dtype: str, template: str | None = None
) -> None:
    """A folder that transformers loads as its own; `template`: what it chats by, where the tokenizer does not say."""
    special_ids = {}
    if tokenizer is not None:
        named = {"eos_token_id": tokenizer.specials.end_of_text, "bos_token_id": tokenizer.specials.beginning_of_text}
        special_ids = {name: id for name, id in named.items() if id is not None}

    def add_tokenizer(folder: Path) -> None:
        if tokenizer is not None:
            save_huggingface(tokenizer, folder)
            if template is not None and template != tokenizer.chat_template:
                (folder / CHAT_TEMPLATE).write_text(template, encoding="utf-8")

    write_folder(params, model, folder, dtype=dtype, special_ids=special_ids, add_files=add_tokenizer)


def write_workdir(
    params: dict,
    model: ModelConfig,
    tokenizer: Tokenizer | None,
    folder: Path,
    config: ConfigDict,
    template: str | None = None,
) -> None:
    """A workdir whose one checkpoint, of step 0, holds the parameters: for `init_from`; `template`: it chats by."""
    with new_folder(folder) as temporary:
        checkpoints = Checkpoints(temporary / "checkpoints", keep=1)
        checkpoints.save(TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state={}))
        checkpoints.close()
        if tokenizer is not None:
            tokenizer.save(temporary / "tokenizer")
        if template is not None:
            (temporary / CHAT_TEMPLATE).write_text(template, encoding="utf-8")
        configuration.write_json(temporary / "environment.json", environment())
        record = configuration.as_json(config) | {"model": dataclasses.asdict(model)}
        configuration.write_json(temporary / "config.json", record)
