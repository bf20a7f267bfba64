"""Real runs in real processes: a small text, a small model, the command line that users type."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def text(tmp_path_factory) -> Path:
    """Some 400 KB of sentences from a small grammar, always the same."""
    draw = random.Random(0)
    words = [
        "".join(draw.choice("bdfgklmnprst") + draw.choice("aeiou") for _ in range(draw.randint(1, 3)))
        for _ in range(400)
    ]
    lines = [" ".join(draw.choices(words, k=9)).capitalize() + ".\n" for _ in range(8000)]
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(lines))
    return path


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    """One cache for all runs of a test session, of compiled programs too."""
    return tmp_path_factory.mktemp("cache")


class Runs:
    """Starts `python -m gpt_jax.main` on the small text."""

    def __init__(self, text: Path, cache: Path):
        self.text, self.cache = text, cache

    def arguments(self, workdir: Path, **overrides) -> list[str]:
        """The command line of a small pretraining run; overrides are fields without `config.`."""
        fields = {
            "data.source": f"file:{self.text}", "data.cache_dir": self.cache, "tokenizer.vocab_size": 512,
            "model.num_layers": 2, "model.embed_dim": 32, "model.num_heads": 4, "model.context_length": 32,
            "model.dropout": 0.1, "train.steps": 12, "train.batch_size": 8, "train.log_every": 1,
            "train.eval_every": 4, "schedule.warmup_steps": 2, "checkpoint.every": 3, "report.sample_every": 6,
            "report.sample_tokens": 4, "report.tensorboard": False,
        } | overrides  # fmt: skip
        flags = [f"--config.{name}={value}" for name, value in fields.items()]
        return ["--config=configs/pretrain.py", f"--workdir={workdir}", *flags]

    def start(
        self,
        workdir: Path,
        *,
        devices: int = 1,
        environment: dict | None = None,
        flags: Sequence[str] = (),
        **overrides,
    ) -> subprocess.Popen:
        """Starts a run, with `flags` behind its command line, and returns at once."""
        env = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}
        env |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices), "PYTHONPATH": str(ROOT)}
        env |= {"JAX_COMPILATION_CACHE_DIR": str(self.cache / "xla"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        return subprocess.Popen(
            [sys.executable, "-m", "gpt_jax.main", *self.arguments(workdir, **overrides), *flags],
            cwd=ROOT, env=env | (environment or {}), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def finish(self, workdir: Path, **options) -> str:
        """Runs to the end and returns what was printed."""
        process = self.start(workdir, **options)
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
        return output


@pytest.fixture(scope="session")
def runs(text, cache) -> Runs:
    return Runs(text, cache)


@pytest.fixture(scope="session")
def undisturbed(runs, tmp_path_factory) -> Path:
    """The workdir of a run that nothing happened to."""
    workdir = tmp_path_factory.mktemp("undisturbed")
    runs.finish(workdir)
    return workdir


def read_metrics(workdir: Path) -> dict[tuple[int, str], dict]:
    """Rows by (step, split); asserts that none stands twice."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    by_key = {(row["step"], row["split"]): row for row in rows}
    assert len(by_key) == len(rows)
    return by_key


def hex_numbers(workdir: Path) -> dict:
    """Every number of metrics.jsonl that is not a timing, as hex floats; and the samples."""
    timings = {"tokens_per_second", "mfu", "seconds_rollout", "seconds_scoring", "seconds_learning"}
    numbers = {
        key: {name: float(x).hex() for name, x in row.items() if name not in timings | {"split"} and x is not None}
        for key, row in read_metrics(workdir).items()
    }
    return numbers | {"samples": (workdir / "samples.jsonl").read_text()}


def kill_when(process: subprocess.Popen, condition, *, number: int = signal.SIGKILL, timeout: float = 240) -> str:
    """Sends a signal as soon as `condition()` holds; returns the output. Asserts that it is what ended the process."""
    deadline = time.monotonic() + timeout
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise AssertionError(f"the moment to kill never came:\n{process.communicate()[0]}")
        time.sleep(0.001)
    process.send_signal(number)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number), output
    return output
