"""PyTorch's files are read without PyTorch, and nothing that they say is run."""

import json
import os
import pickle
import shutil
import tempfile
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_jax.errors import UserError
from gpt_jax.weights.huggingface import read_folder
from gpt_jax.weights.load import load_parameters
from gpt_jax.weights.torch_file import read_torch_file

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
FILES = ("torch_zip.bin", "torch_stream.bin")


@pytest.fixture(scope="module")
def values():
    with np.load(GOLDEN / "torch_values.npz") as stored:
        return dict(stored)


@pytest.mark.parametrize("file", FILES)
def test_every_tensor_is_what_torch_saved(file, values):
    tensors = read_torch_file(GOLDEN / file)
    assert len(tensors) > 10
    for name, tensor in tensors.items():
        read = tensor.read()
        assert (read.shape, read.dtype) == (tensor.shape, tensor.dtype)
        np.testing.assert_array_equal(read.astype(np.float32), values[name], err_msg=name)


def test_the_golden_files_hold_the_hard_cases(values):
    zipped, streamed = (read_torch_file(GOLDEN / file) for file in FILES)
    assert zipped.keys() | streamed.keys() == values.keys()
    assert not zipped["transformer.h.0.mlp.c_fc.weight"].read().flags.c_contiguous
    assert str(streamed["transformer.h.1.mlp.c_fc.weight"].dtype) == "bfloat16"
    assert str(streamed["transformer.h.1.mlp.c_proj.weight"].dtype) == "float16"


def model_folder(folder: Path) -> Path:
    """Both files as the shards of one model."""
    folder.mkdir()
    shutil.copy(GOLDEN / "torch_config.json", folder / "config.json")
    weight_map = {}
    for file in FILES:
        shutil.copy(GOLDEN / file, folder / file)
        weight_map |= dict.fromkeys(read_torch_file(GOLDEN / file), file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def test_a_sharded_model_with_buffers_of_old_versions_is_loaded(tmp_path, values, one_device):
    params = load_parameters(read_folder(model_folder(tmp_path / "model")), one_device)
    np.testing.assert_array_equal(params["embedding"]["tokens"], values["transformer.wte.weight"])
    for layer in range(2):
        prefix = f"transformer.h.{layer}"
        up = params["layers"]["mlp"]["up"]["kernel"][layer]
        np.testing.assert_array_equal(up, values[f"{prefix}.mlp.c_fc.weight"])
        key = params["layers"]["attention"]["key"]["kernel"][layer]
        np.testing.assert_array_equal(key, values[f"{prefix}.attn.c_attn.weight"][:, 8:16])
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("kept", [0, 1, 30, 0.3, 0.6, 0.9, 0.97, -1])
def test_a_truncated_file_is_named(file, kept, tmp_path):
    whole = (GOLDEN / file).read_bytes()
    cut = whole[: int(kept * len(whole)) if 0 < kept < 1 else kept]
    path = tmp_path / file
    path.write_bytes(cut)
    with pytest.raises(UserError, match=f"{file}: .*cut short"):
        read_torch_file(path)


@given(st.sampled_from(FILES), st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), min_size=1, max_size=3))
@settings(deadline=None)
def test_a_damaged_file_is_read_or_refused_but_nothing_else_happens(file, changes):
    damaged = bytearray((GOLDEN / file).read_bytes())
    for position, byte in changes:
        damaged[position] = byte
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / file
        path.write_bytes(damaged)
        try:
            assert isinstance(read_torch_file(path), dict)
        except UserError as refused:
            assert file in str(refused)


