"""What the training runs share: the same fields of a config mean the same in each."""

from pathlib import Path

import jax
import optax
from ml_collections import ConfigDict

from gpt_jax import configuration
from gpt_jax.data.batch_sizes import BatchSizes
from gpt_jax.errors import UserError
from gpt_jax.models.adapters import adapter_specs
from gpt_jax.models.attention_kernels import check_kernel
from gpt_jax.models.config import ModelConfig
from gpt_jax.training.optimizers import make_optimizer
from gpt_jax.training.schedules import grown_position, make_schedule


def has_begun(workdir: Path) -> bool:
    """Whether an earlier start in `workdir` got as far as a checkpoint."""
    checkpoints = workdir / "checkpoints"
    steps = [path for path in checkpoints.iterdir() if path.name.isdigit()] if checkpoints.is_dir() else []
    return bool(steps) and (workdir / "config.json").is_file() and (workdir / "tokenizer").is_dir()


def check_config(config: ConfigDict, workdir: Path) -> None:
    """Raises UserError where the run in `workdir` was begun with other fields."""
    current = configuration.as_json(config)
    configuration.check_same(workdir, "config.json", current, what="config", free=configuration.FREE_TO_CHANGE)


def check_counts(config: ConfigDict, names: tuple[str, ...]) -> None:
    """Raises UserError unless the seed is one, and the fields `names` are 0 or more."""
    fields = configuration.flatten(config.to_dict())
    for name in names:
        if fields[name] < 0:
            raise UserError(f"{name}={fields[name]}: expected 0 or more.")
    if not 0 <= config.seed < 2**32:
        raise UserError(f"seed={config.seed}: expected 0 to {2**32 - 1}.")
    if config.checkpoint.keep < 1:
        raise UserError(f"checkpoint.keep={config.checkpoint.keep}: expected at least 1.")


def check_batch(batch: int, mesh: jax.sharding.Mesh, *, accumulation: int = 1, field: str = "train.batch_size") -> None:
    """Raises UserError unless the batch, given as `field`, divides over accumulation and devices."""
    rows = mesh.shape["data"] * mesh.shape["fsdp"]
    part = accumulation * rows
    if batch < 1 or accumulation < 1 or batch % part:
        nearest = max(round(batch / max(part, 1)), 1) * part
        parts = f"train.accumulation={accumulation} times " if accumulation != 1 else ""
        raise UserError(
            f"{field}={batch} does not divide by {parts}the {rows} devices along mesh data and fsdp. The nearest that "
            f"does: {nearest}."
        )


def check_adapters(config: ConfigDict, model: ModelConfig) -> None:
    """Raises UserError unless `transfer.adapters` says of this model what can be."""
    adapters = config.transfer.adapters
    if adapters.rank < 0 or adapters.alpha <= 0:
        raise UserError(
            f"transfer.adapters: rank={adapters.rank}, alpha={adapters.alpha}: expected a rank of at least 0 (0: none) "
            "and a positive alpha."
        )
    if adapters.rank:
        adapter_specs(model, adapters.rank, tuple(adapters.targets))  # names what is wrong with them


