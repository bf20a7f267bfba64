"""Weights that a run begins with, whoever wrote them: other people's checkpoints, or a workdir of ours."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from gpt_jax.errors import UserError
from gpt_jax.models import decoder
from gpt_jax.models.adapters import adapter_specs, merge_adapters
from gpt_jax.models.config import ModelConfig
from gpt_jax.models.heads import head_specs
from gpt_jax.models.parameters import ParameterSpec
from gpt_jax.models.presets import model_config
from gpt_jax.parallel.rules import tree_shardings
from gpt_jax.runs.problem import best_step
from gpt_jax.text.imported import open_tokenizer
from gpt_jax.text.tokenizer import Tokenizer, load_tokenizer
from gpt_jax.training.checkpoints import restore_parameters
from gpt_jax.weights.formats import read_checkpoint
from gpt_jax.weights.load import check_tensors, load_parameters
from gpt_jax.weights.tensors import Checkpoint

# A published model may have more rows than its tokenizer has ids, to round their number up: of Qwen2's 151,936 the last
# 271, of its 152,064 the last 399.
SPARE_ROWS = 128
SPARE_SHARE = 0.005
BESIDE = ("finetune", "sft", "reward", "dpo", "ppo", "grpo")  # runs whose decoder stands beside a head, adapters, ...
CHAT_TEMPLATE = "chat_template.jinja"  # in a workdir, by the name that it has in a Hugging Face folder


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """Weights found at `path`, described but not read yet.

    Attributes:
      path: what the user named: a workdir (or one of its checkpoints/STEP), a Hugging Face folder, a GGUF file,
        OpenAI's release.
      config: the model that they were trained as.
      step: of ours, the checkpoint that was named; None: the newest, of fine-tuning that of the best epoch.
      recorded: of ours, the config of the run that saved them.
    """

    path: Path
    config: ModelConfig
    source: Checkpoint | Path  # other people's checkpoint, or the folder `checkpoints` of ours
    step: int | None = None
    recorded: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def fine_tuned(self) -> bool:
        """Whether a head stands beside the decoder."""
        return self.recorded.get("run") == "finetune"

    @property
    def chosen_step(self) -> int | None:
        """The step whose parameters are read; None: the newest.

        Raises:
          UserError: when it is the best epoch's, and none has ended.
        """
        if self.step is None and self.fine_tuned:
            return best_step(self.source.parent)
        return self.step

    def parameters(self, mesh: jax.sharding.Mesh, config: ModelConfig | None = None) -> dict:
        """Reads the parameters into their shardings on `mesh`.

        Args:
          config: `presets.adapt` of this one: another dtype, a shorter context.

        Raises:
          UserError: when they are damaged or not those of the config.
        """
        config = self.config if config is None else config
        if isinstance(self.source, Checkpoint):
            stored = dataclasses.replace(self.config, param_dtype=config.param_dtype)
            params = load_parameters(dataclasses.replace(self.source, config=stored), mesh)
        elif self.recorded.get("run") in BESIDE:
            return self.parameters_with_head(mesh, config)["model"]
        else:
            params = restore_parameters(self.source, abstract_parameters(self.config, mesh), step=self.step)
            params = _cast(params, config)
        return _cut_positions(params, config, mesh)

    def parameters_with_head(
        self, mesh: jax.sharding.Mesh, config: ModelConfig | None = None, *, outputs: int | None = None
    ) -> dict:
        """Reads `model`, the decoder with its adapters merged, and `head`, of weights beside others.

        Args:
          config: as of `parameters`; outputs: the width of the head, None: it is left out.

        Raises:
          UserError: when they are damaged or not those of the config, or no epoch has ended.
        """
        config = self.config if config is None else config
        adapters = self.recorded.get("transfer", {}).get("adapters", {"rank": 0})
        specs = {"model": decoder.parameter_specs(self.config)}
        if adapters["rank"]:
            specs["adapters"] = adapter_specs(self.config, adapters["rank"], tuple(adapters["targets"]))
        if outputs is not None:
            specs["head"] = head_specs(self.config, outputs)
        abstract = abstract_tree(specs, self.config.param_dtype, mesh)
        # A policy whose weights are averaged is their average: of what learns, its adapters or all of it.
        averaged = {}
        if self.recorded.get("train", {}).get("average_decay"):
            name = "adapters" if adapters["rank"] else "model"
            averaged = {name: abstract.pop(name)}
            averaged = restore_parameters(self.source, averaged, step=self.chosen_step, place=("aux", "average"))
        params = averaged
        if abstract:
            params = averaged | restore_parameters(self.source, abstract, step=self.chosen_step)
        if adapters["rank"]:
            shardings = jax.tree.map(lambda x: x.sharding, params["model"])
            merge = jax.jit(lambda model, own: merge_adapters(model, own, adapters["alpha"]), out_shardings=shardings)
            params["model"] = merge(params["model"], params.pop("adapters"))
        params = _cast(params, config)
        return params | {"model": _cut_positions(params["model"], config, mesh)}

    def end_ids(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """Ids that end a text or an answer: the tokenizer's end of text, and those that the makers of the weights name.

        A Hugging Face folder names them in generation_config.json and config.json (`eos_token_id`, one or several), a
        GGUF file as the end of a turn or message (`tokenizer.ggml.eot_token_id`, `.eom_token_id`).
        """
        named = [tokenizer.specials.end_of_text]
        if isinstance(self.source, Checkpoint):
            metadata = self.source.metadata
            named += [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eot", "eom")]
            for fields in (metadata, _generation_config(self.path)):
                ids = fields.get("eos_token_id")
                named += ids if isinstance(ids, list) else [ids]
        return tuple(sorted({id for id in named if type(id) is int and 0 <= id < tokenizer.vocab_size}))

    @property
    def chat_template(self) -> str | None:
        """The template that these weights were taught to chat with, of a workdir that keeps one."""
        kept = None if isinstance(self.source, Checkpoint) else self.source.parent / CHAT_TEMPLATE
        return kept.read_text(encoding="utf-8") if kept is not None and kept.is_file() else None

    @property
    def tokenizer_path(self) -> Path:
        """Where the tokenizer of these weights stands, if they came with one."""
        return self.path if isinstance(self.source, Checkpoint) else self.source.parent / "tokenizer"

    def tokenizer(self, path: str | Path | None = None) -> Tokenizer:
        """The tokenizer at `path`, by default the one beside the weights, held against the size of their vocabulary.

        Raises:
          UserError: when there is none, or it is not this model's.
        """
        if path is None and isinstance(self.source, Checkpoint) and "tokenizer.ggml.model" in self.source.metadata:
            from gpt_jax.text.gguf import tokenizer_from_metadata

            place, tokenizer = self.path, tokenizer_from_metadata(self.source.metadata, str(self.path))
        else:
            place = Path(path).expanduser() if path else self.tokenizer_path
            tokenizer = open_tokenizer(place)
        check_vocabulary(tokenizer, place, self.config)
        if path and isinstance(self.source, Path) and (own := self.tokenizer_path).is_dir():
            if load_tokenizer(own).fingerprint != tokenizer.fingerprint:
                raise UserError(
                    f"the tokenizer {place} is not the one that {self.path} was trained with: leave tokenizer.path "
                    "empty."
                )
        return tokenizer


def open_pretrained(path: str | Path) -> Pretrained:
    """Finds out what stands at `path`; no weights are read.

    Raises:
      UserError: when it holds no weights that this project reads.
    """
    path = Path(path).expanduser()
    step, workdir = None, path
    if path.parent.name == "checkpoints" and path.name.isdigit():
        step, workdir = int(path.name), path.parent.parent
        if path.parent.is_dir() and not path.is_dir():
            steps = sorted(int(other.name) for other in path.parent.iterdir() if other.name.isdigit())
            raise UserError(f"{path.parent}: no checkpoint of step {step}. Steps: {steps}.")
    if not (workdir / "checkpoints").is_dir():
        _check_no_other_workdir(workdir)
        checkpoint = read_checkpoint(path)
        check_tensors(checkpoint)
        return Pretrained(path, checkpoint.config, checkpoint)
    try:
        recorded = json.loads((workdir / "config.json").read_text())
        config = model_config(None, **{name: value for name, value in recorded["model"].items() if name != "preset"})
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(
            f"{workdir}: has checkpoints, but its config.json does not say which model's ({error!r})."
        ) from None
    return Pretrained(path, config, workdir / "checkpoints", step, recorded)


def _generation_config(folder: Path) -> Mapping[str, Any]:
    """The fields of a Hugging Face folder's generation_config.json; none where it has no such file."""
    try:
        fields = json.loads((folder / "generation_config.json").read_text())
    except (OSError, ValueError):
        return {}
    return fields if isinstance(fields, dict) else {}


