"""A worker of training_speed.py: this project's own train step, the one that a run uses."""

import functools
import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax  # noqa: E402
import numpy as np  # noqa: E402

from gpt_jax.data.batch_sizes import BatchSizes  # noqa: E402
from gpt_jax.data.loader import training_batches, window_order  # noqa: E402
from gpt_jax.data.pieces import Piece  # noqa: E402
from gpt_jax.data.token_store import open_or_build  # noqa: E402
from gpt_jax.data.windows import Windows  # noqa: E402
from gpt_jax.models import decoder  # noqa: E402
from gpt_jax.models.presets import model_config  # noqa: E402
from gpt_jax.parallel.mesh import single_device_mesh  # noqa: E402
from gpt_jax.parallel.rules import sharding  # noqa: E402
from gpt_jax.text.tokenizer import SpecialIds  # noqa: E402
from gpt_jax.training.losses import language_model_loss  # noqa: E402
from gpt_jax.training.optimizers import make_optimizer  # noqa: E402
from gpt_jax.training.schedules import make_schedule  # noqa: E402
from gpt_jax.training.state import abstract_state, create_state, state_builder  # noqa: E402
from gpt_jax.training.step import compile_train_step  # noqa: E402


class RandomText:
    """A source of one document, whose text stands for nothing: `RandomTokenizer` makes random ids of it."""

    address = "random"

    def __init__(self, tokens: int):
        self._tokens = tokens

    def fingerprint(self, split: str) -> str:
        return "random"

    def bytes(self, split: str) -> None:
        return None

    def pieces(self, split: str):
        yield Piece("x" * self._tokens, True)


class RandomTokenizer:
    """A random id for every character."""

    fingerprint = "random"
    specials = SpecialIds(pad=0, end_of_text=1, start=3, delimiter=4, extract=5)

    def __init__(self, vocab_size: int):
        self.vocab_size = vocab_size

    def encode_batch(self, texts):
        rng = np.random.default_rng(0)
        return [rng.integers(6, self.vocab_size, len(text)).astype(np.int32) for text in texts]


def main() -> None:
    """Prints a description, then runs as many steps as each line of standard input says."""
    settings = json.loads(sys.argv[1])
    overrides = dict(
        num_layers=settings["layers"], num_heads=settings["heads"], embed_dim=settings["width"],
        vocab_size=settings["vocabulary"], context_length=settings["time"], compute_dtype=settings["dtype"],
        dropout=0.0, attention_block=64, logits_chunk=64,
    )  # fmt: skip
    overrides |= settings.get("overrides", {})
    config = model_config("gpt1" if settings["kind"].endswith("gpt1") else "gpt2-small", **overrides)
    mesh = single_device_mesh()
    schedule = make_schedule("constant", peak=1e-4, steps=10**6)
    optimizer = make_optimizer("adamw", schedule, weight_decay=0.1, clip_norm=1.0)
    build = state_builder(functools.partial(decoder.init, config), optimizer, 0)
    abstract = abstract_state(build, mesh)
    state = create_state(build, abstract, mesh)
    step = compile_train_step(
        abstract, mesh, loss_fn=lambda params, batch, key: language_model_loss(params, config, batch, key),
        optimizer=optimizer, schedule=schedule, accumulation=1,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        batches, loader_seconds = open_batches(Path(folder), settings, mesh)
        answer({"loader_seconds": loader_seconds})
        for line in sys.stdin:
            began = time.perf_counter()
            for _ in range(int(line)):
                state, _ = step(state, next(batches), 0)
            jax.block_until_ready(state)
            answer({"seconds": time.perf_counter() - began})


def open_batches(folder: Path, settings: dict, mesh):
    """An endless stream of batches through the real loader, and the seconds that one costs the main thread."""
    batch, length = settings["batch"], settings["time"]
    text, tokenizer = RandomText(500 * batch * length + 1), RandomTokenizer(settings["vocabulary"])
    windows = Windows(open_or_build(text, "train", tokenizer, cache_dir=folder, progress=False), length)
    rows = sharding((batch, length), ("batch", "time"), mesh)
    order, sizes = window_order(len(windows), seed=0), BatchSizes.constant(batch)
    batches = training_batches(windows, order, sizes=sizes, first_step=0, sharding=rows, prefetch=4)
    next(batches)
    began = time.perf_counter()
    for _ in range(200):  # more than are ever prefetched: what is timed is the making, too
        next(batches)
    return batches, (time.perf_counter() - began) / 200


def answer(value: dict) -> None:
    """One line of JSON for training_speed.py."""
    print(json.dumps(value), flush=True)


if __name__ == "__main__":
    main()
