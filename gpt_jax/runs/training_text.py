"""The text that a pretraining reads: one source or a mixture of several, as windows, a part of it held out."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grain
from ml_collections import ConfigDict

from gpt_jax.data.batch_sizes import BatchSizes
from gpt_jax.data.loader import TrainingWindows, window_order
from gpt_jax.data.mixed_windows import MixedOrder, MixedWindows
from gpt_jax.data.mixture import Mixture, parse_mixture
from gpt_jax.data.sources import Source, open_source
from gpt_jax.data.token_store import TokenStore, open_or_build
from gpt_jax.data.windows import Windows
from gpt_jax.disk import digest
from gpt_jax.errors import UserError
from gpt_jax.parallel.runtime import is_main_process
from gpt_jax.runs.recipe import has_begun
from gpt_jax.text import sentencepiece
from gpt_jax.text.imported import open_tokenizer as open_imported_tokenizer
from gpt_jax.text.sampling import sample_blocks
from gpt_jax.text.tokenizer import Tokenizer, load_tokenizer


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Text to evaluate on: its source's name, and its share in the loss of all. Alone, it has no name."""

    name: str
    tokens: TokenStore
    share: float


@dataclasses.dataclass(frozen=True)
class Text:
    """What a run reads.

    Attributes:
      tokenizer: one for all sources.
      windows, order: the training windows, and which of them each example is.
      held_out: to evaluate on.
      facts: the fingerprints of it all.
      epochs: of the number of examples drawn, how often each source of a mixture has been read; of a single source {}.
    """

    tokenizer: Tokenizer
    windows: TrainingWindows
    order: grain.MapDataset
    held_out: tuple[HeldOut, ...]
    facts: dict[str, Any]
    epochs: Callable[[int], dict[str, float]] = lambda examples: {}


def resolve_sources(data: ConfigDict) -> None:
    """Fills in what is read where the config leaves it to a default; of a mixture, one way to write it.

    Raises:
      UserError: for a source and a mixture together, a mixture that is none, and names without an address.
    """
    if data.mixture is None:
        if data.source is None:
            data.source = "books"
        return
    if data.source:
        raise UserError(
            f"data.source={data.source!r}, data.mixture={data.mixture!r}: give one of them; a source may stand in the "
            "mixture with its weight."
        )
    data.source, mixture = None, parse_mixture(data.mixture)
    data.mixture = json.dumps(json.loads(data.mixture))  # however the spaces were set
    missing = [name for name in mixture.names if name in data.addresses and not data.addresses[name]]
    if missing:
        flags = " ".join(f"--config.data.addresses.{name}=ADDRESS" for name in missing)
        raise UserError(f"data.mixture: no address for {', '.join(missing)}. Say where they are: {flags}.")


def open_text(config: ConfigDict, sizes: BatchSizes, workdir: Path | None = None) -> Text:
    """Opens the text: read, tokenised and stored now, or found in the cache.

    Args:
      sizes: the examples of each step, which say when a mixture's weights change.

    Raises:
      UserError: for what is wrong with the text.
    """
    return _open_single(config, workdir) if config.data.mixture is None else _open_mixture(config, sizes, workdir)


def _open_single(config: ConfigDict, workdir: Path | None) -> Text:
    data = config.data
    source = _open(data, data.source, data.validation_fraction, data.validation_address)
    tokenizer = open_tokenizer(
        config, lambda: (piece.text for piece in source.pieces("train")), source.fingerprint("train"), workdir
    )
    stores = {split: _tokens(config, source, split, tokenizer) for split in ("train", "valid")}
    facts = {"tokenizer": tokenizer.fingerprint}
    facts |= {split: _facts(source, split, store) for split, store in stores.items()}
    windows = Windows(stores["train"], data.sequence_length)
    order = window_order(len(windows), config.seed)
    return Text(tokenizer, windows, order, (HeldOut("", stores["valid"], 1.0),), facts)