def _check_no_other_workdir(folder: Path) -> None:
    """Raises UserError for a workdir of ours that holds no checkpoints itself."""
    if seeds := sorted(path.parent for path in folder.glob("seed-*/checkpoints")):
        raise UserError(
            f"{folder}: holds a fine-tuning run for each of several seeds. Name one of them: "
            f"{', '.join(map(str, seeds[:8]))}."
        )
    try:
        run = json.loads((folder / "config.json").read_text())["run"]  # nobody else's config.json has such a field
    except (OSError, ValueError, LookupError, TypeError):
        return
    raise UserError(f"{folder}: the workdir of a {run} run, with no checkpoint in it (yet). Name one that has some.")


def abstract_parameters(config: ModelConfig, mesh: jax.sharding.Mesh) -> dict:
    """The decoder's parameters as shapes, dtypes and shardings."""
    return abstract_tree(decoder.parameter_specs(config), config.param_dtype, mesh)


def abstract_tree(specs: dict, dtype: str, mesh: jax.sharding.Mesh) -> dict:
    """A tree of `ParameterSpec`s as shapes, dtypes and shardings."""
    shapes = jax.tree.map(
        lambda spec: jax.ShapeDtypeStruct(spec.shape, jnp.dtype(dtype)),
        specs,
        is_leaf=lambda leaf: isinstance(leaf, ParameterSpec),
    )
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, tree_shardings(shapes, mesh)
    )


