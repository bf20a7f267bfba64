"""Low-rank adapters: the decoder stays as it is, and learns through small matrices beside its kernels (LoRA).

Hu et al. 2021, §4.1: W + (alpha / r) · A B, with A [in, r] drawn and B [r, out] zero, so that step 0 is the decoder's.
"""

import math

import jax
import jax.numpy as jnp

from gpt_jax.errors import UserError, did_you_mean
from gpt_jax.models.config import ModelConfig
from gpt_jax.models.decoder import parameter_specs
from gpt_jax.models.parameters import ParameterSpec


def adapter_specs(config: ModelConfig, rank: int, targets: tuple[str, ...]) -> dict:
    """Shapes and initializers of the adapters of all layers' kernels named `targets`: `query`, `value`, `up`, ...

    `lora_a` [L, in, rank] N(0, 1 / in), `lora_b` [L, rank, out] 0, in a tree shaped like the decoder's.

    Raises:
      UserError: a kernel that the layers do not have, or none at all.
    """
    found: set[str] = set()

    def beside(specs: dict) -> dict:
        """The adapters below one room of the decoder's tree."""
        rooms = {}
        for name, room in specs.items():
            if not isinstance(room, dict):
                continue
            if "kernel" not in room:
                if below := beside(room):
                    rooms[name] = below
                continue
            found.add(name)
            if name in targets:
                layers, fan_in, fan_out = room["kernel"].shape
                rooms[name] = {
                    "lora_a": ParameterSpec((layers, fan_in, rank), 1 / math.sqrt(fan_in)),
                    "lora_b": ParameterSpec((layers, rank, fan_out)),
                }
        return rooms

    specs = beside(parameter_specs(config)["layers"])
    unknown = next((name for name in targets if name not in found), None)
    if unknown is not None or not targets:
        raise UserError(
            f"transfer.adapters.targets: {unknown!r} is no kernel of this model.{did_you_mean(str(unknown), found)} "
            f"Expected some of {', '.join(sorted(found))}."
        )
    return {"layers": specs}


def with_adapters(params: dict, alpha: float) -> dict:
    """A tree whose `model` computes with its `adapters`, where there are any; what stands beside them is left alone."""
    if "adapters" not in params:
        return params
    beside = {name: room for name, room in params.items() if name != "adapters"}
    return beside | {"model": merge_adapters(params["model"], params["adapters"], alpha)}


def merge_adapters(params: dict, adapters: dict, alpha: float) -> dict:
    """The decoder's parameters with every adapter added to its kernel; no gradient flows into the decoder's own.

    Args:
      adapters: the tree of `adapter_specs`; alpha: their products are scaled by alpha / rank.
    """
    params = jax.lax.stop_gradient(params)

    def added(room: dict, own: dict) -> dict:
        if "lora_a" not in own:
            return room | {name: added(room[name], below) for name, below in own.items()}
        a, b = own["lora_a"], own["lora_b"]
        update = jnp.einsum("lir,lro->lio", a, b) * (alpha / a.shape[-1])
        return room | {"kernel": room["kernel"] + update.astype(room["kernel"].dtype)}

    return added(params, adapters)
