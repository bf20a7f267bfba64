"""The model of a conversation: what the runs `chat` and `serve` open before anything is said."""

import dataclasses
import datetime
from pathlib import Path

import jax
from ml_collections import ConfigDict

from gpt_jax.errors import UserError
from gpt_jax.inference.engine import Engine
from gpt_jax.models.config import ModelConfig
from gpt_jax.models.presets import adapt
from gpt_jax.parallel.mesh import make_mesh
from gpt_jax.runs.pretrained import Pretrained, open_pretrained
from gpt_jax.runs.recipe import check_model_fits
from gpt_jax.text.bpe_files import read_text
from gpt_jax.text.chat_template import ChatTemplate
from gpt_jax.text.tokenizer import Tokenizer

DEFAULT_LENGTH = 2048


@dataclasses.dataclass(frozen=True)
class ChatModel:
    """A model that was found; its weights are not read yet.

    Attributes:
      template: None: it has none, and texts can only be continued.
      length: tokens of a conversation and its answer.
    """

    pretrained: Pretrained
    config: ModelConfig
    mesh: jax.sharding.Mesh
    tokenizer: Tokenizer
    template: ChatTemplate | None
    length: int

    def engine(self, *, slots: int, reuse_prefix: bool = False) -> Engine:
        """Reads the weights."""
        ends = set(self.pretrained.end_ids(self.tokenizer))
        return Engine(
            self.pretrained.parameters(self.mesh, self.config),
            self.config,
            self.mesh,
            vocab_size=self.tokenizer.vocab_size,
            end_ids=sorted(ends | set(self.template.end_ids if self.template else ())),
            slots=slots,
            length=self.length,
            reuse_prefix=reuse_prefix,
        )


def open_chat_model(config: ConfigDict, day: datetime.date | None = None) -> ChatModel:
    """What `config.source` and the fields beside it describe. `day`: as of `ChatTemplate`.

    Raises:
      UserError: for what the caller can mend.
    """
    if config.source is None:
        raise UserError(
            "model= is missing: --config=configs/chat.py:model=PATH, a Hugging Face folder, a GGUF file or a workdir."
        )
    if jax.process_count() > 1:
        raise UserError("a conversation is held by one process; start it on one host.")
    pretrained = open_pretrained(config.source)
    model, mesh = adapt(pretrained.config, **config.model), make_mesh(config.mesh)
    check_model_fits(model, mesh)
    tokenizer = pretrained.tokenizer(config.tokenizer.path)
    length = min(DEFAULT_LENGTH, model.context_length) if config.length is None else config.length
    if not 2 <= length <= model.context_length:
        raise UserError(f"length={length}: expected 2 to the context of {model.context_length:,} tokens.")
    template = open_template(config.template, tokenizer, config.source, pretrained.chat_template, day)
    return ChatModel(pretrained, model, mesh, tokenizer, template, length)


def open_template(
    path: str | None, tokenizer: Tokenizer, source: str, kept: str | None = None, day: datetime.date | None = None
) -> ChatTemplate | None:
    """The template in the file `path`, by default the one that the weights keep or that came with the tokenizer.

    None: there is none. `day`: as of `ChatTemplate`.
    """
    if path is not None:
        file = Path(path).expanduser()
        if not file.is_file():
            raise UserError(f"template={path}: no such file. Expected one with a chat template in Jinja's language.")
        return ChatTemplate(read_text(file), tokenizer, str(file), day)
    text = kept or tokenizer.chat_template
    return None if text is None else ChatTemplate(text, tokenizer, f"the chat template of {source}", day)


def missing_template(source: str) -> UserError:
    """For a model that cannot chat."""
    return UserError(
        f"{source}: has no chat template, so it was probably never taught to chat. If it was, name a file with the "
        f"template: --config.template=FILE. To continue texts with it: --config=configs/generate.py:model={source}."
    )
