"""Out and in again: nothing of the parameters changes by a bit."""

import dataclasses
import functools
import json
import os
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from golden_models import FAMILIES, part, write_golden_folder
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_jax.errors import UserError
from gpt_jax.models import decoder
from gpt_jax.models.config import ModelConfig
from gpt_jax.parallel.mesh import make_mesh, single_device_mesh
from gpt_jax.weights import huggingface
from gpt_jax.weights.export import differences, new_folder
from gpt_jax.weights.formats import read_checkpoint
from gpt_jax.weights.huggingface import _divide, read_folder, write_folder
from gpt_jax.weights.load import load_parameters
from gpt_jax.weights.openai import FILES, read_openai, write_openai


def load(path, mesh=None):
    checkpoint = read_checkpoint(path)
    return load_parameters(checkpoint, mesh or single_device_mesh()), checkpoint.config


def assert_same(ours, theirs) -> None:
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y, err_msg=str(path))


@pytest.mark.parametrize("family", FAMILIES)
def test_theirs_to_ours_to_theirs_is_bitwise(family, tmp_path):
    values = write_golden_folder(family, tmp_path / "theirs")
    params, config = load(tmp_path / "theirs")
    write_folder(params, config, tmp_path / "ours")
    assert_same(load(tmp_path / "ours")[0], params)
    written = safetensors.numpy.load_file(tmp_path / "ours" / "model.safetensors")
    expected = part(values, "param")
    assert written.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(written[name], value, err_msg=name)
    theirs = json.loads(str(values["config"]))
    fields = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert (fields["model_type"], fields["architectures"]) == (theirs["model_type"], theirs["architectures"])
    assert fields["torch_dtype"] == "float32" and fields["bos_token_id"] is None


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_divided_over_eight_devices_are_the_same_in_and_out(family, tmp_path):
    write_golden_folder(family, tmp_path / "theirs")
    single, config = load(tmp_path / "theirs")
    sharded, _ = load(tmp_path / "theirs", make_mesh({"fsdp": 4, "tensor": 2}))
    assert_same(sharded, single)
    query = sharded["layers"]["attention"]["query"]["kernel"]
    assert query.sharding.shard_shape(query.shape) == (query.shape[0], query.shape[1] // 4, query.shape[2] // 2)
    write_folder(sharded, config, tmp_path / "ours")
    assert_same(load(tmp_path / "ours")[0], single)


def test_an_export_larger_than_a_file_is_divided_and_indexed(tmp_path):
    write_golden_folder("llama", tmp_path / "theirs")
    params, config = load(tmp_path / "theirs")
    write_folder(params, config, tmp_path / "ours", bytes_per_file=16_000)
    files = sorted(path.name for path in (tmp_path / "ours").glob("*.safetensors"))
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05}.safetensors"
    index = json.loads((tmp_path / "ours" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 4 * decoder.parameter_count(config)
    assert set(index["weight_map"].values()) == set(files)
    for file in files:
        with safetensors.safe_open(tmp_path / "ours" / file, "np") as opened:
            assert opened.metadata() == {"format": "pt"}
            assert {index["weight_map"][name] for name in opened.keys()} == {file}
    assert_same(load(tmp_path / "ours")[0], params)


@given(st.dictionaries(st.text("ab", min_size=1, max_size=4), st.integers(0, 50), min_size=1), st.integers(1, 60))
def test_files_hold_every_tensor_once_in_order_and_no_more_than_they_may(sizes, limit):
    files = _divide(sizes, limit)
    assert [name for names in files.values() for name in names] == list(sizes)
    for names in files.values():
        assert names and (len(names) == 1 or sum(sizes[name] for name in names) <= limit)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_goes_out_and_comes_in(dtype, tmp_path):
    write_golden_folder("qwen2", tmp_path / "theirs")
    params, config = load(tmp_path / "theirs")
    write_folder(params, config, tmp_path / "ours", dtype=dtype)
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["torch_dtype"] == dtype
    tensor = read_folder(tmp_path / "ours").tensors["norm.weight"]
    assert (str(tensor.dtype), str(tensor.read().dtype)) == (dtype, dtype)
    half = np.dtype(getattr(ml_dtypes, dtype, dtype))
    rounded = jax.tree.map(lambda x: np.asarray(x).astype(half).astype(np.float32), params)
    assert_same(load(tmp_path / "ours")[0], rounded)


@pytest.mark.parametrize("value", [7e4, -7e4])
def test_a_value_too_large_for_half_precision_is_refused_by_name(value, tmp_path):
    write_golden_folder("qwen2", tmp_path / "theirs")
    params, config = load(tmp_path / "theirs")
    kernel = params["layers"]["mlp"]["up"]["kernel"]
    params["layers"]["mlp"]["up"]["kernel"] = kernel.at[1, 2, 3].set(value).at[1, 0, 0].set(65504.0)
    with pytest.raises(
        UserError, match="model.layers.1.mlp.up_proj.weight: its largest value, 70000, .*float16 .at most 65504.*use bf"
    ):
        write_folder(params, config, tmp_path / "ours", dtype="float16")
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]
    write_folder(params, config, tmp_path / "ours", dtype="bfloat16")


def test_an_infinity_that_was_there_before_is_kept(tmp_path):
    write_golden_folder("qwen2", tmp_path / "theirs")
    params, config = load(tmp_path / "theirs")
    params["final_norm"]["scale"] = params["final_norm"]["scale"].at[0].set(np.inf)
    write_folder(params, config, tmp_path / "ours", dtype="float16")
    assert read_folder(tmp_path / "ours").tensors["norm.weight"].read()[0] == np.inf


def test_float64_parameters_are_kept(tmp_path):
    write_golden_folder("gpt2", tmp_path / "theirs")
    with jax.enable_x64(True):
        checkpoint = read_folder(tmp_path / "theirs")
        config = dataclasses.replace(checkpoint.config, param_dtype="float64")
        params = load_parameters(dataclasses.replace(checkpoint, config=config), single_device_mesh())
        params = jax.tree.map(lambda x: x / 3, params)
        write_folder(params, config, tmp_path / "ours")
        checkpoint = dataclasses.replace(read_folder(tmp_path / "ours"), config=config)
        assert_same(load_parameters(checkpoint, single_device_mesh()), params)


def test_the_prefix_of_the_base_model_may_be_absent(tmp_path):
    values = write_golden_folder("gpt2", tmp_path / "with")
    write_golden_folder("gpt2", tmp_path / "without")
    bare = {name.removeprefix("transformer."): value for name, value in part(values, "param").items()}
    safetensors.numpy.save_file(bare, tmp_path / "without" / "model.safetensors")
    assert_same(load(tmp_path / "without")[0], load(tmp_path / "with")[0])


def test_buffers_tied_outputs_and_other_heads_are_left_out(tmp_path, capsys):
    values = write_golden_folder("gpt1", tmp_path / "plain")
    write_golden_folder("gpt1", tmp_path / "more")
    extra = {
        "transformer.h.0.attn.bias": np.ones((1, 1, 16, 16), np.float32),
        "transformer.h.0.attn.masked_bias": np.array(-1e4, np.float32),
        "lm_head.weight": part(values, "param")["transformer.tokens_embed.weight"],
        "multiple_choice_head.summary.weight": np.ones((1, 24), np.float32),
    }
    safetensors.numpy.save_file(part(values, "param") | extra, tmp_path / "more" / "model.safetensors")
    assert_same(load(tmp_path / "more")[0], load(tmp_path / "plain")[0])
    said = capsys.readouterr().err
    assert "multiple_choice_head.summary.weight" in said and "differ" not in said


@pytest.mark.parametrize(
    "change",
    [lambda x: np.concatenate([x[:-1], -x[-1:]]), lambda x: x[:-1], lambda x: x.astype(np.float16)],
    ids=["one row", "one row fewer", "another dtype"],
)
def test_an_output_matrix_that_a_tied_model_holds_and_does_not_use_is_spoken_of(change, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(huggingface, "_ROWS_AT_ONCE", 7)
    values = part(write_golden_folder("gpt2", tmp_path / "model"), "param")
    plain = load(tmp_path / "model")[0]
    head = change(values["transformer.wte.weight"])
    safetensors.numpy.save_file(values | {"lm_head.weight": head}, tmp_path / "model" / "model.safetensors")
    assert_same(load(tmp_path / "model")[0], plain)
    said = capsys.readouterr().err
    assert "lm_head.weight is left behind" in said and '"tie_word_embeddings": true, but the two differ' in said


@given(
    layers=st.integers(1, 3), vocab_size=st.integers(1, 20), context_length=st.integers(1, 9), heads=st.integers(1, 3)
)
@settings(deadline=None, max_examples=10)
def test_openais_layout_to_ours_and_back_is_bitwise(layers, vocab_size, context_length, heads, tmp_path_factory):
    """Whatever the cuts: the first folder's files are cut at random, many in the middle of a tensor."""
    folder = tmp_path_factory.mktemp("openai")
    rng = np.random.default_rng(0)
    d = 2 * heads
    in_a_layer = [
        [1, d, 3 * d],
        [3 * d],
        [1, d, d],
        [d],
        [d],
        [d],
        [1, d, 4 * d],
        [4 * d],
        [1, 4 * d, d],
        [d],
        [d],
        [d],
    ]
    shapes = [[context_length, d], [vocab_size, d], *layers * in_a_layer]
    vector = rng.standard_normal(sum(int(np.prod(shape)) for shape in shapes)).astype(np.float32)
    cuts = np.sort(rng.integers(0, len(vector), FILES - 1))
    for index, piece in enumerate(np.split(vector, cuts)):
        np.save(folder / f"params_{index}.npy", piece)
    (folder / "params_shapes.json").write_text(json.dumps(shapes))
    checkpoint = read_openai(folder, num_heads=heads)
    config = checkpoint.config
    assert (config.num_layers, config.vocab_size, config.context_length) == (layers, vocab_size, context_length)
    params = load_parameters(checkpoint, single_device_mesh())
    # The order of the arrays, by the reference's list: positions, tokens, then of layer 0 the fused q|k|v first.
    start = context_length * d
    np.testing.assert_array_equal(params["embedding"]["positions"].reshape(-1), vector[:start])
    np.testing.assert_array_equal(params["embedding"]["tokens"].reshape(-1), vector[start : start + vocab_size * d])
    fused = vector[start + vocab_size * d :][: 3 * d * d].reshape(d, 3 * d)
    np.testing.assert_array_equal(params["layers"]["attention"]["value"]["kernel"][0], fused[:, 2 * d :])
    np.testing.assert_array_equal(params["layers"]["mlp_norm"]["bias"][-1], vector[-d:])
    write_openai(params, config, folder / "back", num_heads=heads)
    assert json.loads((folder / "back" / "params_shapes.json").read_text()) == shapes
    back = [np.load(folder / "back" / f"params_{index}.npy") for index in range(FILES)]
    np.testing.assert_array_equal(np.concatenate(back), vector)
    assert max(map(len, back)) - min(map(len, back)) <= 1
    assert_same(load_parameters(read_openai(folder / "back", num_heads=heads), single_device_mesh()), params)


def test_openais_release_and_hugging_faces_copy_of_a_model_are_the_same_parameters(tmp_path):
    write_golden_folder("gpt1", tmp_path / "huggingface")
    params, config = load(tmp_path / "huggingface")
    write_openai(params, config, tmp_path / "openai", num_heads=config.num_heads)
    checkpoint = read_openai(tmp_path / "openai", num_heads=config.num_heads)
    assert not differences(checkpoint.config, config)
    assert_same(load_parameters(checkpoint, single_device_mesh()), params)


def test_what_is_not_gpt1_is_not_written_as_openais_release(tmp_path):
    write_golden_folder("gpt2", tmp_path / "theirs")
    with pytest.raises(UserError, match="GPT-1 only; .*norm_position='pre'.*final_norm=True"):
        write_openai(*load(tmp_path / "theirs"), tmp_path / "openai")
    assert not (tmp_path / "openai").exists()


def test_a_number_of_heads_that_openais_readers_would_not_guess_is_refused(tmp_path):
    write_golden_folder("gpt1", tmp_path / "theirs")
    with pytest.raises(UserError, match="model.num_heads=4 cannot be written: .* takes 12"):
        write_openai(*load(tmp_path / "theirs"), tmp_path / "openai")
    assert not (tmp_path / "openai").exists()


def test_rows_of_symbols_are_left_out_of_openais_release_on_demand(tmp_path):
    write_golden_folder("gpt1", tmp_path / "theirs")
    params, config = load(tmp_path / "theirs")
    write = functools.partial(write_openai, params, config, tmp_path / "openai", num_heads=config.num_heads)
    for count in (0, config.vocab_size + 1):
        with pytest.raises(UserError, match=f"vocab_size={count}: expected 1 to {config.vocab_size}"):
            write(vocab_size=count)
    write(vocab_size=config.vocab_size - 3)
    checkpoint = read_openai(tmp_path / "openai", num_heads=config.num_heads)
    assert checkpoint.config.vocab_size == config.vocab_size - 3
    params["embedding"]["tokens"] = params["embedding"]["tokens"][:-3]
    assert_same(load_parameters(checkpoint, single_device_mesh()), params)


def test_more_files_go_with_openais_release_or_nothing_does(tmp_path):
    write_golden_folder("gpt1", tmp_path / "theirs")
    params, config = load(tmp_path / "theirs")
    write = functools.partial(write_openai, params, config, tmp_path / "openai", num_heads=config.num_heads)

    def fail(folder):
        assert (folder / "params_9.npy").exists() and not (tmp_path / "openai").exists()
        raise RuntimeError("the tokenizer")

    with pytest.raises(RuntimeError, match="the tokenizer"):
        write(add_files=fail)
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]
    write(add_files=lambda folder: (folder / "vocab_40000.bpe").write_text("#version: 0.2"))
    assert (tmp_path / "openai" / "vocab_40000.bpe").read_text() == "#version: 0.2"


def test_an_export_over_an_existing_folder_is_refused_and_touches_nothing(tmp_path):
    write_golden_folder("gpt1", tmp_path / "theirs")
    params, config = load(tmp_path / "theirs")
    before = {path.name: path.read_bytes() for path in (tmp_path / "theirs").iterdir()}
    for write in (write_folder, functools.partial(write_openai, num_heads=config.num_heads)):
        with pytest.raises(UserError, match="theirs: exists and is not empty"):
            write(params, config, tmp_path / "theirs")
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "theirs").iterdir()}
    (tmp_path / "empty").mkdir()
    write_folder(params, config, tmp_path / "empty")
    assert_same(load(tmp_path / "empty")[0], params)