def _open_mixture(config: ConfigDict, sizes: BatchSizes, workdir: Path | None) -> Text:
    """Each source has windows and a held-out part of its own, or `data.validation_address` is held out for all."""
    data, mixture = config.data, parse_mixture(config.data.mixture)
    separate = data.validation_address is not None
    addresses = {name: data.addresses.get(name) or name for name in mixture.names}
    held_out_fraction = 0.0 if separate else data.validation_fraction
    sources = {name: _open(data, address, held_out_fraction) for name, address in addresses.items()}
    fingerprints = {name: source.fingerprint("train") for name, source in sources.items()}
    tokenizer = open_tokenizer(
        config,
        lambda: _texts_by_share(sources, mixture, config.tokenizer.training_bytes),
        digest("mixture", [(fingerprints[name], share) for name, share in mixture.shares.items()]),
        workdir,
    )
    facts: dict[str, Any] = {name: {} for name in sources}
    windows, held_out = {}, []
    for name, source in sources.items():
        store = _tokens(config, source, "train", tokenizer)
        facts[name]["train"] = _facts(source, "train", store)
        try:
            windows[name] = Windows(store, data.sequence_length)
        except UserError as error:
            raise UserError(f"data.mixture: {name}: {error}") from None
        if not separate:
            store = _tokens(config, source, "valid", tokenizer)
            facts[name]["valid"] = _facts(source, "valid", store)
            held_out.append(HeldOut(name, store, mixture.shares[name]))
    facts = {"tokenizer": tokenizer.fingerprint, "sources": facts}
    if separate:
        source = _open(data, data.validation_address, 0.0)
        store = _tokens(config, source, "train", tokenizer)
        facts["valid"] = _facts(source, "train", store)
        held_out = [HeldOut("", store, 1.0)]
    mixed = MixedWindows(windows)
    order = MixedOrder(mixed, fingerprints, mixture, sizes, config.seed)
    return Text(tokenizer, mixed, order, tuple(held_out), facts, order.epochs)


def _open(data: ConfigDict, address: str, validation_fraction: float, validation_address: str | None = None) -> Source:
    return open_source(
        address,
        text_field=data.text_field,
        encoding=data.encoding,
        validation_fraction=validation_fraction,
        validation_address=validation_address,
        cache_dir=Path(data.cache_dir),
    )


def _tokens(config: ConfigDict, source: Source, split: str, tokenizer: Tokenizer) -> TokenStore:
    return open_or_build(source, split, tokenizer, cache_dir=Path(config.data.cache_dir), progress=is_main_process())


def _facts(source: Source, split: str, store: TokenStore) -> dict[str, Any]:
    counts = {name: store.manifest[name] for name in ("tokens", "documents", "bytes")}
    return {"fingerprint": source.fingerprint(split)} | counts


def _texts_by_share(sources: dict[str, Source], mixture: Mixture, training_bytes: int) -> Iterator[str]:
    """Of each source's training text as much as its share of `training_bytes`: what the model will see."""
    for name, share in mixture.shares.items():
        pieces = (piece.text for piece in sources[name].pieces("train"))
        yield from sample_blocks(pieces, max(int(share * training_bytes), 1), seed=0)


def open_tokenizer(
    config: ConfigDict, texts: Callable[[], Iterator[str]], fingerprint: str, workdir: Path | None = None
) -> Tokenizer:
    """The tokenizer at `tokenizer.path`; or the one trained on `texts`, or found in the cache by their fingerprint."""
    if config.tokenizer.path:
        return found_tokenizer(config, workdir)
    if config.tokenizer.kind != "sentencepiece":
        raise UserError(f"tokenizer.kind={config.tokenizer.kind!r}: expected sentencepiece, or tokenizer.path.")
    return sentencepiece.load_or_train(
        texts,
        content_fingerprint=fingerprint,
        cache_dir=Path(config.data.cache_dir),
        vocab_size=config.tokenizer.vocab_size,
        model_type=config.tokenizer.model_type,
        training_bytes=config.tokenizer.training_bytes,
        character_coverage=config.tokenizer.character_coverage,
        progress=is_main_process(),
    )


def found_tokenizer(config: ConfigDict, workdir: Path | None) -> Tokenizer:
    """The tokenizer at `tokenizer.path`, or the copy of it that the run in `workdir` keeps."""
    if workdir is not None and has_begun(workdir):
        return load_tokenizer(workdir / "tokenizer")
    return open_imported_tokenizer(Path(config.tokenizer.path).expanduser())
