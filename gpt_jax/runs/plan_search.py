"""`--plan=TOPOLOGY --plan_search`: the mesh, rematerialisation and accumulation that train a config fastest there.

Compiles the training step in one variant after the other, as `--plan` does, and keeps what the compiler says of each in
`plan_search.jsonl`; the same command goes on with those that are missing. The best so far always stands in
`best_config.json`.

Not compiled is what cannot win. Where a variant does not fit, none fits that needs more: on the same mesh with less
rematerialisation and no more parts. Where one fits, none is faster that saves more: memory is bought with time. (Layers
that are scanned are the exception: the loop carries what the forward pass keeps, so keeping less can be faster; there
only more parts are taken for slower.) So the search halves its way to the border between the two.
"""

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from gpt_jax import configuration
from gpt_jax.disk import digest, write_atomically
from gpt_jax.errors import UserError
from gpt_jax.models.presets import model_config
from gpt_jax.parallel.devices import GIB
from gpt_jax.parallel.mesh import make_mesh
from gpt_jax.planning import memory
from gpt_jax.planning.topologies import Topology, find_topology
from gpt_jax.progress import clock, say
from gpt_jax.runs import plan, pretrain
from gpt_jax.runs.recipe import check_batch, check_model_fits
from gpt_jax.runs.workdir import open_workdir

REMATS = ("none", "dots", "block")  # each keeps less than the one before
SCATTERED = 8  # chips over which the TPU compiler scatters gradients; over more it may sum them whole (LOG.md)
TENSORS = (1, 2, 4)  # beyond four, its sums in every layer cost more than a slice of this size gains

