"""Loading: what does not belong together is refused before anything is read, by name."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
from golden_models import part, write_config, write_golden_folder

from gpt_jax.errors import UserError
from gpt_jax.models.presets import model_config
from gpt_jax.parallel.mesh import make_mesh, single_device_mesh
from gpt_jax.weights.export import differences
from gpt_jax.weights.formats import read_checkpoint
from gpt_jax.weights.huggingface import read_folder
from gpt_jax.weights.load import check_tensors, load_parameters
from gpt_jax.weights.openai import read_openai, write_openai


@pytest.fixture
def gpt2(tmp_path):
    """A folder, and how to write it with other tensors."""
    tensors = part(write_golden_folder("gpt2", tmp_path / "model"), "param")

    def write(**changes):
        changed = {name: value for name, value in (tensors | changes).items() if value is not None}
        safetensors.numpy.save_file(changed, tmp_path / "model" / "model.safetensors")
        return tmp_path / "model"

    return write


def refused(folder, *words):
    checkpoint = read_checkpoint(folder)
    unread = {name: dataclasses.replace(tensor, read=None) for name, tensor in checkpoint.tensors.items()}
    with pytest.raises(UserError) as caught:
        load_parameters(dataclasses.replace(checkpoint, tensors=unread), single_device_mesh())
    for word in words:
        assert word in str(caught.value)


def test_missing_left_over_and_misshaped_tensors_are_named_with_their_shapes(gpt2):
    folder = gpt2(**{
        "transformer.h.1.ln_2.bias": None,
        "transformer.wpe.weight": np.zeros((16, 23), np.float32),
        "transformer.h.7.ln_1.weight": np.zeros(24, np.float32),
    })  # fmt: skip
    refused(
        folder, "model: the tensors are not those",
        "1 missing: transformer.h.1.ln_2.bias [24]",
        "1 not part of this model: transformer.h.7.ln_1.weight [24]",
        "1 of another shape: transformer.wpe.weight is [16, 23], expected [16, 24]",
    )  # fmt: skip


def test_a_missing_tensor_is_named_as_its_neighbours_are_in_the_file(gpt2):
    folder = gpt2()
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    bare = {name.removeprefix("transformer."): value for name, value in tensors.items()}
    del bare["h.1.ln_2.bias"]
    safetensors.numpy.save_file(bare, folder / "model.safetensors")
    refused(folder, "1 missing: h.1.ln_2.bias [24]")


def test_of_many_the_first_eight_are_named(gpt2):
    strangers = {f"transformer.h.{layer}.x": np.zeros(1, np.float32) for layer in range(10, 30)}
    refused(gpt2(**strangers), "20 not part of this model: ", "transformer.h.17.x [1]; and 12 more")


def test_a_mask_buffer_of_another_shape_is_no_buffer(gpt2):
    refused(gpt2(**{"transformer.h.0.attn.bias": np.zeros(72, np.float32)}), "transformer.h.0.attn.bias [72]")


def test_an_untied_output_must_be_there(gpt2):
    folder = gpt2()
    fields = json.loads((folder / "config.json").read_text())
    write_config(folder, fields | {"tie_word_embeddings": False})
    refused(folder, "1 missing: lm_head.weight [61, 24]")


def test_whole_numbers_are_no_weights(gpt2):
    refused(gpt2(**{"transformer.ln_f.bias": np.zeros(24, np.int8)}), "floating-point", "transformer.ln_f.bias is int8")


def test_a_tensor_under_both_names_is_refused(gpt2):
    folder = gpt2(**{"wpe.weight": np.zeros((16, 24), np.float32)})
    with pytest.raises(UserError, match="both .*wpe.weight and .*wpe.weight are there"):
        read_folder(folder)


def aligned(x: np.ndarray) -> np.ndarray:
    """A copy where JAX on a CPU would use the memory as it is: at a multiple of 64 bytes."""
    raw = np.empty(x.nbytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    copy = raw[start : start + x.nbytes].view(x.dtype).reshape(x.shape)
    copy[...] = x
    return copy


def test_parameters_do_not_change_with_the_file(gpt2):
    checkpoint = read_folder(gpt2())
    arrays = {name: aligned(tensor.read()) for name, tensor in checkpoint.tensors.items()}
    tensors = {
        name: dataclasses.replace(tensor, read=lambda name=name: arrays[name])
        for name, tensor in checkpoint.tensors.items()
    }
    params = load_parameters(dataclasses.replace(checkpoint, tensors=tensors), single_device_mesh())
    before = jax.tree.map(np.array, params)
    for array in arrays.values():
        array[...] = 0
    jax.tree.map(np.testing.assert_array_equal, params, before)


def test_a_slice_of_a_device_is_all_that_is_read_of_a_tensor(gpt2):
    """Views all the way: no tensor is copied whole to be cut or transposed."""
    for tensor in read_folder(gpt2()).tensors.values():
        assert isinstance(tensor.read().base, np.ndarray) and not tensor.read().flags.owndata


class Watched(np.ndarray):
    """Remembers the shape of every view that is taken of it."""

    shapes: set = set()

    def __array_finalize__(self, source):
        self.shapes.add(self.shape)


def test_what_is_read_for_a_device_is_the_slice_of_that_device(tmp_path):
    write_golden_folder("llama", tmp_path / "model")
    checkpoint = read_folder(tmp_path / "model")
    name = "layers.1.self_attn.q_proj.weight"
    tensor = checkpoint.tensors[name]
    watched = dataclasses.replace(tensor, read=lambda: tensor.read().view(Watched))
    checkpoint = dataclasses.replace(checkpoint, tensors={**checkpoint.tensors, name: watched})
    load_parameters(checkpoint, make_mesh({"fsdp": 4, "tensor": 2}))
    assert tensor.shape == (32, 24) and Watched.shapes == {(32, 24), (24 // 4, 32 // 2)}


@pytest.mark.parametrize("kept", [0, 7, 200, 0.5, -1])
def test_a_truncated_safetensors_file_is_named(gpt2, kept):
    path = gpt2() / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if 0 < kept < 1 else kept])
    with pytest.raises(UserError, match="model.safetensors: not a safetensors file, or cut short"):
        read_folder(path.parent)


def test_a_missing_file_of_an_index_is_named(gpt2):
    folder = gpt2()
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="model-00002-of-00002.safetensors: cannot be read .No such file"):
        read_folder(folder)


def test_a_folder_without_weights_or_with_a_broken_configuration_is_named(gpt2, tmp_path):
    folder = gpt2()
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="model: no weights. Expected model.safetensors or pytorch_model.bin"):
        read_folder(folder)
    (folder / "config.json").write_text('{"model_type": ')
    with pytest.raises(UserError, match="config.json: not the configuration of a model"):
        read_folder(folder)
    with pytest.raises(UserError, match="nowhere: no such file or folder"):
        read_checkpoint(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no weights. Expected a Hugging Face folder.*a workdir .*checkpoints/STEP[.]$"):
        read_checkpoint(tmp_path)


def test_what_looks_like_the_name_of_a_model_on_a_hub_is_not_downloaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="openai-community/gpt2: no such file or folder.* Nothing is downloaded: "):
        read_checkpoint("openai-community/gpt2")
    for other in ("gpt2", "/openai/gpt2", "a/b/c"):
        with pytest.raises(UserError, match="no such file or folder.*checkpoints/STEP[.]$"):
            read_checkpoint(other)


@pytest.mark.parametrize("weight_map", [{"x": 7}, {"x": "a", "y": None}, {"x": ["a"]}, ["a"], 5])
def test_an_index_that_names_no_files_is_named(weight_map, gpt2):
    folder = gpt2()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(UserError, match="model.safetensors.index.json: not an index of weight files"):
        read_folder(folder)


@pytest.fixture
def openai(tmp_path):
    write_golden_folder("gpt1", tmp_path / "huggingface")
    checkpoint = read_folder(tmp_path / "huggingface")
    params = load_parameters(checkpoint, single_device_mesh())
    write_openai(params, checkpoint.config, tmp_path / "openai", num_heads=4)
    return tmp_path / "openai"


def test_a_truncated_or_missing_slice_of_openais_release_is_named(openai):
    path = openai / "params_4.npy"
    whole = path.read_bytes()
    for kept in (0, 20, 200, len(whole) - 1):
        path.write_bytes(whole[:kept])
        with pytest.raises(UserError, match="params_4.npy: not one slice of OpenAI's parameters.*cut short"):
            read_openai(openai, num_heads=4)
    np.save(path, np.load(openai / "params_5.npy").astype(np.float64))
    with pytest.raises(UserError, match="params_4.npy: .*float64"):
        read_openai(openai, num_heads=4)
    np.save(path, np.load(openai / "params_5.npy")[:-1])
    with pytest.raises(UserError, match="hold .* numbers, expected"):
        read_openai(openai, num_heads=4)
    path.unlink()
    with pytest.raises(UserError, match="params_4.npy: cannot be read .No such file"):
        read_openai(openai, num_heads=4)


def test_shapes_that_are_not_gpt1s_are_refused(openai):
    path = openai / "params_shapes.json"
    shapes = json.loads(path.read_text())
    path.write_text(json.dumps(shapes[:-1]))
    with pytest.raises(UserError, match="params_shapes.json: 37 arrays, expected those of GPT-1"):
        read_openai(openai, num_heads=4)
    swapped = [*shapes[:2], shapes[3], shapes[2], *shapes[4:]]
    path.write_text(json.dumps(swapped))
    with pytest.raises(UserError, match="model/h0/attn/c_attn/w is .72., expected .24, 72."):
        load_parameters(read_openai(openai, num_heads=4), single_device_mesh())
    for place in (0, 2, 8):
        for strange in ([], [0, 4], [-1], [1.5], "12", None, {"a": 1}):
            path.write_text(json.dumps([*shapes[:place], strange, *shapes[place + 1 :]]))
            with pytest.raises(UserError, match="params_shapes.json: not a list of shapes"):
                read_openai(openai, num_heads=4)
    path.write_text(json.dumps([[10**30, 24], *shapes[1:]]))
    with pytest.raises(UserError, match="params_shapes.json: model.context_length=10+: expected at most"):
        read_openai(openai, num_heads=4)
    path.write_text(json.dumps(shapes))
    with pytest.raises(UserError, match="params_shapes.json: model: num_heads=5 does not divide embed_dim=24"):
        read_openai(openai, num_heads=5)
    path.write_text("[")
    with pytest.raises(UserError, match="params_shapes.json: not a list of shapes"):
        read_openai(openai, num_heads=4)


def test_the_released_shapes_are_gpt1s(tmp_path):
    root = Path(__file__).resolve().parents[2]
    shapes = root.parent / "shared" / "data" / "gpt1_bpe" / "params_shapes.json"
    if not shapes.exists():
        pytest.skip("the shapes of OpenAI's release are not beside this checkout")
    # Sparse files: the release's size without its bytes.
    counts = np.diff(np.linspace(0, 116_534_784, 11).astype(int))
    for index, count in enumerate(counts):
        np.lib.format.open_memmap(tmp_path / f"params_{index}.npy", "w+", np.float32, (int(count),))
    (tmp_path / "params_shapes.json").write_text(shapes.read_text())
    checkpoint = read_openai(tmp_path)
    assert len(checkpoint.tensors) == 146
    assert not differences(checkpoint.config, model_config("gpt1"))
    check_tensors(checkpoint)
