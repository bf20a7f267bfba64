"""The record of a run: `metrics.jsonl` and `samples.jsonl`, with TensorBoard's copy beside them."""

import json
import os
from pathlib import Path
from typing import Any


class JsonLines:
    """A file of JSON objects, one a line, each with a `step`; appended to, and cut back when a run resumes."""

    def __init__(self, path: Path, *, resume_step: int):
        """Opens `path` and drops every row after `resume_step`, and a last line that was torn off by a kill.

        The cut is written to a second file that takes the place of the first in one move.
        """
        self.path = path
        self.rows = [row for row in read_rows(path) if row["step"] <= resume_step]
        partial = path.with_suffix(".partial")
        with open(partial, "w", encoding="utf-8") as file:
            file.writelines(_line(row) for row in self.rows)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        self._file = open(path, "a", encoding="utf-8")

    def write(self, row: dict[str, Any]) -> None:
        """Appends one row; on disk for certain after `flush`."""
        self.rows.append(row)
        self._file.write(_line(row))
        self._file.flush()

    def flush(self) -> None:
        """Forces what was written onto the disk: a checkpoint must never be ahead of its metrics."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Flushes and closes the file."""
        self.flush()
        self._file.close()


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The whole rows of a metrics or samples file; a torn last line is left out, an absent file is empty."""
    if not path.exists():
        return []
    rows = []
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                break  # torn: nothing behind it is to be trusted
            rows.append(row)
    return rows


class MetricsLog:
    """Writes a run's metrics and samples; on every process but the first it writes nothing."""

    def __init__(self, workdir: Path, *, resume_step: int, main_process: bool, tensorboard: bool):
        """Opens the files in `workdir`, cut back to `resume_step`."""
        self._metrics = self._samples = self._tensorboard = None
        if not main_process:
            return
        self._metrics = JsonLines(workdir / "metrics.jsonl", resume_step=resume_step)
        self._samples = JsonLines(workdir / "samples.jsonl", resume_step=resume_step)
        if tensorboard:
            from tensorboardX import SummaryWriter

            # purge_step: TensorBoard hides what an earlier process wrote for the steps that are made again
            self._tensorboard = SummaryWriter(str(workdir / "tensorboard"), purge_step=resume_step + 1)

    def rows(self, split: str | None = None) -> list[dict[str, Any]]:
        """The metrics rows so far, of one split or of all."""
        rows = [] if self._metrics is None else self._metrics.rows
        return [row for row in rows if split in (None, row["split"])]

    def samples(self) -> list[dict[str, Any]]:
        """The samples so far."""
        return [] if self._samples is None else self._samples.rows

    def write(self, row: dict[str, Any]) -> None:
        """Appends a metrics row: `step`, `split` and numbers (None where a number is not known)."""
        if self._metrics is None:
            return
        self._metrics.write(row)
        if self._tensorboard is not None:
            for name, value in row.items():
                if name not in ("step", "split") and value is not None:
                    self._tensorboard.add_scalar(f"{row['split']}/{name}", value, row["step"])

    def write_sample(self, row: dict[str, Any]) -> None:
        """Appends a sample: `step`, `prompt`, `continuation`."""
        if self._samples is None:
            return
        self._samples.write(row)
        if self._tensorboard is not None:
            self._tensorboard.add_text("sample", f"{row['prompt']} **⟶** {row['continuation']}", row["step"])

    def flush(self) -> None:
        """Forces everything onto the disk."""
        if self._metrics is not None:
            self._metrics.flush()
            self._samples.flush()
        if self._tensorboard is not None:
            self._tensorboard.flush()

    def close(self) -> None:
        """Flushes and closes."""
        if self._metrics is not None:
            self._metrics.close()
            self._samples.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