Row = dict[str, Any]  # a line of plan_search.jsonl


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One variant of the config."""

    data: int
    fsdp: int
    tensor: int
    remat: str
    accumulation: int

    @property
    def mesh(self) -> tuple[int, int, int]:
        """Devices along `data`, `fsdp` and `tensor`."""
        return self.data, self.fsdp, self.tensor

    @property
    def saving(self) -> tuple[int, int]:
        """What it pays for memory: places among `REMATS`, and parts of a batch."""
        return REMATS.index(self.remat), self.accumulation

    @property
    def change(self) -> dict[str, Any]:
        """The fields that it sets."""
        return {
            "mesh.data": self.data,
            "mesh.fsdp": self.fsdp,
            "mesh.tensor": self.tensor,
            "model.remat": self.remat,
            "train.accumulation": self.accumulation,
        }

    def needs_no_less_than(self, other: "Candidate") -> bool:
        """Whether it cannot fit where `other` does not."""
        return self.mesh == other.mesh and all(a <= b for a, b in zip(self.saving, other.saving, strict=True))

    def cannot_beat(self, other: "Candidate", scanned: bool) -> bool:
        """Whether it saves memory that is not missing where `other` fits."""
        same_kind = not scanned or self.remat == other.remat
        return same_kind and other.needs_no_less_than(self)


def run(config: ConfigDict, workdir: Path, topology_name: str) -> list[Row]:
    """Searches, or goes on with a search, for `config` on `topology_name`; prints the table and returns its rows, best
    first.

    Raises:
      UserError: for what cannot be planned, and where no variant fits.
    """
    if config.run != "pretrain":
        raise UserError(f"--plan_search: of pretraining runs only (configs/pretrain.py), not of run={config.run!r}.")
    jax.config.update("jax_threefry_partitionable", True)
    topology = find_topology(topology_name)
    resolved, _ = pretrain.resolve(config)
    variants = candidates(resolved, topology)
    with open_workdir(plan.plan_folder(workdir, topology)) as folder:
        record = Record(folder, resolved, topology)
        say(
            f"{pretrain.title(resolved)} on {topology.name}: {len(variants)} variants, {len(record.rows)} known; each "
            "takes as long as its compilation. Ctrl-C ends the search after the one at hand; what is there stays in "
            f"{folder}."
        )
        try:
            for row in search(
                variants, lambda c: measure(config, c, topology), record.rows, resolved.model.scan_layers
            ):
                record.add(row)
        finally:  # Ctrl-C too
            ranked = sorted(record.rows.values(), key=rank)
            if ranked:
                print(table(ranked, topology.name))
    if not ranked[0]["fits"]:
        raise UserError(
            f"--plan_search: no variant of {pretrain.title(resolved)} fits {topology.name}, the nearest that was "
            f"compiled is {plan.flags(ranked[0]['change'])}. Take more chips, a smaller train.batch_size, or set "
            "model.logits_chunk=256."
        )
    print(f"the best: {plan.flags(ranked[0]['change'])}\nits config: {folder / 'best_config.json'}")
    return ranked


def candidates(config: ConfigDict, topology: Topology) -> list[Candidate]:
    """All variants that model, batch and machine allow, mesh by mesh, the likely best meshes first.

    Raises:
      UserError: there is none; it says why not for the first mesh.
    """
    model, batch = model_config(**config.model), config.train.batch_size
    found, refusals = [], []
    for data, fsdp, tensor in meshes(len(topology.devices), config.mesh.sequence, config.mesh.slices):
        sizes = config.mesh.to_dict() | {"data": data, "fsdp": fsdp, "tensor": tensor}
        try:
            mesh = make_mesh(sizes, topology.devices)
            check_model_fits(model, mesh)
            check_batch(batch, mesh)
            pretrain.check_sequence(config, mesh)
        except UserError as error:
            refusals.append(error)
            continue
        rows = batch // (data * fsdp)
        parts = {2**i for i in range(rows.bit_length())} | {config.train.accumulation}
        found += [
            Candidate(data, fsdp, tensor, remat, n)
            for remat in REMATS
            for n in sorted(parts)
            if n > 0 and rows % n == 0
        ]
    if not found:
        raise refusals[0]
    return found


def meshes(chips: int, sequence: int = 1, slices: int = 1) -> list[tuple[int, int, int]]:
    """(data, fsdp, tensor) in the order in which they are tried: fsdp over all devices, over eight, half and half with
    data, all along data; each with a larger `tensor`.

    Only data crosses slices, so that it is a multiple of `slices`.
    """
    found = []
    for tensor in TENSORS:
        rest, left = divmod(chips, tensor * sequence * slices)
        if left or not rest:
            continue
        half = max(n for n in range(1, math.isqrt(rest) + 1) if rest % n == 0)
        eights = [rest // SCATTERED] if rest % SCATTERED == 0 else []
        found += [(slices * data, rest // data, tensor) for data in dict.fromkeys((1, *eights, half, rest))]
    return found


def search(
    variants: list[Candidate], measure: Callable[[Candidate], Row], known: dict[Candidate, Row], scanned: bool
) -> Iterator[Row]:
    """Yields the row of every candidate that is measured, in the order of measuring.

    Args:
      known: rows of an earlier search, by candidate; they count, and are not measured again.
      scanned: whether the layers are.
    """
    known, began = dict(known), time.monotonic()
    while (candidate := next_candidate(variants, known, scanned)) is not None:
        row = measure(candidate)
        best = min(known.values(), key=rank, default=None)
        known[candidate] = row
        left = len(open_candidates(variants, known, scanned))
        first = row["fits"] and (best is None or rank(row) < rank(best))
        say(
            f"[{clock(time.monotonic() - began)}, at most {left} left] {short(row)}: {verdict(row)}"
            + "; the best so far" * first
        )
        yield row


def next_candidate(variants: list[Candidate], known: dict[Candidate, Row], scanned: bool) -> Candidate | None:
    """The one to measure next; None: the search is over.

    Mesh by mesh: first the one that saves nothing, then always the middle of those that are open.
    """
    waiting = open_candidates(variants, known, scanned)
    if not waiting:
        return None
    on_mesh = [candidate for candidate in waiting if candidate.mesh == waiting[0].mesh]
    on_mesh.sort(key=lambda candidate: (candidate.saving[0] + math.log2(candidate.accumulation), candidate.saving))
    begun = any(candidate.mesh == on_mesh[0].mesh for candidate in known)
    return on_mesh[len(on_mesh) // 2 if begun else 0]


def open_candidates(variants: list[Candidate], known: dict[Candidate, Row], scanned: bool) -> list[Candidate]:
    """Those that are not known, may fit, and may be faster than what fits on their mesh."""

    def hopeless(candidate: Candidate, other: Candidate, row: Row) -> bool:
        if not row["fits"]:
            return candidate.needs_no_less_than(other)
        return row.get("estimated_step_seconds") is not None and candidate.cannot_beat(other, scanned)

    return [
        candidate
        for candidate in variants
        if candidate not in known and not any(hopeless(candidate, other, row) for other, row in known.items())
    ]


def measure(config: ConfigDict, candidate: Candidate, topology: Topology) -> Row:
    """Compiles one candidate: its change, and what `plan.json` would say of it."""
    step = plan.prepare(plan.changed(config, candidate.change), topology)
    row = {"change": candidate.change} | plan.facts(step, topology)
    state = memory.shard_bytes(step.abstract)
    if topology.chip and topology.chip.hbm_bytes and state > topology.chip.hbm_bytes:  # known without compiling
        return row | {"fits": False, "needed_bytes": state}
    try:
        made, _ = plan.make_plan(step, topology)
    except plan.OutOfMemory as error:
        return row | {"fits": False, "needed_bytes": error.needed, "missing_bytes": error.missing}
    return row | {name: value for name, value in made.items() if name != "dearest"}  # which is long, and plan.json's


class Record:
    """The rows of a search on disk, whole at any moment, and the best one's config beside them.

    Rows of another config, topology or JAX stay in the file and do not count.
    """

    def __init__(self, folder: Path, config: ConfigDict, topology: Topology):
        self._folder, self._config = folder, config
        fields = configuration.flatten(configuration.as_json(config))
        searched = Candidate(1, 1, 1, "none", 1).change
        rest = {name: value for name, value in fields.items() if name not in searched}
        self._search = digest(rest, topology.name, jax.__version__)[:16]
        self._path = folder / "plan_search.jsonl"
        self._others, self.rows = [], {}
        for row in self._read():
            if row.get("search") == self._search:
                self.rows[_candidate(row)] = row
            else:
                self._others.append(row)

    def _read(self) -> list[Row]:
        if not self._path.exists():
            return []
        try:
            return [json.loads(line) for line in self._path.read_text().splitlines()]
        except ValueError as error:
            raise UserError(f"{self._path} is damaged ({error}): delete it, and the search begins anew.") from None

    def add(self, row: Row) -> None:
        """Writes a new row, and the config of the best."""
        self.rows[_candidate(row)] = {"search": self._search} | row
        lines = [json.dumps(row) + "\n" for row in (*self._others, *self.rows.values())]
        write_atomically(self._path, "".join(lines).encode())
        best = min(self.rows.values(), key=rank)
        if best["fits"]:
            changed = plan.changed(self._config, best["change"])
            configuration.write_json(self._folder / "best_config.json", configuration.as_json(changed))


def _candidate(row: Row) -> Candidate:
    change = row["change"]
    return Candidate(*(change[name] for name in Candidate(1, 1, 1, "none", 1).change))


def rank(row: Row) -> tuple:
    """Sorts rows: those that fit by estimated time, or where there is no estimate by memory; then the others."""
    return (
        not row["fits"],
        (row.get("estimated_step_seconds") or 0.0) if row["fits"] else 0.0,
        needed_bytes(row) or math.inf,
    )


def needed_bytes(row: Row) -> int | None:
    """Bytes of a chip's memory; None where a program does not fit and the compiler does not say how much it needs."""
    return row["bytes_per_chip"]["total"] if "bytes_per_chip" in row else row.get("needed_bytes")