def check_vocabulary(tokenizer: Tokenizer, place: Path, config: ModelConfig) -> None:
    """Raises UserError unless the model has a row for every id, and not many more."""
    spare = config.vocab_size - tokenizer.vocab_size
    if not 0 <= spare < max(SPARE_ROWS, SPARE_SHARE * config.vocab_size):
        raise UserError(
            f"the tokenizer {place} has {tokenizer.vocab_size:,} ids, the model {config.vocab_size:,} rows: it is not "
            "this model's. Give the one it was trained with: --config.tokenizer.path=FOLDER-OR-FILE."
        )


def prompt_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of a text to continue, after the beginning of text where the model saw one before every text.

    An empty text is continued from there, or from the end of text that stands between documents.
    """
    beginning = tokenizer.specials.beginning_of_text
    ids = tokenizer.encode(text).tolist()
    if beginning is not None:
        return [beginning, *ids]
    return ids or [tokenizer.specials.end_of_text]


def with_symbols(params: dict, config: ModelConfig, vocab_size: int, ids: Sequence[int], seed: int, mesh) -> dict:
    """Parameters with rows for `vocab_size` ids, those of `ids` drawn N(0, `config.init_std`), as OpenAI drew symbols.

    A symbol may take a row that the model has already, one that rounded the number of rows up.
    """
    config = dataclasses.replace(config, vocab_size=max(vocab_size, config.vocab_size))
    symbols = jnp.array(ids, jnp.int32)

    def draw(params: dict) -> dict:
        keys = jax.random.split(jax.random.key(seed))
        for key, room in zip(keys, ("embedding", "unembedding"), strict=True):
            if room in params:
                old = params[room]["tokens"]
                new = config.init_std * jax.random.normal(key, (config.vocab_size, config.embed_dim), old.dtype)
                rows = jnp.pad(old, ((0, config.vocab_size - len(old)), (0, 0))).at[symbols].set(new[symbols])
                params = params | {room: params[room] | {"tokens": rows}}
        return params

    shardings = jax.tree.map(lambda x: x.sharding, abstract_parameters(config, mesh))
    return jax.jit(draw, out_shardings=shardings)(params)


def _cast(params: dict, config: ModelConfig) -> dict:
    return jax.tree.map(lambda x: x.astype(config.param_dtype), params)


def _cut_positions(params: dict, config: ModelConfig, mesh: jax.sharding.Mesh) -> dict:
    """Keeps the first positions only, as many as the context has; OpenAI's fine-tuning shortened its context so."""
    positions = params["embedding"].get("positions")
    if positions is None or len(positions) == config.context_length:
        return params
    sharding = abstract_parameters(config, mesh)["embedding"]["positions"].sharding
    cut = jax.jit(lambda x: x[: config.context_length], out_shardings=sharding)(positions)
    return params | {"embedding": params["embedding"] | {"positions": cut}}
