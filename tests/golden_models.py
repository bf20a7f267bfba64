"""The stored values of transformers' models (tests/golden/transformers_models.py), and their weights as a folder."""

import json
from pathlib import Path

import numpy as np
import safetensors.numpy

FOLDER = Path(__file__).resolve().parent / "golden"
FAMILIES = ("gpt1", "gpt2", "llama", "qwen2")


def golden_values(family: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / f"{family}.npz") as stored:
        return dict(stored)


def part(values: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The arrays under `prefix/`, without it."""
    return {name.removeprefix(f"{prefix}/"): value for name, value in values.items() if name.startswith(f"{prefix}/")}


def write_config(folder: Path, fields: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(fields))


def write_golden_folder(family: str, folder: Path) -> dict[str, np.ndarray]:
    """The golden model as transformers would save it; returns all its values."""
    values = golden_values(family)
    write_config(folder, json.loads(str(values["config"])))
    safetensors.numpy.save_file(part(values, "param"), folder / "model.safetensors", metadata={"format": "pt"})
    return values
