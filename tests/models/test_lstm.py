"""The LSTM core: torch's values, its gradient, its causality, its sizes, what does not go with it."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_jax.errors import UserError
from gpt_jax.models import decoder, lstm
from gpt_jax.models.config import ModelConfig
from gpt_jax.models.flops import training_flops_per_token
from gpt_jax.models.parameters import ParameterSpec
from gpt_jax.models.presets import adapt, model_config
from gpt_jax.parallel.mesh import make_mesh, single_device_mesh
from gpt_jax.parallel.rules import logical_axes, path_string, sharding, tree_shardings
from gpt_jax.training.losses import language_model_loss
from gpt_jax.training.optimizers import decay_mask

TINY = ModelConfig(
    vocab_size=31, context_length=12, num_layers=1, num_heads=1, embed_dim=16, core="lstm", lstm_units=24,
    positions="none",
)  # fmt: skip
DEEP = dataclasses.replace(TINY, num_layers=3)
MEMBERS = {"one layer": TINY, "three layers": DEEP}
GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "lstm.npz"


def tokens(config: ModelConfig, batch: int = 2, time: int = 12, seed: int = 2) -> jax.Array:
    return jax.random.randint(jax.random.key(seed), (batch, time), 0, config.vocab_size)


def spread_parameters(config: ModelConfig, std: float = 0.4) -> dict:
    """Parameters of large spread: fresh ones keep the gates nearly open, and mistakes hide."""
    leaves, tree = jax.tree.flatten(decoder.init(config, jax.random.key(0)))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return tree.unflatten([x + std * jax.random.normal(k, x.shape, x.dtype) for x, k in zip(leaves, keys, strict=True)])


tiny_parameters = functools.cache(lambda: spread_parameters(TINY))
hidden_states = jax.jit(decoder.hidden_states, static_argnums=1)


def mean_loss(params, config, ids, key=None):
    batch = {"tokens": ids[:, :-1], "targets": ids[:, 1:], "loss_mask": jnp.ones(ids[:, 1:].shape)}
    nats, count = language_model_loss(params, config, batch, key)
    return nats / count


def golden_parameters(values: dict, kind: str) -> dict:
    """Torch's parameters (or their gradients) as our tree; the gradients of its two biases are equal."""

    def of(name: str) -> np.ndarray:
        return values[f"{kind}/{name}"]

    def stack(name: str) -> np.ndarray:
        return np.stack([of(f"layers.{layer}.{name}") for layer in range(2)])

    second_bias = 0 if kind == "gradient" else stack("lstm.bias_hh_l0")
    return {
        "embedding": {"tokens": of("embedding.weight")},
        "layers": {
            "lstm": {
                "input": {
                    "kernel": stack("lstm.weight_ih_l0").swapaxes(1, 2),
                    "bias": stack("lstm.bias_ih_l0") + second_bias,
                },
                "recurrent": {"kernel": stack("lstm.weight_hh_l0").swapaxes(1, 2)},
                "output": {"kernel": stack("output.weight").swapaxes(1, 2)},
            }
        },
        "final_norm": {"scale": of("norm.weight"), "bias": of("norm.bias")},
    }


def test_states_logits_loss_and_gradients_are_torchs():
    with np.load(GOLDEN) as stored:
        values = dict(stored)
    with jax.enable_x64(True), jax.set_mesh(single_device_mesh()):
        config = dataclasses.replace(
            TINY,
            vocab_size=23,
            num_layers=2,
            embed_dim=8,
            lstm_units=12,
            compute_dtype="float64",
            param_dtype="float64",
        )
        params = jax.tree.map(jnp.asarray, golden_parameters(values, "parameter"))
        ids = jnp.asarray(values["tokens"], jnp.int32)
        first = jax.tree.map(lambda x: x[0], params["layers"]["lstm"])
        states = lstm.states_from_zero(decoder.embed(params, config, ids), first)
        np.testing.assert_allclose(states, values["states"], rtol=0, atol=1e-10)
        logits = decoder.Decoder(config).apply({"params": params}, ids)
        np.testing.assert_allclose(logits, values["logits"], rtol=0, atol=1e-10)

        def loss(params):
            batch = {"tokens": ids, "targets": values["targets"], "loss_mask": jnp.ones(ids.shape)}
            nats, count = language_model_loss(params, config, batch)
            return nats / count

        found, gradients = jax.jit(jax.value_and_grad(loss))(params)
        np.testing.assert_allclose(found, values["loss"], rtol=1e-10)
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-10),
            gradients, golden_parameters(values, "gradient"),
        )  # fmt: skip


