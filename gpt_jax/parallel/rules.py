"""The sharding table: parameter path -> logical axes -> mesh axes. Nothing else says where an array lives.

A vocabulary that `tensor` does not divide (GPT-1's 40,478 over 4) is padded, but only by the compiler, and only inside
a program. What outlives a program (parameters, moments, checkpoints, exports) has V rows on every mesh, and is stored
by columns, over `tensor` and `fsdp`; `vocabulary_rows` turns columns into rows where logits are made. XLA then gives
each device ceil(V / tensor) rows, and itself keeps the filling out of every product, sum, maximum and gradient: in the
program's own sense there is no padded row that could win, train, or leave. The price is an all-to-all of the output
matrix forward and one of its gradient back, a quarter of the matrix a device over 4. A state with padded rows would
save them, and would have to be unpadded at every door: checkpoints and digests, export, import, new symbols.
"""

import functools
import math
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

# Logical axis -> the mesh axes it is divided over.
LOGICAL_TO_MESH = {
    "batch": ("data", "fsdp"),
    "group": ("data",),  # examples of the devices that fsdp joins, all of them on each
    "time": ("sequence",),
    "vocab": ("tensor",),
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "attention_heads": ("tensor", "sequence"),  # inside attention, where time is whole
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


def _partition_spec(
    shape: tuple[int, ...], axes: tuple[str | None, ...], mesh: jax.sharding.Mesh, *, padded: tuple[str, ...] = ()
) -> PartitionSpec:
    # `padded`: logical axes whose dimension is divided even where the parts cannot be equally large.
    if len(shape) != len(axes):
        raise ValueError(f"{len(axes)} logical axes {axes} for an array of shape {shape}.")
    spec = []
    for size, axis in zip(shape, axes, strict=True):
        names = _mesh_axes(mesh, axis)
        spec.append(names if names and (axis in padded or size % _parts(mesh, names) == 0) else None)
    return PartitionSpec(*spec)


def _mesh_axes(mesh: jax.sharding.Mesh, *axes: str | None) -> tuple[str, ...]:
    """The mesh axes of these logical axes that have more than one device."""
    return tuple(name for axis in axes for name in LOGICAL_TO_MESH[axis] if mesh.shape[name] > 1)


def _parts(mesh: jax.sharding.Mesh, names: tuple[str, ...]) -> int:
    return math.prod(mesh.shape[name] for name in names)


def _table_axes(shape: tuple[int, ...], mesh: jax.sharding.Mesh) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The mesh axes that the rows and the columns of a table of tokens [V, D] are stored over."""
    rows, columns = _mesh_axes(mesh, "vocab"), _mesh_axes(mesh, "embed")
    choices = ((rows, columns), ((), rows + columns), (rows, ()), ((), columns), ((), ()))
    return next(
        c for c in choices if all(size % _parts(mesh, names) == 0 for size, names in zip(shape, c, strict=True))
    )


def sharding(shape: tuple[int, ...], axes: tuple[str | None, ...], mesh: jax.sharding.Mesh) -> NamedSharding:
    """The sharding of an array of `shape` whose dimensions are the logical `axes`, where it outlives a program.

    All parts are equally large: a dimension that its mesh axes do not divide stays whole. The mesh axes of a vocabulary
    that stays whole are given to the columns.
    """
    if axes == ("vocab", "embed"):
        return NamedSharding(mesh, PartitionSpec(*(names or None for names in _table_axes(shape, mesh))))
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
    if axes == ("vocab", "embed"):
        return vocabulary_rows(x)
    return constrain(x, *(None if axis in STORED_ONLY else axis for axis in axes))


def _scatter_gradient(axes, _, gradient):
    mesh = _mesh_in_force()
    if mesh.size == 1:
        return (gradient,)
    stored = sharding(gradient.shape, axes, mesh).spec
    if axes == ("vocab", "embed") and stored[0] is None and _mesh_axes(mesh, "vocab"):
        gradient = constrain(gradient, "vocab", None)  # rows first, as they were multiplied with; columns to be stored
    return (jax.lax.with_sharding_constraint(gradient, stored),)  # a reduce-scatter; without it, an all-reduce


_gather.defvjp(lambda x, axes: (_gather(x, axes), None), _scatter_gradient)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Tells the compiler how an activation lies on the mesh in force (`jax.set_mesh`).

    A dimension that its mesh axes do not divide stays whole; but for a vocabulary, which the compiler pads.

    Raises:
      RuntimeError: when no mesh is set; a constraint that silently does nothing has cost people weeks.
    """
    mesh = _mesh_in_force()
    if mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, _partition_spec(x.shape, axes, mesh, padded=("vocab",)))


def parts(axis: str) -> int:
    """Over how many devices of the mesh in force the logical `axis` is divided."""
    mesh = _mesh_in_force()
    return _parts(mesh, _mesh_axes(mesh, axis))


