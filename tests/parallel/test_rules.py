"""The sharding table and the mesh."""

import jax
import pytest
from jax.sharding import PartitionSpec as P

from gpt_jax.errors import UserError
from gpt_jax.models import decoder
from gpt_jax.models.adapters import adapter_specs
from gpt_jax.models.presets import PRESETS, model_config
from gpt_jax.parallel.mesh import make_mesh
from gpt_jax.parallel.rules import constrain, logical_axes, path_string, tree_shardings
from gpt_jax.training.optimizers import make_optimizer
from gpt_jax.training.state import abstract_state, state_builder


def parameter_paths():
    """Every parameter of every preset, and of a member with all that presets leave out; every adapter of two."""
    llama = dict(norm="rmsnorm", gated_mlp=True, positions="rotary", biases="none", tied_output=False)
    configs = [model_config(name) for name in PRESETS] + [model_config("books", **llama)]
    attention, mlp = ("query", "key", "value", "output"), ("up", "gate", "down")
    trees = [decoder.parameter_specs(config) for config in configs]
    trees.append(adapter_specs(configs[-1], 2, attention + mlp))
    trees.append(adapter_specs(model_config("laptop-lstm"), 2, ("input", "recurrent", "output")))
    paths = set()
    for specs in trees:
        is_spec = lambda x: isinstance(x, decoder.ParameterSpec)  # noqa: E731
        paths |= {
            (path_string(path), len(spec.shape))
            for path, spec in jax.tree_util.tree_leaves_with_path(specs, is_leaf=is_spec)
        }
    return sorted(paths)


@pytest.mark.parametrize(("path", "dimensions"), parameter_paths())
def test_every_parameter_matches_exactly_one_row(path, dimensions):
    assert len(logical_axes(path)) == dimensions
    assert logical_axes(f"opt_state/1/mu/{path}") == logical_axes(path)  # moments follow their parameter


def test_a_parameter_without_a_row_is_an_error():
    with pytest.raises(ValueError, match="0 rows.*layers/mlp/sideways/kernel"):
        logical_axes("layers/mlp/sideways/kernel")


def test_optimizer_state_lies_where_its_parameter_lies():
    mesh = make_mesh({"fsdp": 4, "tensor": 2})
    config = model_config("books")
    build = state_builder(lambda key: decoder.init(config, key), make_optimizer("adamw", lambda count: 1e-3), 0)
    state = abstract_state(build, mesh)
    by_path = {path_string(path): leaf.sharding.spec for path, leaf in jax.tree_util.tree_leaves_with_path(state)}
    moments = [path for path in by_path if "/mu/" in path or "/nu/" in path]
    assert len(moments) == 2 * len(jax.tree.leaves(state.params))
    for path in moments:
        assert by_path[path] == by_path["params/" + path.split("/mu/")[-1].split("/nu/")[-1]]
    assert by_path["params/layers/mlp/up/kernel"] == P(None, "fsdp", "tensor")
    assert by_path["params/embedding/tokens"] == P("tensor", "fsdp")


def test_a_dimension_that_does_not_divide_stays_whole():
    mesh = make_mesh({"data": 2, "tensor": 4})
    shape = {"mlp": {"up": {"bias": jax.ShapeDtypeStruct((2, 30), "float32")}}}
    assert tree_shardings({"layers": shape}, mesh)["layers"]["mlp"]["up"]["bias"].spec == P(None, None)


@pytest.mark.parametrize(
    ("rows", "columns", "sizes", "spec"),
    [
        (40_480, 768, {"fsdp": 2, "tensor": 4}, P("tensor", "fsdp")),
        (40_478, 768, {"fsdp": 2, "tensor": 4}, P(None, ("tensor", "fsdp"))),
        (40_478, 768, {"data": 2, "tensor": 4}, P(None, "tensor")),
        (40_478, 768, {"fsdp": 8}, P(None, "fsdp")),
        (40_478, 20, {"fsdp": 2, "tensor": 4}, P(None, "fsdp")),
        (40_478, 21, {"fsdp": 2, "tensor": 4}, P(None, None)),
        (40_480, 21, {"fsdp": 2, "tensor": 4}, P("tensor", None)),
    ],
)
def test_a_vocabulary_that_tensor_does_not_divide_is_stored_by_columns(rows, columns, sizes, spec):
    shapes = {"embedding": {"tokens": jax.ShapeDtypeStruct((rows, columns), "float32")}}
    assert tree_shardings(shapes, make_mesh(sizes))["embedding"]["tokens"].spec == spec


def test_constraints_reach_the_compiler():
    mesh = make_mesh({"data": 4, "tensor": 2})
    config = model_config("books", num_layers=2)
    with jax.set_mesh(mesh):
        params = jax.eval_shape(lambda: decoder.init(config, jax.random.key(0)))
        ids = jax.ShapeDtypeStruct((8, 16), "int32")
        text = jax.jit(lambda p, x: decoder.Decoder(config).apply({"params": p}, x)).lower(params, ids).as_text()
    # embedding, output matrix, logits; of each of two layers q, k, v, two residual sums, the MLP's hidden layer, and
    # six kernels
    assert text.count("sdy.sharding_constraint") == 3 + 2 * (6 + 6)


def test_a_constraint_outside_a_mesh_is_an_error_not_a_no_op():
    with pytest.raises(RuntimeError, match="set_mesh"):
        constrain(jax.numpy.zeros((2, 2)), "batch", None)


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"data": 3}, "data=3, fsdp=1, tensor=1, sequence=1 needs 3 devices, and there are 8"),
        ({"data": -1, "tensor": 3}, "8 devices cannot be divided by 3"),
        ({"data": -1, "fsdp": -1}, "one of them may be -1"),
        ({"data": 0}, "positive"),
    ],
)
def test_a_mesh_that_does_not_fit_the_devices_is_refused(sizes, words):
    with pytest.raises(UserError, match=words):
        make_mesh(sizes)


def test_minus_one_takes_the_devices_that_are_left():
    assert dict(make_mesh({"data": -1, "tensor": 2}).shape) == {"data": 4, "fsdp": 1, "tensor": 2, "sequence": 1}