def plain_recurrence(inputs_TBG, kernel_UG):
    """The formula and nothing else, for autodiff."""
    batch, units = inputs_TBG.shape[1], kernel_UG.shape[0]

    def step(carry, inputs_BG):
        state, cell = carry
        i, f, g, o = jnp.split(inputs_BG + state @ kernel_UG, 4, axis=-1)
        cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
        state = jax.nn.sigmoid(o) * jnp.tanh(cell)
        return (state, cell), state

    zeros = jnp.zeros((batch, units), inputs_TBG.dtype)
    return jax.lax.scan(step, (zeros, zeros), inputs_TBG)[1]


@functools.cache
def compiled_gradients(recurrence):
    """A function (inputs, kernel, weights) -> gradients of a sum over what becomes of all the states."""
    return jax.jit(jax.grad(lambda inputs, kernel, w: jnp.sum(w * jnp.sin(recurrence(inputs, kernel))), (0, 1)))


@settings(deadline=None, max_examples=10)
@given(shape=st.sampled_from([(1, 1, 1), (6, 2, 5)]), seed=st.integers(0, 10**6))
def test_the_written_gradient_is_autodiffs(shape, seed):
    time, batch, units = shape
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(seed), 3)
        inputs = 2 * jax.random.normal(keys[0], (time, batch, 4 * units))
        kernel = jax.random.normal(keys[1], (units, 4 * units))
        weights = jax.random.normal(keys[2], (time, batch, units))
        pairs = (compiled_gradients(f)(inputs, kernel, weights) for f in (lstm.recurrence, plain_recurrence))
        for found, expected in zip(*pairs, strict=True):
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_no_loop_writes_a_gradient_of_the_kernel_at_every_step():
    inputs, kernel = jnp.ones((7, 2, 12)), jnp.ones((3, 12))
    program = jax.make_jaxpr(jax.grad(lambda *xs: lstm.recurrence(*xs).sum(), (0, 1)))(inputs, kernel)
    loops = [equation for equation in program.eqns if equation.primitive.name == "scan"]
    assert len(loops) == 2  # there and back
    written = {variable.aval.shape for loop in loops for variable in loop.outvars}
    assert (7, 2, 12) in written and not any(shape[-2:] == (3, 12) for shape in written)


@pytest.mark.parametrize("config", MEMBERS.values(), ids=MEMBERS)
def test_no_position_sees_a_later_one(config, one_device):
    params, time = spread_parameters(config), config.context_length

    def outputs_by_time(inputs_TD):
        embedding = {"tokens": params["embedding"]["tokens"].at[:time].set(inputs_TD)}
        hidden = decoder.hidden_states(params | {"embedding": embedding}, config, jnp.arange(time)[None])
        return jnp.sum(hidden[0] * jnp.arange(1, config.embed_dim + 1), axis=-1)

    influence_TS = np.abs(jax.jacobian(outputs_by_time)(params["embedding"]["tokens"][:time])).max(axis=-1)
    earlier = np.tril(np.ones((time, time), bool))
    assert (influence_TS[~earlier] == 0).all() and (influence_TS[earlier] > 0).all()


