"""Training speed on this machine: this project's step against peers', on the same shapes, in one run.

    python -m venv /tmp/peers && /tmp/peers/bin/pip install torch transformers numpy
    python benchmarks/training_speed.py --peer_python=/tmp/peers/bin/python

Every contestant is a process of its own that trains on random tokens: forward, backward, clipping to norm 1, AdamW,
dropout off. They take turns, a few steps at a time, so that a machine whose speed drifts slows them all alike; the
ratio is the median over the rounds of (peer's time / ours) in the same round. Also printed: what the data loader costs.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


class Contestant:
    """A worker process that runs steps when it is told to."""

    def __init__(self, name: str, command: list[str]):
        self.name = name
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=HERE.parent
        )
        self.description = self._reply()

    def seconds_per_step(self, steps: int) -> float:
        """Runs `steps` steps now."""
        return self.turn(steps)["seconds"] / steps

    def turn(self, work: int) -> dict:
        """Does so much work now; returns the worker's answer."""
        self._process.stdin.write(f"{work}\n")
        self._process.stdin.flush()
        return self._reply()

    def close(self) -> None:
        """Ends the worker."""
        self._process.stdin.close()
        self._process.wait()

    def _reply(self) -> dict:
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended without an answer (see above).")
        return json.loads(line)


def main() -> None:
    """Runs the rounds and prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer_python", help="Python of an environment with torch and transformers; none: ours alone")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=4, help="steps a turn")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    for name, value in dict(layers=4, width=256, heads=4, vocabulary=8192, batch=8, time=256).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    shape = {name: getattr(args, name) for name in ("layers", "width", "heads", "vocabulary", "batch", "time")}
    print(f"shape: {shape}; {args.rounds} rounds of {args.steps} steps\n")
    print("| step | dtype | ms (median) | ms (best) | speed of gpt_jax relative to it |\n|---|---|---|---|---|")
    for dtype in args.dtypes.split(","):
        compare(shape | {"dtype": dtype}, args)


def compare(settings: dict, args: argparse.Namespace) -> None:
    """One table's rows for one dtype."""

    def worker(python: str, file: str, kind: str) -> Contestant:
        return Contestant(kind, [python, str(HERE / file), json.dumps(settings | {"kind": kind})])

    contestants = [worker(sys.executable, "train_step_jax.py", kind) for kind in ("gpt_jax gpt2", "gpt_jax gpt1")]
    if args.peer_python:
        peers = ("nanoGPT-shaped", "transformers OpenAIGPT")
        contestants += [worker(args.peer_python, "train_step_torch.py", kind) for kind in peers]
    times = {contestant.name: [] for contestant in contestants}
    for contestant in contestants:
        contestant.seconds_per_step(2)  # warm-up
    for _ in range(args.rounds):
        for contestant in contestants:
            times[contestant.name].append(contestant.seconds_per_step(args.steps))
    # a pre-norm peer is held against our pre-norm step, the post-norm one against our post-norm step
    ours = {"nanoGPT-shaped": "gpt_jax gpt2", "transformers OpenAIGPT": "gpt_jax gpt1"}
    for name, seconds in times.items():
        own = times[ours.get(name, name)]
        ratio = statistics.median(theirs / mine for theirs, mine in zip(seconds, own, strict=True))
        print(
            f"| {name} | {settings['dtype']} | {statistics.median(seconds) * 1e3:.0f} | {min(seconds) * 1e3:.0f} | "
            f"{f'{ratio:.2f}' if name in ours else ''} |",
            flush=True,
        )
    loader = contestants[0].description["loader_seconds"]
    share = loader / statistics.median(times["gpt_jax gpt2"])
    print(f"\ndata loader, {settings['dtype']}: {loader * 1e3:.2f} ms a batch, {share:.2%} of the step\n", flush=True)
    for contestant in contestants:
        contestant.close()


if __name__ == "__main__":
    main()
