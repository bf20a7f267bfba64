"""The sharding table: parameter path -> logical axes -> mesh axes. Nothing else says where an array lives."""

import functools
import re

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

# Logical axis -> the mesh axes it is divided over.
LOGICAL_TO_MESH = {
    "batch": ("data", "fsdp"),
    "time": ("sequence",),
    "vocab": ("tensor",),
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "mlp": ("tensor",),
    "units": ("fsdp",),  # of an LSTM; over `tensor`, each step of its recurrence would wait for the other devices
    "layers": (),
    None: (),
}

# Axes along which parameters are divided only to be stored (fully sharded data parallelism); whoever multiplies by them
# has them whole.
STORED_ONLY = ("embed", "units")

# Regex on the end of a parameter's path -> logical axes. The optimizer's moments follow, since their paths end with
# their parameter's. Gains and biases along the model width are small and stay whole on every device: dividing them
# would buy a collective for a few kilobytes.
PARAMETER_RULES = (
    (r"embedding/tokens", ("vocab", "embed")),
    (r"embedding/positions", (None, "embed")),
    (r"layers/attention/(query|key|value)/kernel", ("layers", "embed", "heads")),
    (r"layers/attention/(query|key|value)/bias", ("layers", "heads")),
    (r"layers/attention/output/kernel", ("layers", "heads", "embed")),
    (r"layers/mlp/(up|gate)/kernel", ("layers", "embed", "mlp")),
    (r"layers/mlp/(up|gate)/bias", ("layers", "mlp")),
    (r"layers/mlp/down/kernel", ("layers", "mlp", "embed")),
    (r"layers/(attention/output|mlp/down)/bias", ("layers", None)),
    (r"layers/(attention_norm|mlp_norm)/(scale|bias)", ("layers", None)),
    (r"layers/lstm/input/kernel", ("layers", "embed", None)),
    (r"layers/lstm/(recurrent|output)/kernel", ("layers", "units", None)),
    (r"layers/lstm/input/bias", ("layers", None)),
    (r"final_norm/(scale|bias)", (None,)),
    (r"unembedding/tokens", ("vocab", "embed")),
    (r"layers/attention/(query|key|value)/lora_a", ("layers", "embed", None)),
    (r"layers/attention/(query|key|value)/lora_b", ("layers", None, "heads")),
    (r"layers/attention/output/lora_a", ("layers", "heads", None)),
    (r"layers/mlp/(up|gate)/lora_a", ("layers", "embed", None)),
    (r"layers/mlp/(up|gate)/lora_b", ("layers", None, "mlp")),
    (r"layers/mlp/down/lora_a", ("layers", "mlp", None)),
    (r"layers/(attention/output|mlp/down)/lora_b", ("layers", None, "embed")),
    (r"layers/lstm/input/lora_a", ("layers", "embed", None)),
    (r"layers/lstm/(recurrent|output)/lora_a", ("layers", "units", None)),
    (r"layers/lstm/(input|recurrent|output)/lora_b", ("layers", None, None)),
    (r"head/kernel", ("embed", None)),
    (r"head/bias", (None,)),
)


def path_string(path: tuple) -> str:
    """A key path of jax.tree_util as text: `layers/mlp/up/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def logical_axes(path: str) -> tuple[str | None, ...]:
    """The logical axes of the parameter (or optimizer moment) at `path`.

    Raises:
      ValueError: when not exactly one row of the table speaks of the path.
    """
    rows = [axes for pattern, axes in PARAMETER_RULES if re.search(rf"(^|/){pattern}$", path)]
    if len(rows) != 1:
        raise ValueError(f"{len(rows)} rows of PARAMETER_RULES match the parameter {path!r}; exactly one must.")
    return rows[0]


def _partition_spec(shape: tuple[int, ...], axes: tuple[str | None, ...], mesh: jax.sharding.Mesh) -> PartitionSpec:
    if len(shape) != len(axes):
        raise ValueError(f"{len(axes)} logical axes {axes} for an array of shape {shape}.")
    spec = []
    for size, axis in zip(shape, axes, strict=True):
        names = tuple(name for name in LOGICAL_TO_MESH[axis] if mesh.shape[name] > 1)
        count = 1
        for name in names:
            count *= mesh.shape[name]
        # A dimension that the mesh axis does not divide (a vocabulary of 40,478 over 4) stays whole.
        spec.append(names if names and size % count == 0 else None)
    return PartitionSpec(*spec)


def sharding(shape: tuple[int, ...], axes: tuple[str | None, ...], mesh: jax.sharding.Mesh) -> NamedSharding:
    """The sharding of an array of `shape` whose dimensions are the logical `axes`."""
    return NamedSharding(mesh, _partition_spec(shape, axes, mesh))


def tree_shardings(tree, mesh: jax.sharding.Mesh):
    """Shardings for a tree of parameters, or a training state that contains such trees.

    Scalars (step counts and the like) are replicated; every other leaf is found in the table by its path.

    Args:
      tree: arrays or `jax.ShapeDtypeStruct`s.
    """

    def leaf_sharding(path, leaf):
        axes = logical_axes(path_string(path)) if leaf.ndim else ()
        return sharding(leaf.shape, axes, mesh)

    return jax.tree_util.tree_map_with_path(leaf_sharding, tree)


def gather(x: jax.Array, axes: tuple[str | None, ...], dtype: jnp.dtype) -> jax.Array:
    """A parameter as a matrix product takes it: in `dtype`, and whole along the axes that only store it divided.

    Said aloud because the compiler, left to itself, divides the products instead and sends pieces of weights around in
    loops of small ones. The cast comes first, so that the narrow numbers travel; the gradient goes back divided.
    """
    return _gather(x.astype(dtype), axes)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gather(x, axes):
    return constrain(x, *(None if axis in STORED_ONLY else axis for axis in axes))


_gather.defvjp(
    lambda x, axes: (_gather(x, axes), None),
    lambda axes, _, gradient: (constrain(gradient, *axes),),  # a reduce-scatter; without it, an all-reduce
)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Tells the compiler how an activation lies on the mesh in force (`jax.set_mesh`).

    Raises:
      RuntimeError: when no mesh is set; a constraint that silently does nothing has cost people weeks.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        raise RuntimeError("constrain() outside a mesh: wrap the call in `with jax.set_mesh(mesh):`.")
    if mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, _partition_spec(x.shape, axes, mesh))