@settings(deadline=None, max_examples=8)
@given(length=st.integers(1, 11), filler=st.integers(0, 30))
def test_padding_at_the_right_end_changes_nothing_before_it(length, filler):
    with jax.set_mesh(single_device_mesh()):
        params, ids = tiny_parameters(), tokens(TINY)
        padded = hidden_states(params, TINY, ids.at[:, length:].set(filler))
        np.testing.assert_array_equal(padded[:, :length], hidden_states(params, TINY, ids)[:, :length])
        np.testing.assert_allclose(padded[:, :length], hidden_states(params, TINY, ids[:, :length]), atol=1e-5)


def test_every_sequence_begins_with_an_empty_state(one_device):
    params, ids = spread_parameters(TINY), tokens(TINY, batch=3)
    together = decoder.hidden_states(params, TINY, ids)
    for row in range(3):
        np.testing.assert_allclose(decoder.hidden_states(params, TINY, ids[row : row + 1])[0], together[row], atol=1e-5)


def test_parameters_are_as_many_as_the_formula_says(one_device):
    V, D, U, L = 31, 16, 24, 3
    expected = V * D + L * (D * 4 * U + U * 4 * U + 4 * U + U * D) + 2 * D
    assert decoder.parameter_count(DEEP) == expected
    assert sum(x.size for x in jax.tree.leaves(decoder.init(DEEP, jax.random.key(0)))) == expected
    without_units = dataclasses.replace(DEEP, lstm_units=None)
    assert without_units.lstm_width == 4 * D


def test_presets_have_the_papers_size_and_laptops():
    paper, ours = model_config("lstm"), model_config("laptop-lstm")
    assert (paper.num_layers, paper.lstm_width) == (1, 2048)
    assert decoder.parameter_count(paper) == 55_738_368
    for name in ("vocab_size", "context_length", "embed_dim", "dropout", "norm", "init_std"):
        assert getattr(paper, name) == getattr(model_config("gpt1"), name)
    assert decoder.parameter_count(ours) == 1_303_104
    laptop = model_config("laptop")
    assert decoder.parameter_count(ours) == pytest.approx(decoder.parameter_count(laptop), rel=0.02)
    for name in ("vocab_size", "context_length", "embed_dim", "norm", "final_norm"):
        assert getattr(ours, name) == getattr(laptop, name)


def test_a_fresh_forget_gate_is_open_and_kernels_have_the_published_spread(one_device):
    config = dataclasses.replace(DEEP, embed_dim=128, lstm_units=192)
    layer = decoder.init(config, jax.random.key(0))["layers"]["lstm"]
    i, f, g, o = np.split(np.asarray(layer["input"]["bias"]), 4, axis=-1)
    assert (f == 1).all() and not np.any([i, g, o])
    for name in ("input", "recurrent", "output"):
        assert float(layer[name]["kernel"].std()) == pytest.approx(1 / np.sqrt(3 * 192), rel=0.01)


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param({"data": 4, "fsdp": 2}, marks=pytest.mark.slow),
        pytest.param({"fsdp": 4, "tensor": 2}, marks=pytest.mark.slow),
        pytest.param({"data": 2, "tensor": 2, "sequence": 2}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_every_mesh_gives_one_devices_loss_and_gradients(sizes):
    config = dataclasses.replace(DEEP, vocab_size=32, num_layers=2, dropout=0.2)
    ids, key = tokens(config, batch=8), jax.random.key(4)
    targets = jnp.roll(ids, 1, axis=1)

    def loss(params, ids, targets):
        batch = {"tokens": ids, "targets": targets, "loss_mask": jnp.ones(ids.shape)}
        return language_model_loss(params, config, batch, key)[0]

    def on(mesh):
        with jax.set_mesh(mesh):
            params = spread_parameters(config)
            shardings = tree_shardings(params, mesh)
            params = jax.device_put(params, shardings)
            rows = sharding(ids.shape, ("batch", "time"), mesh)
            return params, jax.jit(jax.value_and_grad(loss), out_shardings=(None, shardings))(
                params, *jax.device_put((ids, targets), rows)
            )

    params, found = on(make_mesh(sizes))
    _, expected = on(single_device_mesh())
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-4, atol=2e-4), found, expected)
    kernel = params["layers"]["lstm"]["recurrent"]["kernel"]
    assert kernel.size == kernel.addressable_shards[0].data.size * sizes.get("fsdp", 1)


