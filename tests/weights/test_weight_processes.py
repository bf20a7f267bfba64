"""Two processes load one model over their four devices and export it; it is the model that one process has."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import safetensors.numpy
from golden_models import part, write_golden_folder

SCRIPT = """
import sys
from pathlib import Path
import jax
from gpt_jax.parallel import runtime
from gpt_jax.parallel.mesh import make_mesh
from gpt_jax.weights.huggingface import read_folder, write_folder
from gpt_jax.weights.load import load_parameters

runtime.start()
folder = Path(sys.argv[1])
checkpoint = read_folder(folder / "theirs")
params = load_parameters(checkpoint, make_mesh({"fsdp": 2, "tensor": 2}))
query = params["layers"]["attention"]["query"]["kernel"]
assert jax.process_count() == 2 and not query.is_fully_addressable
assert len(query.addressable_shards) == 2 and query.addressable_shards[0].data.size == query.size // 4
write_folder(params, checkpoint.config, folder / "ours")
"""


def test_two_processes_load_and_export(tmp_path):
    expected = part(write_golden_folder("llama", tmp_path / "theirs"), "param")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    processes = []
    for index in range(2):
        environment = dict(
            os.environ, JAX_PLATFORMS="cpu", JAX_NUM_CPU_DEVICES="2", JAX_COORDINATOR_ADDRESS=f"127.0.0.1:{port}",
            JAX_NUM_PROCESSES="2", JAX_PROCESS_ID=str(index),
        )  # fmt: skip
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", SCRIPT, str(tmp_path)], env=environment, cwd=Path(__file__).resolve().parents[2],
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )
        )  # fmt: skip
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert "Loading theirs" in outputs[0] and "Loading" not in outputs[1]  # one of them speaks
    written = safetensors.numpy.load_file(tmp_path / "ours" / "model.safetensors")
    assert written.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(written[name], value, err_msg=name)