class Runs:
    """Unpickled, it makes a folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def write_zip(path: Path, pickled: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)


def write_stream(path: Path, pickled: bytes) -> None:
    head = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    path.write_bytes(b"".join(pickle.dumps(part, protocol=2) for part in head) + pickled + pickle.dumps([], protocol=2))


@pytest.mark.parametrize("write", [write_zip, write_stream])
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_that_wants_to_run_code_is_refused_and_does_not_run(write, protocol, tmp_path):
    path, made = tmp_path / "pytorch_model.bin", tmp_path / "made"
    write(path, pickle.dumps({"weight": Runs(made)}, protocol=protocol))
    with pytest.raises(
        UserError, match="pytorch_model.bin: this file asks to call (posix|os).mkdir.*nothing of it was"
    ):
        read_torch_file(path)
    assert not made.exists()
    pickle.loads(pickle.dumps(Runs(made)))  # the pickle is a working one
    assert made.exists()


def global_call(module: str, name: str, arguments: bytes) -> bytes:
    """A pickle of {"w": module.name(*arguments)}; `arguments` are opcodes that leave a tuple."""
    return b"\x80\x02}U\x01wc" + f"{module}\n{name}\n".encode() + arguments + b"Rs."


@pytest.mark.parametrize(
    ("module", "name"),
    [("builtins", "eval"), ("torch.storage", "_load_from_bytes"), ("torch._utils", "_rebuild_qtensor"),
     ("collections", "namedtuple"), ("torch", "load"), ("functools", "partial")],
)  # fmt: skip
def test_any_other_global_is_named(module, name, tmp_path):
    path = tmp_path / "x.bin"
    write_zip(path, global_call(module, name, b"U\x011\x85"))
    with pytest.raises(UserError, match=f"asks to call {module}.{name}"):
        read_torch_file(path)


def storage(key: str, size: int) -> bytes:
    """Opcodes of a float storage's persistent id."""
    return (
        b"(U\x07storagectorch\nFloatStorage\nU"
        + bytes([len(key)])
        + key.encode()
        + b"U\x03cpuK"
        + bytes([size])
        + b"tQ"
    )


@pytest.mark.parametrize(
    "view",
    [
        b"K\x00K\x05\x85K\x01\x85", b"K\x02K\x03\x85K\x01\x85", b"K\x00K\x02\x85K\x04\x85",
        b"K\x00K\x02\x85J\xff\xff\xff\xff\x85",
    ],
    ids=["too long", "offset", "stride", "negative stride"],
)  # fmt: skip
def test_a_tensor_that_reaches_beyond_its_storage_is_refused(view, tmp_path):
    """Otherwise it would show memory that is not the file's."""
    path = tmp_path / "x.bin"
    pickled = global_call("torch._utils", "_rebuild_tensor_v2", b"(" + storage("0", 4) + view + b"\x89Nt")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/data/0", np.arange(4, dtype=np.float32).tobytes())
    with pytest.raises(UserError, match="beyond its storage"):
        read_torch_file(path)


def test_a_hand_made_tensor_within_its_storage_is_read(tmp_path):
    path = tmp_path / "x.bin"
    view = b"K\x01K\x02\x85K\x02\x85"  # offset 1, size (2,), stride (2,)
    pickled = global_call("torch._utils", "_rebuild_tensor_v2", b"(" + storage("0", 4) + view + b"\x89Nt")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/data/0", np.arange(4, dtype=np.float32).tobytes())
    np.testing.assert_array_equal(read_torch_file(path)["w"].read(), [1, 3])


@pytest.mark.parametrize(("size", "words"), [(3, "3 elements, its tensors expect 4"), (4, None)])
def test_a_storage_of_another_size_than_its_tensors_expect_is_refused(size, words, tmp_path):
    path = tmp_path / "x.bin"
    view = b"K\x01K\x02\x85K\x02\x85"
    head = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    path.write_bytes(
        b"".join(pickle.dumps(part, protocol=2) for part in head)
        + global_call("torch._utils", "_rebuild_tensor_v2", b"(" + storage("0", 4) + view + b"\x89Nt")
        + pickle.dumps(["0"], protocol=2)
        + np.int64(size).tobytes()
        + np.arange(4, dtype=np.float32).tobytes()
    )
    if words is None:
        np.testing.assert_array_equal(read_torch_file(path)["w"].read(), [1, 3])
    else:
        with pytest.raises(UserError, match=words):
            read_torch_file(path)


def test_what_is_no_list_of_tensors_is_refused(tmp_path):
    path = tmp_path / "x.bin"
    write_zip(path, pickle.dumps({"epoch": 3, "optimizer": {}}, protocol=2))
    with pytest.raises(UserError, match="2 entries are no tensors, beginning with epoch, optimizer"):
        read_torch_file(path)
    write_zip(path, pickle.dumps({7: 1}, protocol=2))
    with pytest.raises(UserError, match="1 entries are no tensors, beginning with 7"):
        read_torch_file(path)
    write_zip(path, pickle.dumps([1, 2], protocol=2))
    with pytest.raises(UserError, match="holds a list, expected a state dict"):
        read_torch_file(path)


def test_a_missing_shard_is_named(tmp_path):
    folder = model_folder(tmp_path / "model")
    (folder / "torch_stream.bin").unlink()
    with pytest.raises(UserError, match="torch_stream.bin: cannot be read"):
        read_folder(folder)


def test_a_pointer_of_git_lfs_is_recognised(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(UserError, match="Git LFS pointer"):
        read_torch_file(path)