def test_every_parameter_matches_exactly_one_row():
    specs = decoder.parameter_specs(dataclasses.replace(DEEP, tied_output=False))
    leaves = jax.tree_util.tree_leaves_with_path(specs, is_leaf=lambda leaf: isinstance(leaf, ParameterSpec))
    assert len(leaves) == 8
    for path, spec in leaves:
        assert len(logical_axes(path_string(path))) == len(spec.shape)


@pytest.mark.slow
def test_float32_stays_near_float64_and_bfloat16_near_both():
    with jax.enable_x64(True), jax.set_mesh(single_device_mesh()):
        params, ids = spread_parameters(DEEP), tokens(DEEP)

        def loss_and_gradients(**fields):
            config = dataclasses.replace(DEEP, **fields)
            own = jax.tree.map(lambda x: x.astype(config.param_dtype), params)
            loss, gradients = jax.jit(jax.value_and_grad(lambda params: mean_loss(params, config, ids)))(own)
            assert {str(x.dtype) for x in jax.tree.leaves(gradients)} == {config.param_dtype}
            return loss, jnp.concatenate([x.ravel() for x in jax.tree.leaves(gradients)])

        expected, direction = loss_and_gradients(compute_dtype="float64", param_dtype="float64")
        loss, gradients = loss_and_gradients()
        np.testing.assert_allclose(loss, expected, rtol=1e-5)
        assert jnp.linalg.norm(gradients - direction) < 1e-5 * jnp.linalg.norm(direction)
        loss, gradients = loss_and_gradients(compute_dtype="bfloat16")
        np.testing.assert_allclose(loss, expected, rtol=0.03)
        cosine = gradients @ direction / jnp.linalg.norm(gradients) / jnp.linalg.norm(direction)
        assert cosine > 0.99


def test_the_cell_does_not_lose_what_bfloat16_would():
    """An open cell that is fed the same small number 512 times holds their sum; in bfloat16 it would stop at a few."""
    closed, open_ = -30.0, 30.0
    inputs_G = jnp.array([open_, open_, 0.001, closed], jnp.bfloat16)
    last_G = jnp.array([closed, open_, 0.0, open_], jnp.bfloat16)
    inputs = jnp.concatenate([jnp.tile(inputs_G, (512, 1, 1)), last_G[None, None]])
    states = lstm.recurrence(inputs, jnp.zeros((1, 4), jnp.bfloat16))
    assert float(states[-1, 0, 0]) == pytest.approx(np.tanh(512 * 0.001), rel=0.01)


@pytest.mark.parametrize("fields", [dict(scan_layers=True), dict(remat="block"), dict(attention_block=4)], ids=str)
def test_how_the_layers_run_changes_nothing(fields, one_device):
    config = dataclasses.replace(DEEP, dropout=0.2)
    params, ids, key = spread_parameters(config), tokens(config), jax.random.key(3)
    one, other = (
        jax.jit(jax.value_and_grad(mean_loss), static_argnums=1)(params, own, ids, key)
        for own in (config, dataclasses.replace(config, **fields))
    )
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), one, other)


def test_layers_after_each_other_add_to_what_they_are_given(one_device):
    params, ids = spread_parameters(DEEP), tokens(DEEP)
    silent = jax.tree.map(jnp.copy, params)
    silent["layers"]["lstm"]["output"]["kernel"] *= 0
    plain = decoder.layers.norm(decoder.embed(params, DEEP, ids), params["final_norm"], DEEP)
    np.testing.assert_allclose(decoder.hidden_states(silent, DEEP, ids), plain, atol=1e-6)


