"""Golden values of transformers' models: `gpt1.npz`, `gpt2.npz`, `llama.npz`, `qwen2.npz` beside this script.

    python tests/golden/transformers_models.py           # writes them
    python tests/golden/transformers_models.py --check   # makes them anew and says how far they are from those stored

In an environment with torch and transformers (made with torch 2.13, transformers 5.23); nothing of gpt_jax is used.

Everything is computed in real float64. transformers narrows to float32 inside Llama and Qwen2 (norm, rotary angles,
softmax) whatever the model's dtype, which alone is 2e-5 in the logits; so torch's names for float32 mean float64 while
its own code runs. The loss is computed here from the logits, since transformers' loss is float32 too.

Keys: `config` (JSON, as config.json has it), `tokens` [B, T], `param/NAME` (float32), `hidden/0` (embeddings) to
`hidden/L` (the output; after the final norm where there is one), `logits`, `loss` (mean nats of tokens[:, 1:]),
`gradient/NAME`.
"""

import argparse
import contextlib
import json
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import transformers

BATCH, TIME = 2, 16
NO_DROPOUT = dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
LLAMA_SIZES = dict(vocab_size=61, max_position_embeddings=128, hidden_size=24, intermediate_size=40)

CONFIGS = {
    "gpt1": transformers.OpenAIGPTConfig(
        vocab_size=61, n_positions=TIME, n_embd=24, n_layer=3, n_head=4, **NO_DROPOUT
    ),
    "gpt2": transformers.GPT2Config(vocab_size=61, n_positions=TIME, n_embd=24, n_layer=3, n_head=4, **NO_DROPOUT),
    # Heads wider than hidden_size / heads; an original context so short that of the four frequencies one stays, one
    # is in the smooth passage and two are scaled in full, all within 16 tokens.
    "llama": transformers.LlamaConfig(
        **LLAMA_SIZES, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        rms_norm_eps=1e-5, tie_word_embeddings=False,
        rope_parameters=dict(
            rope_type="llama3", rope_theta=500.0, factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
            original_max_position_embeddings=64,
        ),
    ),
    "qwen2": transformers.Qwen2Config(
        **LLAMA_SIZES, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
        rope_parameters=dict(rope_type="default", rope_theta=10_000.0),
    ),
}  # fmt: skip


@contextlib.contextmanager
def float32_means_float64():
    """torch's names for float32 mean float64."""
    torch.set_default_dtype(torch.float64)
    names = dict(float=torch.float64, float32=torch.float64)
    try:
        with (
            mock.patch.multiple(torch, **names),
            mock.patch.object(torch.Tensor, "float", torch.Tensor.double),
        ):
            yield
    finally:
        torch.set_default_dtype(torch.float32)


def draw(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Large random values: at 0.02 attention is nearly uniform, and zero biases hide mistakes."""
    noise = rng.standard_normal(shape)
    if len(shape) > 1:
        values = 0.25 * noise
    elif name.endswith("bias"):
        values = 0.1 * noise
    else:
        values = 1 + 0.1 * noise
    return values.astype(np.float32)


def golden_values(config: transformers.PreTrainedConfig, seed: int) -> dict[str, np.ndarray]:
    """Everything that is stored of one model."""
    rng = np.random.default_rng(seed)
    with float32_means_float64():
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        assert {p.dtype for p in model.parameters()} == {torch.float64}
        values = {}
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                values[f"param/{name}"] = draw(name, tuple(parameter.shape), rng)
                parameter.copy_(torch.from_numpy(values[f"param/{name}"]))
        tokens = rng.integers(0, config.vocab_size, (BATCH, TIME))
        ids = torch.from_numpy(tokens)
        output = model(input_ids=ids, output_hidden_states=True)
        log_probabilities = output.logits[:, :-1].log_softmax(dim=-1)
        loss = -log_probabilities.gather(-1, ids[:, 1:, None]).mean()
        assert loss.dtype == torch.float64
        loss.backward()
    fields = {name: value for name, value in config.to_dict().items() if not name.startswith("_")}
    fields["architectures"] = [type(model).__name__]
    values["config"] = np.array(json.dumps(fields, sort_keys=True))
    values["tokens"] = tokens.astype(np.int32)
    for index, hidden in enumerate(output.hidden_states):
        values[f"hidden/{index}"] = hidden.detach().numpy()
    values |= {"logits": output.logits.detach().numpy(), "loss": loss.detach().numpy()}
    return values | {f"gradient/{name}": p.grad.numpy() for name, p in model.named_parameters()}


def main() -> None:
    """Writes the files, or compares them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    worst = 0.0
    for seed, (name, config) in enumerate(CONFIGS.items()):
        path = Path(__file__).with_name(f"{name}.npz")
        values = golden_values(config, seed)
        if not check:
            np.savez_compressed(path, **values)
            print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB, loss {float(values['loss']):.6f}")
            continue
        with np.load(path) as stored:
            if set(stored.files) != set(values):
                sys.exit(f"{path.name}: other keys: {sorted(set(stored.files) ^ set(values))}")
            numbers = [key for key in values if key != "config"]
            worst_here = max(float(np.max(np.abs(stored[key] - values[key]))) for key in numbers)
        print(f"{path.name}: largest difference {worst_here:.2e}")
        worst = max(worst, worst_here)
    if worst > 1e-10:
        sys.exit(f"The stored values are not those of transformers {transformers.__version__}.")


if __name__ == "__main__":
    main()
