"""The optimizer: what decays, and each update against the written formula in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.errors import UserError
from gpt_jax.models import decoder
from gpt_jax.models.presets import model_config
from gpt_jax.training.optimizers import decay_mask, make_optimizer


def test_gpt1_decays_every_matrix_and_embedding_and_nothing_else(one_device):
    params = jax.eval_shape(lambda: decoder.init(model_config("gpt1"), jax.random.key(0)))
    sizes = jax.tree.map(lambda x, decayed: x.size * decayed, params, decay_mask(params))
    assert sum(jax.tree.leaves(sizes)) == 116_414_976


def test_updates_follow_adam_with_decoupled_decay_and_global_clipping():
    rng = np.random.default_rng(0)
    params = {"layers": {"kernel": rng.normal(size=(2, 3, 4)), "bias": rng.normal(size=(2, 4))}}
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    optimizer = make_optimizer(
        "adamw", lambda count: 0.1 / (count + 1), beta1=0.8, beta2=0.9, epsilon=1e-6, weight_decay=0.3, clip_norm=1.0
    )
    state = optimizer.init(params)
    expected = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    moments = jax.tree.map(lambda x: (np.zeros(x.shape), np.zeros(x.shape)), expected)
    for step in range(1, 6):
        gradients = jax.tree.map(lambda x: rng.normal(size=x.shape) * (4 if step % 2 else 0.01), expected)  # noqa: B023
        updates, state = optimizer.update(jax.tree.map(jnp.float32, gradients), state, params)
        params = jax.tree.map(jnp.add, params, updates)
        norm = np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(gradients)))
        for name, decay in (("kernel", 0.3), ("bias", 0.0)):
            g = gradients["layers"][name] / max(norm, 1.0)
            m, v = moments["layers"][name]
            m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g**2
            moments["layers"][name] = (m, v)
            p = expected["layers"][name]
            direction = (m / (1 - 0.8**step)) / (np.sqrt(v / (1 - 0.9**step)) + 1e-6)
            expected["layers"][name] = p - 0.1 / step * (direction + decay * p)
            np.testing.assert_allclose(params["layers"][name], expected["layers"][name], rtol=1e-5, atol=1e-6)


def test_clip_norm_zero_does_not_clip():
    optimizer = make_optimizer("adamw", lambda count: 1.0, beta1=0.0, beta2=0.0, epsilon=1.0, clip_norm=0.0)
    params = {"w": jnp.zeros((2, 2))}
    updates, _ = optimizer.update({"w": jnp.full((2, 2), 100.0)}, optimizer.init(params), params)
    np.testing.assert_allclose(updates["w"], -100 / 101, rtol=1e-6)


def test_an_unknown_optimizer_lists_the_known():
    with pytest.raises(UserError, match="'adam': expected one of adamw, openai_adam"):
        make_optimizer("adam", lambda count: 1.0)