def on_each_device(function: Callable[..., jax.Array], axes: tuple[str | None, ...], *arrays: jax.Array) -> jax.Array:
    """`function` of the part of `arrays` that a device holds, for kernels that the compiler cannot divide.

    Args:
      axes: the logical axes of each of the arrays, and of the result; of an array with fewer dimensions, the first.

    Raises:
      RuntimeError: when no mesh is set.
    """
    mesh = _mesh_in_force()
    if mesh.size == 1:
        return function(*arrays)
    specs = tuple(_partition_spec(x.shape, axes[: x.ndim], mesh) for x in arrays)
    # check_vma: kernels do not say of their results along which axes they differ.
    return jax.shard_map(function, in_specs=specs, out_specs=specs[0], check_vma=False)(*arrays)


def device_kind(mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh) -> str | None:
    """What the mesh consists of: `cpu`, `TPU v5 lite`, `NVIDIA H100 80GB HBM3`; None for a mesh of no devices."""
    device = mesh.abstract_mesh.abstract_device
    return None if device is None else device.device_kind


def look_up(table_VD: jax.Array, tokens_BT: jax.Array) -> jax.Array:
    """The rows of a table of tokens, [B, T, D].

    Each device reads the columns that it holds for all examples of its fsdp group, which then exchanges columns for
    examples. Left to itself, XLA brings the columns of the whole batch to every device where `data` stands beside
    `fsdp`.

    Raises:
      RuntimeError: when no mesh is set.
    """
    mesh = _mesh_in_force()
    (rows, columns), fsdp = _table_axes(table_VD.shape, mesh), _mesh_axes(mesh, "embed")
    if not set(columns) & set(fsdp):
        return table_VD[tokens_BT]
    batch_and_time = zip(tokens_BT.shape, ("batch", "time"), strict=True)
    divided = all(size % _parts(mesh, _mesh_axes(mesh, axis)) == 0 for size, axis in batch_and_time)
    if columns == fsdp and not rows and divided:
        return _look_up_columns(len(table_VD), table_VD, tokens_BT)
    return _exchange_columns(table_VD, tokens_BT)


def _exchange_columns(table_VD: jax.Array, tokens_BT: jax.Array) -> jax.Array:
    mesh = _mesh_in_force()
    columns, fsdp = _table_axes(table_VD.shape, mesh)[1], _mesh_axes(mesh, "embed")
    x_BTD = table_VD[tokens_BT]
    others = tuple(name for name in columns if name not in fsdp)
    for batch, names in (("group", columns), ("batch", others)):
        spec = _partition_spec(x_BTD.shape, (batch, "time", None), mesh)
        x_BTD = jax.lax.with_sharding_constraint(x_BTD, PartitionSpec(*spec[:2], names or None))
    return x_BTD


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _look_up_columns(vocabulary, table_VD, tokens_BT):
    """The same where fsdp alone divides the table; its gradient said step by step, since XLA would sum whole tables on
    64 devices."""
    return _exchange_columns(table_VD, tokens_BT)


def _add_to_columns(vocabulary, tokens_BT, gradient_BTD):
    mesh = _mesh_in_force()
    fsdp, time = _mesh_axes(mesh, "embed"), _mesh_axes(mesh, "time")
    group = tuple(name for name in _mesh_axes(mesh, "batch") if name not in fsdp)
    rows = PartitionSpec(_mesh_axes(mesh, "batch"), time or None)

    def on_each(tokens_BT: jax.Array, gradient_BTD: jax.Array) -> jax.Array:
        tokens_GT = jax.lax.all_gather(tokens_BT, fsdp, tiled=True)  # of the devices that fsdp joins
        gradient_GTC = jax.lax.all_to_all(gradient_BTD, fsdp, split_axis=2, concat_axis=0, tiled=True)
        table_VC = jnp.zeros((vocabulary, gradient_GTC.shape[-1]), gradient_BTD.dtype).at[tokens_GT].add(gradient_GTC)
        return jax.lax.psum(table_VC, (*group, *time))

    summed = jax.shard_map(on_each, in_specs=(rows, rows), out_specs=PartitionSpec(None, fsdp), check_vma=False)
    return summed(tokens_BT, gradient_BTD), None


_look_up_columns.defvjp(lambda vocabulary, *inputs: (_exchange_columns(*inputs), inputs[1]), _add_to_columns)


def vocabulary_rows(table_VD: jax.Array) -> jax.Array:
    """A table of tokens [V, D] as the products with it want it: rows over `tensor`, columns whole.

    Raises:
      RuntimeError: when no mesh is set.
    """
    mesh = _mesh_in_force()
    rows, columns = _mesh_axes(mesh, "vocab"), _table_axes(table_VD.shape, mesh)[1]
    if set(rows) & set(columns):
        # Stored by columns. In two steps, fsdp's share first, since XLA would bring the whole table to every device if
        # it were asked for both at once.
        table_VD = jax.lax.with_sharding_constraint(table_VD, PartitionSpec(None, rows))
    return constrain(table_VD, "vocab", None)


def _mesh_in_force() -> jax.sharding.AbstractMesh:
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        raise RuntimeError("no mesh in force: wrap the call in `with jax.set_mesh(mesh):`.")
    return mesh
