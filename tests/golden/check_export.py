"""transformers loads what we export, with nothing missing or left over, and computes the same logits.

    python tests/golden/check_export.py write FOLDER   # where gpt_jax is installed: exports the golden models
    python tests/golden/check_export.py check FOLDER   # where torch and transformers are: loads and compares them

`write` puts into FOLDER, for each of the golden models (gpt1.npz ... beside this script; weights of large spread) and
some variants of them, the folder NAME/ as `gpt_jax.weights.huggingface.write_folder` writes it, in one file and again
in several with an index (NAME-divided/) and in bfloat16 (NAME-bfloat16/), and NAME.npz with `tokens` and our float32
`logits`. `check` exits with 1 when anything is amiss. Also for an export of your own: put FOLDER/NAME/ and
FOLDER/NAME.npz there.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import numpy as np

# The golden models, and fields that differ from a golden model's, with parameters drawn here.
MODELS = {
    "gpt1": {}, "gpt2": {}, "llama": {}, "qwen2": {},
    "gpt1-variant": dict(activation="relu", tied_output=False, norm_epsilon=1e-3),
    "gpt2-variant": dict(activation="gelu", tied_output=False, mlp_dim=40, norm_epsilon=1e-3),
    "gpt2-squared": dict(activation="relu_squared"),
    "llama-variant": dict(biases="all", tied_output=True, rope_scaling="linear", rope_factor=3.0, key_value_heads=None),
    "qwen2-variant": dict(tied_output=False, head_dim=8, rope_scaling="llama3", rope_factor=4.0,
                          rope_original_context=32, key_value_heads=1),
}  # fmt: skip
LIMIT = 1e-5  # of the largest logit; both sides compute in float32


def write(folder: Path) -> None:
    """Exports the golden models and their logits."""
    root = Path(__file__).resolve().parents[2]
    sys.path[:0] = [str(root), str(root / "tests" / "weights")]
    import jax
    from golden_models import write_golden_folder

    from gpt_jax.models import decoder
    from gpt_jax.parallel.mesh import single_device_mesh
    from gpt_jax.weights.huggingface import read_folder, write_folder
    from gpt_jax.weights.load import load_parameters

    mesh = single_device_mesh()
    for name, changes in MODELS.items():
        theirs = folder / "theirs" / name
        tokens = write_golden_folder(name.split("-")[0], theirs)["tokens"]
        checkpoint = read_folder(theirs)
        config = dataclasses.replace(checkpoint.config, **changes)
        if changes:
            with jax.set_mesh(mesh):
                params = decoder.init(config, jax.random.key(0))
            params = jax.tree.map(lambda x: x + 0.25 * jax.random.normal(jax.random.key(x.size), x.shape), params)
        else:
            params = load_parameters(checkpoint, mesh)
        exports = {name: {}, f"{name}-divided": dict(bytes_per_file=20_000), f"{name}-bfloat16": dict(dtype="bfloat16")}
        for export, options in exports.items():
            write_folder(params, config, folder / export, **options)
            written = load_parameters(read_folder(folder / export), mesh)
            with jax.set_mesh(mesh):
                hidden = decoder.hidden_states(written, config, tokens)
                logits = decoder.unembed(hidden, decoder.output_matrix(written, config))
            np.savez(folder / f"{export}.npz", tokens=tokens, logits=logits)


def check(folder: Path) -> bool:
    """Whether transformers agrees on every export in `folder`."""
    import torch
    import transformers

    right = True
    for values in sorted(folder.glob("*.npz")):
        export = values.with_suffix("")
        written = json.loads((export / "config.json").read_text())
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            export, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
        )
        config = transformers.AutoConfig.from_pretrained(export)
        problems = {name: list(keys) for name, keys in info.items() if keys}
        if [type(model).__name__] != written["architectures"] or str(config.dtype) != f"torch.{written['torch_dtype']}":
            problems["class or dtype"] = [type(model).__name__, str(config.dtype)]
        with np.load(values) as stored, torch.no_grad():
            logits = model(input_ids=torch.from_numpy(stored["tokens"]).long()).logits.numpy()
            difference = np.max(np.abs(logits - stored["logits"])) / np.max(np.abs(stored["logits"]))
        fine = not problems and difference <= LIMIT
        right &= fine
        print(f"{'ok ' if fine else 'NOT'} {export.name}: {type(model).__name__}, {difference:.1e} {problems or ''}")
    return right


def main() -> None:
    """Writes or checks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=("write", "check"))
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    if arguments.mode == "write":
        write(arguments.folder)
    elif not check(arguments.folder):
        sys.exit("transformers does not agree with the exports.")


if __name__ == "__main__":
    main()