def test_an_export_that_fails_leaves_nothing(tmp_path):
    write_golden_folder("gpt1", tmp_path / "theirs")
    params, config = load(tmp_path / "theirs")

    def fail(folder):
        assert (folder / "config.json").exists() and not (tmp_path / "ours").exists()
        raise RuntimeError("the tokenizer")

    with pytest.raises(RuntimeError, match="the tokenizer"):
        write_folder(params, config, tmp_path / "ours", add_files=fail)
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


def test_more_files_and_special_ids_go_with_an_export(tmp_path):
    write_golden_folder("gpt1", tmp_path / "theirs")
    params, config = load(tmp_path / "theirs")
    write_folder(
        params, config, tmp_path / "a" / "ours", special_ids={"eos_token_id": 3},
        add_files=lambda folder: (folder / "tokenizer.json").write_text("{}"),
    )  # fmt: skip
    assert (tmp_path / "a" / "ours" / "tokenizer.json").read_text() == "{}"
    fields = json.loads((tmp_path / "a" / "ours" / "config.json").read_text())
    assert (fields["eos_token_id"], fields["bos_token_id"]) == (3, None)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_disk_that_refuses_is_named(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(UserError, match="closed/new: cannot be written"), new_folder(tmp_path / "closed" / "new"):
        pass


@pytest.mark.parametrize("error", [OSError(28, os.strerror(28)), safetensors.SafetensorError(os.strerror(28))])
def test_a_full_disk_is_named_whoever_met_it(error, tmp_path):
    with pytest.raises(UserError, match="new: cannot be written .No space left"), new_folder(tmp_path / "new"):
        raise error
    assert not any(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc here, in which nobody may make a folder")
def test_a_place_where_no_folder_can_be_is_named():
    folder = Path("/proc/new/folder")
    with pytest.raises(UserError, match=f"{folder}: cannot be written .No such file"), new_folder(folder):
        pass


def test_the_folder_in_which_one_stands_is_not_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for here in (Path("."), tmp_path):
        with pytest.raises(UserError, match="is the folder in which this was started"), new_folder(here):
            pass
    (tmp_path / "inner").mkdir()
    with pytest.raises(UserError, match="[.]: exists and is not empty"), new_folder(Path(".")):
        pass


def test_dots_and_links_in_the_name_of_a_folder_are_followed(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "target")
    (tmp_path / "a").mkdir()
    for name in ("a/../b", "link"):
        with new_folder(tmp_path / name) as temporary:
            (temporary / "file").write_text(name)
    assert (tmp_path / "b" / "file").read_text() == "a/../b"
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target" / "file").read_text() == "link"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "link", "target"]


def test_a_file_in_the_way_of_the_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/new: cannot be written"), new_folder(tmp_path / "file" / "new"):
        pass


def test_a_model_that_transformers_lacks_is_not_written(tmp_path):
    config = ModelConfig(vocab_size=5, context_length=4, num_layers=1, num_heads=1, embed_dim=4, biases="none")
    with pytest.raises(UserError, match="biases='none'"):
        write_folder({}, config, tmp_path / "ours")
    with pytest.raises(UserError, match="dtype='int8': expected one of float32"):
        write_folder({}, config, tmp_path / "ours", dtype="int8")
    assert not (tmp_path / "ours").exists()
