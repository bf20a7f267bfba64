"""Checkpoints: what is kept, what is noticed, and on which devices they come back."""

import functools
import json
import shutil

import jax
import numpy as np
import pytest

from gpt_jax.errors import UserError
from gpt_jax.models import decoder
from gpt_jax.models.config import ModelConfig
from gpt_jax.parallel.mesh import make_mesh, single_device_mesh
from gpt_jax.training.checkpoints import Checkpoints, digests
from gpt_jax.training.optimizers import make_optimizer
from gpt_jax.training.state import abstract_state, create_state, state_builder

CONFIG = ModelConfig(vocab_size=64, context_length=16, num_layers=2, num_heads=4, embed_dim=32)


@functools.cache
def initial_state(mesh):
    """A state of step 0 and its shapes; made once for a mesh, since making it means compiling."""
    build = state_builder(functools.partial(decoder.init, CONFIG), make_optimizer("adamw", lambda count: 1e-3), 0)
    abstract = abstract_state(build, mesh)
    return create_state(build, abstract, mesh), abstract


def make_state(mesh, seed=0, step=0):
    """A state of its own for every seed and step, and its shapes."""
    state, abstract = initial_state(mesh)
    params = jax.tree.map(lambda x: x + seed, state.params)
    return state.replace(step=state.step + step, params=params), abstract


def saved_run(folder, steps=(2, 4), losses=None):
    """A folder with a checkpoint at each step, each of another state."""
    checkpoints = Checkpoints(folder, keep=10)
    for step in steps:
        state, _ = make_state(single_device_mesh(), seed=step, step=step)
        checkpoints.save(state, objective=(losses or {}).get(step))
    checkpoints.close()


def assert_equal(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_state_comes_back_bit_for_bit_on_any_mesh(tmp_path):
    saved, _ = make_state(make_mesh({"fsdp": 4, "tensor": 2}), step=3)
    checkpoints = Checkpoints(tmp_path / "c", keep=1)
    checkpoints.save(saved)
    checkpoints.close()
    for mesh in (single_device_mesh(), make_mesh({"data": 2, "fsdp": 4}), make_mesh({"fsdp": 4, "tensor": 2})):
        _, abstract = make_state(mesh)
        restored = Checkpoints(tmp_path / "c", keep=1).restore(abstract)
        assert_equal(saved, restored)
        assert jax.tree.map(lambda x: x.sharding, restored) == jax.tree.map(lambda x: x.sharding, abstract)


def test_the_last_ones_and_the_best_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, 2.5), (5, None)):
        checkpoints.save(make_state(single_device_mesh(), step=step)[0], objective=loss)
    checkpoints.close()
    assert sorted(int(p.name) for p in tmp_path.iterdir() if p.name.isdigit()) == [2, 4, 5]


def data_files(folder):
    """The files that hold arrays; Orbax keeps some of them twice, so a test damages them all alike."""
    return [p for p in folder.rglob("*") if p.is_file() and p.stat().st_size > 2000 and "_" not in p.name]


def flip_a_bit(folder):
    for path in data_files(folder):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 0x10
        path.write_bytes(data)


def truncate(folder):
    for path in data_files(folder):
        path.write_bytes(path.read_bytes()[:-100])


def delete(folder):
    for path in data_files(folder):
        path.unlink()


def swap_in_other_weights(folder):
    """A checkpoint that reads without complaint and is not the one that was saved."""
    digest_file = folder / "digests" / "metadata"
    recorded = json.loads(digest_file.read_text())
    recorded["params/embedding/tokens"] ^= 1
    digest_file.write_text(json.dumps(recorded))


@pytest.mark.parametrize("damage", [flip_a_bit, truncate, delete, swap_in_other_weights])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(tmp_path, damage, capsys):
    saved_run(tmp_path / "c")
    damage(tmp_path / "c" / "4")
    expected, abstract = make_state(single_device_mesh(), seed=2, step=2)
    checkpoints = Checkpoints(tmp_path / "c", keep=10)
    assert_equal(checkpoints.restore(abstract), expected)
    assert f"checkpoint {tmp_path / 'c' / '4'} is damaged" in capsys.readouterr().err
    again, _ = make_state(single_device_mesh(), seed=9, step=4)
    checkpoints.save(again)  # the step can be saved anew
    checkpoints.close()
    assert_equal(Checkpoints(tmp_path / "c", keep=10).restore(abstract), again)


def test_when_all_are_damaged_the_run_stops_and_says_so(tmp_path):
    saved_run(tmp_path)
    for step in ("2", "4"):
        flip_a_bit(tmp_path / step)
    _, abstract = make_state(single_device_mesh())
    with pytest.raises(UserError, match="every one in .* is damaged"):
        Checkpoints(tmp_path, keep=10).restore(abstract)


def test_a_half_written_checkpoint_is_not_taken_for_one(tmp_path):
    saved_run(tmp_path)
    shutil.copytree(tmp_path / "4", tmp_path / "6.orbax-checkpoint-tmp")
    checkpoints = Checkpoints(tmp_path, keep=10)
    assert checkpoints.latest_step() == 4
    checkpoints.close()


def test_digests_do_not_depend_on_the_mesh_and_notice_one_bit():
    one, _ = make_state(single_device_mesh())
    other, _ = make_state(make_mesh({"fsdp": 4, "tensor": 2}))
    assert digests(one) == digests(other)
    tokens = np.array(one.params["embedding"]["tokens"])
    tokens.view(np.uint32)[5, 7] ^= 1
    changed = one.replace(
        params=one.params | {"embedding": one.params["embedding"] | {"tokens": jax.numpy.asarray(tokens)}}
    )
    differ = {name for name, value in digests(changed).items() if value != digests(one)[name]}
    assert differ == {"params/embedding/tokens"}