@pytest.mark.parametrize("place", ["embedding", "residual"])
def test_each_place_of_dropout_acts_alone(place, one_device):
    config = dataclasses.replace(TINY, **{f"{place}_dropout": 0.5})
    params, ids = spread_parameters(TINY), tokens(TINY)
    hidden = decoder.hidden_states
    plain, key = hidden(params, TINY, ids), jax.random.key(0)
    assert not np.allclose(hidden(params, config, ids, key), plain, atol=0.1)
    np.testing.assert_array_equal(hidden(params, config, ids), plain)  # no key: off
    np.testing.assert_array_equal(hidden(params, config, ids, key), hidden(params, config, ids, key))


def test_matrices_are_decayed_and_biases_are_not(one_device):
    decayed = decay_mask(decoder.init(DEEP, jax.random.key(0)))
    layer = decayed["layers"]["lstm"]
    assert decayed["embedding"]["tokens"] and all(layer[name]["kernel"] for name in ("input", "recurrent", "output"))
    assert not layer["input"]["bias"] and not any(decayed["final_norm"].values())


def test_a_token_costs_six_flops_a_weight_and_no_attention():
    V, D, U, L = 31, 16, 24, 3
    weights = V * D + L * (D * 4 * U + U * 4 * U + U * D)
    assert training_flops_per_token(DEEP, 12) == training_flops_per_token(DEEP, 6) == 6 * weights


def test_training_lowers_the_loss(one_device):
    config = dataclasses.replace(TINY, context_length=16)
    ids = (3 * jnp.arange(17) + tokens(config, batch=8, time=1)) % config.vocab_size  # the last token says the next
    optimizer = optax.adam(1e-2)
    params = decoder.init(config, jax.random.key(0))
    state = optimizer.init(params)

    @jax.jit
    def step(params, state):
        loss, gradients = jax.value_and_grad(mean_loss)(params, config, ids)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss

    losses = []
    for _ in range(60):
        params, state, loss = step(params, state)
        losses.append(float(loss))
    assert abs(losses[0] - np.log(31)) < 0.2 and losses[-1] < 0.5


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (dict(positions="learned"), ["positions='learned'", "model.positions=none"]),
        (dict(positions="rotary"), ["positions='rotary'", "model.positions=none"]),
        (dict(attention_pattern="alternating", attention_window=4), ["attention_pattern='alternating'", "preset lstm"]),
        (dict(gated_mlp=True, biases="none"), ["gated_mlp=True", "biases='none'"]),
        (dict(positions_in_softmax=True), ["positions_in_softmax=True"]),
        (dict(lstm_units=0), ["model.lstm_units=0", "at least 1"]),
        (dict(core="transformer"), ["lstm_units=24", "model.core=lstm"]),
        (dict(core="gru"), ["model.core='gru'", "transformer, lstm"]),
    ],
)
def test_fields_that_do_not_go_together_are_named(fields, words):
    with pytest.raises(UserError) as error:
        dataclasses.replace(TINY, **fields)
    assert all(word in str(error.value) for word in words), error.value


def test_weights_of_other_units_or_another_core_are_refused():
    assert adapt(TINY, dropout=0.1, context_length=99).context_length == 99  # no table of positions ends
    with pytest.raises(UserError, match=r"lstm_units=8 \(the weights have 24\)"):
        adapt(TINY, lstm_units=8)
    transformer = dataclasses.replace(TINY, core="transformer", lstm_units=None)
    with pytest.raises(UserError, match=r"core='lstm' \(the weights have 'transformer'\)"):
        adapt(transformer, core="lstm")


def test_a_transformer_without_positions_does_not_know_the_order(one_device):
    config = dataclasses.replace(TINY, core="transformer", lstm_units=None, num_heads=4)
    params, ids = spread_parameters(config), tokens(config)
    assert "positions" not in params["embedding"]
    shuffled = ids.at[:, :-1].set(ids[:, :-1][:, ::-1])
    last = [decoder.hidden_states(params, config, x)[:, -1] for x in (ids, shuffled)]
    np.testing.assert_allclose(*last, atol=1e-4)