def verdict(row: Row) -> str:
    """What the compiler says of a candidate, in a line."""
    if not row["fits"]:
        needed = needed_bytes(row)
        return f"does not fit, it needs {needed / GIB:.1f} GiB a chip" if needed else "does not fit"
    total = f"{needed_bytes(row) / GIB:.3g} GiB a chip"
    if row.get("estimated_step_seconds") is None:
        return total
    return f"{row['estimated_step_seconds'] * 1e3:.1f} ms a step, MFU {row['estimated_mfu']:.1%}, {total}"


def short(row: Row) -> str:
    """A candidate in a few words: what it changes that is more than one device, part or nothing."""
    words = [f"{name.partition('.')[2]}={value}" for name, value in row["change"].items() if value not in (1, "none")]
    return " ".join(words) or "one device"


def table(ranked: list[Row], topology: str) -> str:
    """All rows for people, best first."""
    lines = [
        f"{len(ranked)} variants on {topology}, fastest first (estimates; collectives: bytes a chip sends a step, and "
        "how long the step waits for them):",
        f"  {'ms':>8} {'MFU':>6} {'GiB':>7} {'sent MiB':>9} {'waited ms':>9}  variant",
    ]
    for row in ranked:
        numbers = ["", "", "", "", ""]
        if row["fits"]:
            numbers[2] = f"{needed_bytes(row) / GIB:.2f}"
        if row["fits"] and row.get("estimated_step_seconds") is not None:
            step, without = row["estimated_step_seconds"], row["estimated_step_seconds_without_collectives"]
            sent = sum(collective["ring_bytes"] for collective in row["collectives"])
            numbers[:2] = f"{step * 1e3:.1f}", f"{row['estimated_mfu']:.1%}"
            numbers[3:] = f"{sent / 2**20:.0f}", f"{(step - without) * 1e3:.1f}"
        widths = (8, 6, 7, 9, 9)
        columns = " ".join(f"{number:>{width}}" for number, width in zip(numbers, widths, strict=True))
        lines.append(f"  {columns}  {short(row)}" + ("" if row["fits"] else f": {verdict(row)}"))
    return "\n".join(lines)