def check_model_fits(model: ModelConfig, mesh: jax.sharding.Mesh, time: int | None = None) -> None:
    """Raises UserError where an axis of the mesh would divide nothing of the model, or not evenly.

    Or where the attention kernel asked for cannot run there, on sequences of `time` (None: they vary).

    `tensor` divides the query heads and the MLP's width, `fsdp` the model's width and an LSTM's units. Key/value heads
    are divided too; or, where `tensor` is a multiple of their number, each stands on all devices that have queries of
    its group. In between, the queries of a device would belong to parts of groups. `tensor` and `sequence` together
    divide the query heads inside attention. Of an LSTM, `tensor` divides the vocabulary alone. A vocabulary need not
    divide (parallel/rules.py).
    """
    tensor, fsdp = mesh.shape["tensor"], mesh.shape["fsdp"]
    widths = {"embed_dim": model.embed_dim}
    if model.core == "lstm":
        widths["lstm_units"] = model.lstm_width
    for name, width in widths.items():
        if width % fsdp:
            sizes = [size for size in range(1, 2 * fsdp) if not any(width % size for width in widths.values())]
            raise UserError(
                f"mesh.fsdp={fsdp} does not divide model.{name}={width}: it would stay whole on every device. Sizes "
                f"near it that do: {_listed(sizes)}."
            )
    if model.core == "lstm":
        return

    def fits(tensor: int) -> bool:
        groups = model.kv_heads % tensor == 0 or tensor % model.kv_heads == 0
        return model.num_heads % tensor == 0 and model.mlp_width % tensor == 0 and groups

    if not fits(tensor):
        sizes = [size for size in range(1, model.num_heads + 1) if fits(size)]
        raise UserError(
            f"mesh.tensor={tensor} does not go with model.num_heads={model.num_heads}, model.key_value_heads="
            f"{model.kv_heads}, model.mlp_dim={model.mlp_width}: it must divide the heads and the MLP's width, and "
            f"divide the key/value heads or be a multiple of them. Sizes that work: {_listed(sizes)}."
        )
    heads, sequence = model.num_heads // tensor, mesh.shape["sequence"]
    if heads % sequence:
        sizes = [size for size in range(1, heads + 1) if heads % size == 0]
        raise UserError(
            f"mesh.sequence={sequence} does not divide the {heads} heads that mesh.tensor={tensor} leaves of "
            f"model.num_heads={model.num_heads}: inside attention the devices along it divide heads, not time. Sizes "
            f"that work: {_listed(sizes)}."
        )
    check_kernel(model, mesh, time)


def _listed(sizes: list[int]) -> str:
    return ", ".join(map(str, sizes))


def check_ramp(config: ConfigDict, sizes: BatchSizes, mesh: jax.sharding.Mesh) -> None:
    """Raises UserError unless the batches that lead to the full one divide as that does (`check_batch`)."""
    if len(sizes.sizes) == 1:
        return
    part = config.train.accumulation * mesh.shape["data"] * mesh.shape["fsdp"]
    if sizes.sizes[0] % part:
        least = -(-sizes.sizes[0] // part) * part * config.data.sequence_length
        raise UserError(
            f"train.ramp_from={config.train.ramp_from}: the first batches are of {sizes.sizes[0]} sequences, which "
            f"train.accumulation={config.train.accumulation} and the {part // config.train.accumulation} devices along "
            f"mesh data and fsdp do not divide. Begin with more, --config.train.ramp_from={least}, or with the full "
            "batch, --config.train.ramp_tokens=0."
        )


def schedule_and_optimizer(
    config: ConfigDict, steps: int, sizes: BatchSizes | None = None
) -> tuple[optax.Schedule, optax.GradientTransformation]:
    """The learning-rate schedule of a run of `steps` updates, and the optimizer that follows it.

    Args:
      sizes: of the batches; where they grow, warm-up and decay follow the tokens seen, not the updates made.
    """
    c = config.schedule
    lengths = {"steps": steps, "warmup_steps": c.warmup_steps, "decay_steps": c.decay_steps}
    if sizes is not None and len(sizes.sizes) > 1:
        in_full_batches = {
            name: None if value is None else sizes.examples(value) / sizes.full for name, value in lengths.items()
        }
        for name in ("warmup", "decay"):
            if (tokens := c[f"{name}_tokens"]) is not None:
                in_full_batches[f"{name}_steps"] = tokens / (sizes.full * config.data.sequence_length)
        lengths = in_full_batches | {"position": grown_position(sizes.first_steps, sizes.sizes)}
    schedule = make_schedule(c.name, peak=c.peak, final_fraction=c.final_fraction, **lengths)
    return schedule, make_optimizer(schedule=schedule, **config.optimizer)
