"""The state of a policy-gradient run: policy, value function and what is averaged, and the reference beside it."""

import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from gpt_jax.alignment.policy_gradient import Penalty
from gpt_jax.models import decoder
from gpt_jax.models.config import ModelConfig
from gpt_jax.models.heads import head_specs
from gpt_jax.models.parameters import init_parameters
from gpt_jax.models.presets import model_config
from gpt_jax.parallel.runtime import is_main_process
from gpt_jax.runs.aligning import start
from gpt_jax.runs.aligning.policy_start import PolicyStart, value_config
from gpt_jax.runs.aligning.reward_model import reward_parameters
from gpt_jax.runs.pretrained import Pretrained, abstract_parameters
from gpt_jax.runs.recipe import schedule_and_optimizer
from gpt_jax.training.checkpoints import Checkpoints, restore_parameters
from gpt_jax.training.frozen import without_frozen
from gpt_jax.training.optimizers import make_optimizer
from gpt_jax.training.state import TrainState, create_state, initial_state

REFERENCE = "reference"  # in the workdir, what the KL is measured from, where it is not the policy's own base


def fresh_parameters(config: ConfigDict, head: bool, key: jax.Array) -> dict:
    """The parameters of policy and value function (see alignment/policy.py), drawn.

    Args:
      head: whether the policy bears a value head. It is 0 at first, as in lm-human-preferences.
    """
    model, adapters, value = model_config(None, **config.model), config.transfer.adapters, value_config(config)
    params = start.fresh_parameters(model, adapters, key)
    if value is not None:
        params["value"] = {"model": decoder.init(value, key), "head": zero_head(value)}
    elif head:
        params["head"] = zero_head(model)
    return params


def zero_head(model: ModelConfig) -> dict:
    """A head of one output, all 0."""
    return jax.tree.map(jnp.zeros_like, init_parameters(head_specs(model, 1), jax.random.key(0), jnp.float32))


def make_state(
    config: ConfigDict, params: dict, optimizer: optax.GradientTransformation, penalty: Penalty | None
) -> TrainState:
    """The state of step 0 with these parameters."""
    aux = {} if penalty is None else {"coefficient": jnp.float32(penalty.coefficient)}
    if config.train.average_decay:
        name = "adapters" if "adapters" in params else "model"
        aux["average"] = {name: jax.tree.map(jnp.copy, params[name])}
    return initial_state(params, optimizer).replace(aux=aux)


def make_policy_optimizer(config: ConfigDict, frozen) -> tuple[optax.Schedule, optax.GradientTransformation]:
    """Schedule and optimizer of the updates, whose rate is that of their iteration."""
    by_step, _ = schedule_and_optimizer(config, config.train.steps)
    updates = config.objective.epochs * config.objective.minibatches
    schedule = lambda count: by_step(count // updates)  # noqa: E731
    optimizer = make_optimizer(schedule=schedule, **config.optimizer)
    if "value" in config and config.value.peak is not None:
        ratio = config.value.peak / config.schedule.peak

        def scaled(updates: dict, _: dict | None = None) -> dict:
            factors = {name: ratio if name in ("head", "value") else 1.0 for name in updates}
            return {name: jax.tree.map(lambda x, f=factors[name]: x * f, room) for name, room in updates.items()}

        optimizer = optax.chain(optimizer, optax.stateless(scaled))
    return schedule, without_frozen(optimizer, frozen)


def first_state(
    config: ConfigDict,
    mesh: jax.sharding.Mesh,
    begins: PolicyStart,
    abstract: TrainState,
    draw: Callable[[jax.Array], dict],
    make: Callable[[dict], TrainState],
    workdir: Path,
) -> TrainState:
    """The state of step 0; what the KL is measured from is kept, unless it stays in the state beside adapters."""
    model = model_config(None, **config.model)
    given = {"model": begins.pretrained.parameters(mesh, model)}
    if not config.transfer.adapters.rank:
        if is_main_process():
            shutil.rmtree(workdir / REFERENCE, ignore_errors=True)
        reference = Checkpoints(workdir / REFERENCE, keep=1)
        step = jax.device_put(np.int32(0), NamedSharding(mesh, PartitionSpec()))
        reference.save(TrainState(step, given, opt_state=()))
        reference.close()
    if begins.value is not None:
        own = value_config(config)
        given["value"] = value_parameters(begins.value, mesh, own)

    def begin(given: dict) -> TrainState:
        params = draw(jax.random.key(config.seed))
        value = {"value": params["value"] | given["value"]} if "value" in given else {}
        return make(params | given | value)

    return create_state(begin, abstract, mesh, given)


def value_parameters(source: Pretrained, mesh: jax.sharding.Mesh, config: ModelConfig) -> dict:
    """What a value function of its own begins with: a reward model's decoder and head, or any other's decoder."""
    if source.recorded.get("run") == "reward":
        return reward_parameters(source, mesh, config)
    return {"model": source.parameters(mesh, config)}


def kept_reference(model: ModelConfig, mesh: jax.sharding.Mesh, workdir: Path) -> dict:
    """The decoder that the run began with."""
    return restore_parameters(workdir / REFERENCE, {"model": abstract_parameters(model, mesh)})["model"]
