"""Finished runs as the points that scaling laws are fitted to: from workdirs, and from tables of anyone's numbers."""

import csv
import glob
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from gpt_jax.errors import UserError
from gpt_jax.models.config import ModelConfig
from gpt_jax.models.decoder import parameter_count, parameter_specs
from gpt_jax.models.flops import training_flops_per_token
from gpt_jax.models.parameters import ParameterSpec
from gpt_jax.models.presets import model_config
from gpt_jax.parallel.runtime import announce
from gpt_jax.planning.scaling_laws import Point
from gpt_jax.training.metrics_log import read_rows

TABLES = (".csv", ".tsv", ".jsonl")
COLUMNS = ("name", "parameters", "tokens", "compute", "loss", "flops", "bits_per_byte")
SHORT = {"N": "parameters", "D": "tokens", "C": "compute", "L": "loss"}


def parameters_without_embeddings(model: ModelConfig) -> int:
    """N: all parameters but the rows of tokens and positions, at the input and at the output."""
    specs = parameter_specs(model)
    rows = {name: specs[name] for name in ("embedding", "unembedding") if name in specs}
    leaves = jax.tree.leaves(rows, is_leaf=lambda leaf: isinstance(leaf, ParameterSpec))
    return parameter_count(model) - sum(math.prod(spec.shape) for spec in leaves)


def read(patterns: str) -> tuple[list[Point], list[Path]]:
    """The points that `patterns` name, separated by commas: tables, workdirs, or folders of workdirs.

    Returns:
      the points, and the workdirs among them, whose text `check_same_text` compares.

    Raises:
      UserError: nothing there, a row or a workdir that is not as expected.
    """
    points, folders = [], []
    for pattern in filter(None, map(str.strip, patterns.split(","))):
        found = [Path(path) for path in sorted(glob.glob(str(Path(pattern).expanduser())))]
        if not found:
            raise UserError(f"read={pattern}: no such file or folder (looked in {Path.cwd()}).")
        for path in found:
            if path.suffix in TABLES:
                points += read_table(path)
            elif path.is_dir():
                folders += _workdirs(path)
            else:
                raise UserError(f"read={path}: expected a workdir, a folder of some, or {', '.join(TABLES)}.")
    return points + [read_workdir(folder) for folder in folders], folders


def _workdirs(folder: Path) -> list[Path]:
    """The finished pretraining runs in `folder`, itself included; those that are not done are said and left out."""
    done = []
    for path in sorted(folder.rglob("metrics.jsonl")):
        if is_done(path.parent):
            done.append(path.parent)
        else:
            announce(f"{path.parent} is not done: left out")
    if not done:
        raise UserError(f"read={folder}: holds no pretraining run that is done.")
    return done


def is_done(workdir: Path) -> bool:
    """Whether the run in `workdir` came to its end: its report is the last that it writes."""
    return (workdir / "report.md").is_file()


def read_workdir(workdir: Path) -> Point:
    """The point of a finished pretraining run, from its last validation.

    UserError: its files are not as such a run leaves them.
    """
    try:
        config = json.loads((workdir / "config.json").read_text())
        seen = json.loads((workdir / "data.json").read_text())["train"]["tokens"]
        last = [row for row in read_rows(workdir / "metrics.jsonl") if row["split"] == "valid"][-1]
        model, tokens = model_config(**config["model"]), last["tokens"]
        length = config["data"]["sequence_length"]
        loss, bits = float(last["loss"]), last["bits_per_byte"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"{workdir}: config.json, data.json or metrics.jsonl is not as a pretraining run leaves it ({error!r}). "
            "Restore or move the folder."
        ) from None
    if tokens > 1.01 * seen:
        announce(f"{workdir}: saw its text {tokens / seen:.1f} times; the laws are of text that is seen once")
    size = parameters_without_embeddings(model)
    return Point(
        name=workdir.name, parameters=size, tokens=tokens, compute=6 * size * tokens, loss=loss,
        total_parameters=parameter_count(model), flops=training_flops_per_token(model, length) * tokens,
        bits_per_byte=bits,
    )  # fmt: skip


def check_same_text(workdirs: Sequence[Path]) -> None:
    """Raises UserError unless all the runs read the same text by the same tokenizer: other losses do not compare."""
    first: dict[str, Any] = {}
    for workdir in workdirs:
        facts = json.loads((workdir / "data.json").read_text())
        if "sources" in facts:
            raise UserError(
                f"{workdir}: a run on a mixture of sources; the laws are of one text. Leave it out of read."
            )
        own = {
            "tokenizer": facts["tokenizer"],
            "training text": facts["train"]["fingerprint"],
            "held-out text": facts["valid"]["fingerprint"],
        }
        for name, value in own.items():
            where, other = first.setdefault(name, (workdir, value))
            if other != value:
                raise UserError(
                    f"{workdir} and {where} have another {name}: their losses do not compare, and no law goes through "
                    "both. Read runs of one text and one tokenizer."
                )


def read_table(path: Path) -> list[Point]:
    """The points of a .csv, .tsv or .jsonl file.

    Columns: `loss`, and `parameters` and `tokens` or `compute` (FLOPs; 6 · parameters · tokens where it is missing),
    also called L, N, D, C; `name`, `flops`, `bits_per_byte` if known. Others are passed over.

    UserError: with the line, for a row without them or with something that is not a positive number.
    """
    points = []
    for line, row in _rows(path):
        row = {SHORT.get(name, name): value for name, value in row.items()}
        fields = {name: _number(path, line, name, row.get(name)) for name in COLUMNS[1:]}
        if fields["compute"] is None and fields["parameters"] and fields["tokens"]:
            fields["compute"] = 6 * fields["parameters"] * fields["tokens"]
        if fields["loss"] is None or fields["compute"] is None:
            raise UserError(
                f"{path}, line {line}: expected a loss, and parameters and tokens or compute (or L, N, D, C); there "
                f"are {', '.join(name for name, value in row.items() if value not in (None, '')) or 'none'}."
            )
        points.append(Point(name=str(row.get("name") or f"{path.stem}, line {line}"), **fields))
    if not points:
        raise UserError(f"{path} holds no run.")
    return points


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers and rows."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Cannot read {path}: {error}.") from None
    if path.suffix != ".jsonl":
        reader = csv.DictReader(text.splitlines(), delimiter="\t" if path.suffix == ".tsv" else ",")
        for row in reader:
            yield reader.line_num, {(name or "").strip(): value for name, value in row.items()}
        return
    for line, words in enumerate(text.splitlines(), start=1):
        if words.strip():
            try:
                row = json.loads(words)
            except json.JSONDecodeError as error:
                raise UserError(f"{path}, line {line}: is not JSON ({error}).") from None
            if not isinstance(row, dict):
                raise UserError(f"{path}, line {line}: expected a JSON object, one run a line.")
            yield line, row


def _number(path: Path, line: int, name: str, value: Any) -> float | None:
    """`value` as a positive number; None where it is empty."""
    if value is None or value == "":
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 < number < math.inf:
        raise UserError(f"{path}, line {line}: {name}={value!r}: expected a positive number.")
    return number
