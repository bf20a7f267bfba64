"""Loading takes the memory of the model and about one tensor."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# Pages of mapped files do not count: the kernel takes them back when it needs them.
SCRIPT = """
import json, sys, threading, time
from pathlib import Path
import jax, numpy as np, safetensors.numpy
from gpt_jax.models import decoder
from gpt_jax.models.presets import model_config
from gpt_jax.parallel.mesh import make_mesh
from gpt_jax.weights.huggingface import read_folder
from gpt_jax.weights.layouts import GPT2, slots
from gpt_jax.weights.load import load_parameters

def anonymous_bytes():
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")]
    return 1024 * int(line.split()[1])

folder, dtype, fsdp = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
if not (folder / "config.json").exists():
    shapes = {slot.name: slot.their_shape for slot in slots(model_config("gpt2-small"), GPT2)}
    tensors = {name: np.full(shape, 0.01, dtype) for name, shape in shapes.items()}
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    sys.exit()
mesh = make_mesh({"fsdp": fsdp})
jax.block_until_ready(jax.numpy.zeros(8) + 1)
checkpoint = read_folder(folder)
before, peak, done = anonymous_bytes(), 0, threading.Event()

def watch():
    global peak
    while not done.is_set():
        peak = max(peak, anonymous_bytes())
        time.sleep(0.001)

watcher = threading.Thread(target=watch)
watcher.start()
params = jax.block_until_ready(load_parameters(checkpoint, mesh))
done.set()
watcher.join()
print(json.dumps({"rise": peak - before, "model": 4 * decoder.parameter_count(checkpoint.config)}))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="counts anonymous memory in /proc, as Linux has it")
@pytest.mark.parametrize(("dtype", "devices"), [("float32", 1), ("float16", 1), ("float32", 4)])
def test_the_peak_is_little_more_than_the_model(dtype, devices, tmp_path):
    environment = dict(os.environ, JAX_PLATFORMS="cpu", JAX_NUM_CPU_DEVICES=str(devices))
    root = str(Path(__file__).resolve().parents[2])
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), dtype, str(devices)]
    subprocess.run(command, env=environment, cwd=root, check=True)
    measured = json.loads(subprocess.run(command, env=environment, cwd=root, check=True, stdout=subprocess.PIPE).stdout)
    print(f"{measured['rise'] / measured['model']:.3f} x {measured['model']:,} bytes")
    assert measured["model"] == 4 * 124_439_808
    assert measured["model"] < measured["rise"] <= 1.3 * measured["model"]
