"""Any checkpoint by its path."""

import re
from pathlib import Path

from gpt_jax.errors import UserError
from gpt_jax.weights.gguf import read_gguf
from gpt_jax.weights.huggingface import read_folder
from gpt_jax.weights.openai import read_openai
from gpt_jax.weights.tensors import Checkpoint


def read_checkpoint(path: Path) -> Checkpoint:
    """Opens a GGUF file, a Hugging Face folder or OpenAI's GPT-1 release, whichever stands at `path`.

    Raises:
      UserError: when none of them does, or it cannot be read.
    """
    path = Path(path).expanduser()
    if path.is_file() and path.suffix == ".gguf":
        return read_gguf(path)
    if (path / "params_shapes.json").exists():
        return read_openai(path)
    if (path / "config.json").exists():
        return read_folder(path)
    hint = ""
    if not path.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)):
        hint = " Nothing is downloaded: if this is the name of a model on a hub, fetch its files and name their folder."
    raise UserError(
        f"{path}: {'no weights' if path.exists() else 'no such file or folder'}. Expected a Hugging Face folder "
        "(config.json), a .gguf file, OpenAI's GPT-1 release (params_shapes.json), or a workdir of gpt_jax or one of "
        f"its checkpoints/STEP.{hint}"
    )
