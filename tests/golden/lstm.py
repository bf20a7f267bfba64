"""Golden values of a language model around torch.nn.LSTM, in float64.

    python tests/golden/lstm.py           # writes lstm.npz beside this script
    python tests/golden/lstm.py --check   # makes the values anew and says how far they are from those stored

In an environment with torch (made with torch 2.13, CPU); nothing of gpt_jax is used. Two layers, each an LSTM and a
projection back to the width on top of the layer's input; a LayerNorm; the token embeddings again as output matrix.

Keys: `tokens`, `targets` [B, T]; `parameter/NAME` and `gradient/NAME` as torch names and shapes them, the gradient that
of `loss`, the mean nats per token; `states` [B, T, U] of the first layer's LSTM; `logits` [B, T, V].
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

VOCABULARY, WIDTH, UNITS, LAYERS, BATCH, TIME = 23, 8, 12, 2, 3, 11


class Layer(torch.nn.Module):
    """x + output(lstm(x))."""

    def __init__(self):
        super().__init__()
        self.lstm = torch.nn.LSTM(WIDTH, UNITS, batch_first=True)
        self.output = torch.nn.Linear(UNITS, WIDTH, bias=False)


class Model(torch.nn.Module):
    """The language model."""

    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(VOCABULARY, WIDTH)
        self.layers = torch.nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm = torch.nn.LayerNorm(WIDTH, eps=1e-5)

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The first layer's states, and the logits."""
        x, first = self.embedding(tokens), None
        for layer in self.layers:
            states, _ = layer.lstm(x)
            first = states if first is None else first
            x = x + layer.output(states)
        return first, self.norm(x) @ self.embedding.weight.T


def golden_values() -> dict[str, np.ndarray]:
    """Everything that is stored; parameters of large spread, so that every gate works away from its linear middle."""
    torch.manual_seed(0)
    model = Model().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.6 * torch.randn(parameter.shape, dtype=torch.float64))
    tokens, targets = torch.randint(VOCABULARY, (2, BATCH, TIME))
    states, logits = model(tokens)
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    loss.backward()
    values = {"tokens": tokens, "targets": targets, "states": states, "logits": logits, "loss": loss}
    for name, parameter in model.named_parameters():
        values |= {f"parameter/{name}": parameter, f"gradient/{name}": parameter.grad}
    return {name: value.detach().numpy() for name, value in values.items()}


def main() -> None:
    """Writes the file, or compares it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    path = Path(__file__).with_name("lstm.npz")
    values = golden_values()
    if not parser.parse_args().check:
        np.savez_compressed(path, **values)
        print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB")
        return
    with np.load(path) as stored:
        if set(stored.files) != set(values):
            sys.exit(f"{path.name}: other keys: {sorted(set(stored.files) ^ set(values))}")
        worst = max(float(np.max(np.abs(stored[key] - values[key]))) for key in values)
    print(f"{path.name}: largest difference {worst:.2e}")
    if worst > 1e-12:
        sys.exit(f"The stored values are not those of torch {torch.__version__}.")


if __name__ == "__main__":
    main()
