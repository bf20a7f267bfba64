"""Peak memory of a pretraining run on the books, and on the books twenty times over.

    python benchmarks/memory.py

Starts the real command twice for a few steps, its caches empty, on files that hold the training text of the 18 books,
once and `--times` times over, and prints the peak resident memory that each run reports of itself.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from gpt_jax.data.sources import open_source  # noqa: E402


def main() -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--steps", type=int, default=100)
    args = parser.parse_args()
    print("| text | peak host memory |\n|---|---|")
    for times in (1, args.times):
        with tempfile.TemporaryDirectory() as folder:
            megabytes = write_corpus(Path(folder), times)
            print(f"| {megabytes:.1f} MB | {peak(Path(folder), args.steps)} |", flush=True)


def write_corpus(folder: Path, times: int) -> float:
    """Writes the training text of the books `times` times as so many documents; returns its size in MB."""
    source = open_source("books", cache_dir=folder / "cache")
    (folder / "text").mkdir()
    for copy in range(times):
        with open(folder / "text" / f"{copy:03}.txt", "w", encoding="utf-8") as file:
            file.writelines(piece.text for piece in source.pieces("train"))
    return sum(path.stat().st_size for path in (folder / "text").iterdir()) / 1e6


def peak(folder: Path, steps: int) -> str:
    """The line `peak host memory` of a run."""
    command = [
        sys.executable, "-m", "gpt_jax.main", f"--config=configs/pretrain.py:books,steps={steps}",
        f"--workdir={folder / 'run'}", f"--config.data.cache_dir={folder / 'cache'}",
        f"--config.data.source=file:{folder / 'text'}/*.txt", "--config.data.validation_address=books",
        "--config.schedule.warmup_steps=10",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    found = re.search(r"peak host memory: (.*)", result.stdout)
    return found[1] if found else f"failed: {result.stderr[-2000:]}"


if __name__ == "__main__":
    main()
