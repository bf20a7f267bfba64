"""The prompts of a policy-gradient run: read, held out in part, and in an order that follows from the seed."""

import dataclasses
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from gpt_jax.alignment.prompts import Prompt, TextPrompts, evenly, read_prompts
from gpt_jax.data.loader import window_order
from gpt_jax.data.sources import open_source
from gpt_jax.data.tables import is_table, open_table, split_held_out
from gpt_jax.data.token_store import open_or_build
from gpt_jax.errors import UserError
from gpt_jax.parallel.runtime import announce, is_main_process
from gpt_jax.text.chat_template import ChatTemplate
from gpt_jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Prompts:
    """What is asked.

    Attributes:
      train: those that are learnt from; valid: the held-out ones that are evaluated on.
      longest: tokens of the longest of all.
      facts: what the workdir keeps of them.
    """

    train: Sequence[Prompt]
    valid: list[Prompt]
    longest: int
    facts: dict[str, Any]

    def of_steps(self, first_step: int, *, prompts: int, answers: int, seed: int) -> Iterator[list[Prompt]]:
        """The prompts of step `first_step` and all that follow, each `answers` times in a row.

        In every epoch they come in another order.
        """
        order = window_order(len(self.train), seed)
        for step in itertools.count(first_step):
            asked = (self.train[order[number]] for number in range(step * prompts, (step + 1) * prompts))
            yield [prompt for prompt in asked for _ in range(answers)]


def open_prompts(config: ConfigDict, tokenizer: Tokenizer, template: ChatTemplate | None) -> Prompts:
    """Reads the prompts; those that leave no room for an answer are counted and dropped.

    Raises:
      UserError: for what is wrong with them, or none are left.
    """
    data = config.data
    if is_table(data.source):
        return _of_table(config, tokenizer, template)
    source = open_source(
        data.source,
        text_field=data.text_field,
        encoding=data.encoding,
        validation_fraction=data.validation_fraction,
        validation_address=data.validation_address,
        cache_dir=Path(data.cache_dir),
    )
    splits, facts = {}, {"tokenizer": tokenizer.fingerprint}
    for split in ("train", "valid"):
        store = open_or_build(source, split, tokenizer, cache_dir=Path(data.cache_dir), progress=is_main_process())
        stride = data.prompt_tokens + config.rollout.max_new_tokens
        splits[split] = TextPrompts(store, tokenizer, data.prompt_tokens, stride)
        facts[split] = source.fingerprint(split)
    valid = evenly(splits["valid"], config.train.eval_prompts)
    return Prompts(splits["train"], valid, len(splits["train"][0].ids), facts)


def _of_table(config: ConfigDict, tokenizer: Tokenizer, template: ChatTemplate | None) -> Prompts:
    data = config.data
    room = config.model.context_length - config.rollout.max_new_tokens
    most = room if data.max_prompt_tokens is None else min(data.max_prompt_tokens, room)

    def read(address: str) -> list[Prompt]:
        table = open_table(address, encoding=data.encoding, skip_bad_rows=data.skip_bad_rows)
        found, bad = read_prompts(table, data.columns, tokenizer, template, skip_bad_rows=data.skip_bad_rows)
        fitting = [prompt for prompt in found if len(prompt.ids) <= most]
        if bad or len(fitting) < len(found):
            announce(
                f"{address}: {bad:,} rows that are no prompts and {len(found) - len(fitting):,} of {len(found):,} "
                f"prompts of more than {most:,} tokens are dropped"
            )
        if not found:
            raise UserError(f"{address}: none of its {bad:,} rows is a prompt (data.skip_bad_rows passed over them).")
        if not fitting:
            raise UserError(
                f"{address}: every prompt has more than {most:,} tokens, the shortest "
                f"{min(len(prompt.ids) for prompt in found):,}. Raise data.max_prompt_tokens or "
                "model.context_length, or lower rollout.max_new_tokens."
            )
        return fitting

    if data.validation_address:
        train, valid = read(data.source), read(data.validation_address)
    else:
        train, valid = split_held_out(read(data.source), lambda prompt: prompt.text, data.validation_fraction)
    facts = {
        "tokenizer": tokenizer.fingerprint,
        "prompts": {"train": len(train), "valid": len(valid)},
        "digest": hashlib.sha256(repr([prompt.ids for prompt in (*train, *valid)]).encode()).hexdigest(),
    }
    longest = max(len(prompt.ids) for prompt in (*train, *valid))
    return Prompts(train, evenly(valid, config.train.eval_prompts), longest, facts)
