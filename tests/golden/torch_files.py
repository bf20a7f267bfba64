"""Files that PyTorch itself wrote, in both of its formats: `torch_zip.bin`, `torch_stream.bin`, `torch_values.npz`.

    python tests/golden/torch_files.py

In an environment with torch and transformers (made with torch 2.13, transformers 5.23). The two files together are the
state dict of a tiny GPT-2 as transformers 4.20 saved it: with the prefix, the mask buffers and the tied lm_head. The
zip file holds the tensors of the first layer, the stream (the format before PyTorch 1.6) all others. To be found there
besides: Parameters, a transposed tensor, two views of one storage, bfloat16 and float16. `torch_values.npz` holds each
tensor as numpy reads it, `torch_config.json` the configuration.
"""

import json
from pathlib import Path

import numpy as np
import torch
import transformers


def main() -> None:
    """Writes the files beside this script."""
    folder = Path(__file__).parent
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=11, n_positions=6, n_embd=8, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    state = transformers.GPT2LMHeadModel(config).state_dict()
    with torch.no_grad():
        for name, tensor in state.items():
            if tensor.ndim == 1:
                tensor.normal_()
            if name == "transformer.h.0.mlp.c_fc.weight":
                state[name] = tensor.T.contiguous().T  # column-major
            if name == "transformer.h.1.mlp.c_fc.weight":
                state[name] = tensor.bfloat16()
            if name == "transformer.h.1.mlp.c_proj.weight":
                state[name] = tensor.half()
            if name == "transformer.h.1.ln_2.weight":
                state[name] = torch.nn.Parameter(tensor)
        pair = torch.randn(2, 8)
        state["transformer.h.0.ln_1.weight"], state["transformer.h.0.ln_1.bias"] = pair[0], pair[1]
        for layer in range(2):
            mask = torch.tril(torch.ones(6, 6, dtype=torch.uint8)).view(1, 1, 6, 6)
            state[f"transformer.h.{layer}.attn.bias"] = mask
            state[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    first = {name: tensor for name, tensor in state.items() if ".h.0." in name}
    others = type(state)((name, tensor) for name, tensor in state.items() if name not in first)
    torch.save(first, folder / "torch_zip.bin")
    torch.save(others, folder / "torch_stream.bin", _use_new_zipfile_serialization=False)
    np.savez_compressed(
        folder / "torch_values.npz",
        **{name: tensor.detach().to(torch.float32).numpy() for name, tensor in state.items()},
    )
    fields = {name: value for name, value in config.to_dict().items() if not name.startswith("_")}
    (folder / "torch_config.json").write_text(json.dumps(fields, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
