"""The text that PPO-ptx goes on learning from, so that the policy stays a language model (Ouyang et al. 2022, §3.5)."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from gpt_jax.data.loader import window_order
from gpt_jax.data.sources import open_source
from gpt_jax.data.token_store import open_or_build
from gpt_jax.data.windows import Windows
from gpt_jax.errors import UserError
from gpt_jax.parallel.runtime import is_main_process
from gpt_jax.text.tokenizer import Tokenizer


def windows_an_update(config: ConfigDict) -> int:
    """Windows beside the answers of a minibatch."""
    return round(config.pretraining.examples * config.train.batch_size / config.objective.minibatches)


def open_pretraining_text(
    config: ConfigDict, tokenizer: Tokenizer
) -> tuple[Callable[[int], dict[str, np.ndarray]], str]:
    """A function of an update's number: its windows of text, whose `loss_mask` sums up to 1; and their fingerprint.

    Raises:
      UserError: for what is wrong with the text.
    """
    c, length = config.pretraining, config.pretraining.sequence_length or config.model.context_length
    count = windows_an_update(config)
    if not 1 <= length <= config.model.context_length:
        raise UserError(
            f"pretraining.sequence_length={length}: expected 1 to model.context_length={config.model.context_length}."
        )
    source = open_source(
        c.source, text_field=c.text_field, validation_fraction=0.0, cache_dir=Path(config.data.cache_dir)
    )
    store = open_or_build(source, "train", tokenizer, cache_dir=Path(config.data.cache_dir), progress=is_main_process())
    windows = Windows(store, length)
    order = window_order(len(windows), config.seed)

    def batch(update: int) -> dict[str, np.ndarray]:
        found = windows.batch([order[number] for number in range(update * count, (update + 1) * count)])
        return found | {"loss_mask": found["loss_mask"] / np.float32(count * length)}

    return batch, source.fingerprint("train")
