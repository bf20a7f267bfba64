"""A small model that can chat, servers of it in real processes, and an engine that needs no model."""

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from small_models import write_model

from gpt_jax.errors import UserError
from gpt_jax.inference.engine import Event

ROOT = Path(__file__).resolve().parents[1]
TEMPLATE = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}<|endoftext|>{% endfor %}a:"
LENGTH = 256
NAME = "tiny"


def write_chat_model(folder: Path, template: str | None = TEMPLATE) -> Path:
    """A Hugging Face folder with a random model of bytes, and `template`."""
    write_model(folder, "llama3.2-1B", num_layers=2, context_length=LENGTH, key_value_heads=2, head_dim=8, mlp_dim=64)
    if template is not None:
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))
    return folder


def environment(cache: Path) -> dict[str, str]:
    """Of a process of ours: one device, and a cache of compiled programs that the processes of a test session share."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}
    env |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    return env | {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}


def arguments(config: str, **fields) -> list[str]:
    """The command line of `configs/chat.py:CONFIG` with some fields."""
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    return [sys.executable, "-m", "gpt_jax.main", f"--config=configs/chat.py:{config}", *flags]


class Server:
    """A server in a process of its own.

    Attributes:
      url: http://127.0.0.1:PORT.
    """

    def __init__(self, model: Path, cache: Path, **fields):
        fields = {"serve.port": 0, "serve.name": NAME} | fields
        self.process = subprocess.Popen(
            arguments(f"serve,model={model}", **fields),
            cwd=ROOT, env=environment(cache), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        seen = []
        for line in self.process.stderr:
            seen.append(line)
            if found := re.search(r"http://\S+", line):
                self.url = found[0]
                break
        else:
            raise AssertionError("".join(seen))
        self.port = int(self.url.rpartition(":")[2])

    def stop(self, number: int, timeout: float = 300) -> tuple[int, str]:
        """The exit code after a signal, and what was printed."""
        self.process.send_signal(number)
        _, output = self.process.communicate(timeout=timeout)
        return self.process.returncode, output


@contextlib.contextmanager
def serving(model: Path, cache: Path, **fields) -> Iterator[Server]:
    """A server for the length of a block."""
    server = Server(model, cache, **fields)
    try:
        yield server
    finally:
        server.process.kill()
        server.process.communicate()


def until(condition, seconds: float = 300) -> None:
    """Waits for something that is bound to happen."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)


class CountingEngine:
    """An `Engine` whose answers count up the letters from its prompt's last id; two at a time.

    Attributes:
      held: no step adds anything while it is true; broken: the next step fails.
    """

    def __init__(self, slots: int = 2, length: int = LENGTH):
        self.slots, self.length = slots, length
        self.held = self.broken = False
        self.work: dict[int, list] = {}
        self.cancelled: list[int] = []
        self._count = 0

    @property
    def busy(self) -> bool:
        return bool(self.work)

    def submit(self, prompt, sampling, sample=0) -> int:
        if len(prompt) + sampling.max_new_tokens > self.length:
            raise UserError("too long for the engine")
        self._count += 1
        self.work[self._count] = [prompt[-1], sampling.max_new_tokens, sampling.logprobs]
        return self._count

    def cancel(self, number: int) -> None:
        self.cancelled.append(number)
        self.work.pop(number, None)

    def step(self) -> list[Event]:
        if self.broken:
            raise ZeroDivisionError("a bug")
        if self.held:
            time.sleep(0.001)
            return []
        events = []
        for number in list(self.work)[: self.slots]:
            state = self.work[number]
            state[0], state[1] = (state[0] - 97 + 1) % 26 + 97, state[1] - 1
            finished = "length" if state[1] == 0 else None
            logprobs = [] if state[2] is None else [-1.0]
            alternatives = [[(state[0], -1.0), (65, -2.0)][: state[2]]] if state[2] else []
            events.append(Event(number, [state[0]], logprobs, alternatives, finished))
            if finished:
                del self.work[number]
        return events
