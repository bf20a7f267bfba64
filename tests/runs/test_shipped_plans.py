"""What the docstring of configs/pretrain.py says fits on a TPU slice is compiled for it, and fits.

pytest -m slow tests/runs/test_shipped_plans.py     # all of its table; with libtpu, half an hour on two cores
"""

import importlib.util
import re

import pytest

from configs import pretrain as recipes
from gpt_jax.main import parse_flags
from gpt_jax.planning.topologies import TPUS, find_topology
from gpt_jax.runs import plan

QUICK = {("gpt2-medium", "v5e-8"), ("gpt3-1.3B", "v5e-8")}  # compiled in half a minute each
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason='the TPU compiler is missing: pip install -e ".[tpu]"'
)


def table() -> list[tuple[str, int, str, str, list[str]]]:
    """(preset, sequences a chip, topology, what is said of it, flags) of every cell."""
    lines = recipes.__doc__.partition("    preset ")[2].partition("\n\n")[0].splitlines()
    _, *topologies, _ = re.split(r" {2,}", lines[0].strip())
    cells = []
    for line in lines[1:]:
        preset, sequences, *said, fields = re.split(r" {2,}", line.strip())
        flags = [f"--config.{field}" for field in fields.split() if field != "-"]
        cells += [(preset, int(sequences), *cell, flags) for cell in zip(topologies, said, strict=True)]
    return cells


def compiled() -> list:
    """The cells that fit, as parameters of a test."""
    return [
        pytest.param(
            *cell[:3],
            cell[4],
            marks=[] if (cell[0], cell[2]) in QUICK else pytest.mark.slow,
            id="-".join((cell[0], cell[2], *cell[4])).replace("--config.", ""),
        )
        for cell in table()
        if cell[3] not in ("no", "-")
    ]


def test_the_table_is_read():
    cells = table()
    assert len(cells) >= 20 and {cell[2] for cell in cells} == {"v5e-8", "v5e-16", "v5p-8", "v6e-8"}
    assert {cell[0] for cell in cells} <= set(recipes.PRESETS) and {cell[2] for cell in cells} <= set(TPUS)
    assert {(cell[0], cell[2]) for cell in cells if cell[3] not in ("no", "-")} >= QUICK
    assert all(re.fullmatch(r"no|-|\d+\.\d \d\d%", cell[3]) for cell in cells)


@needs_libtpu
@pytest.mark.parametrize(("preset", "sequences", "topology_name", "flags"), compiled())
def test_what_is_said_to_fit_fits(preset, sequences, topology_name, flags):
    topology = find_topology(topology_name)
    spec = f"--config=configs/pretrain.py:{preset},batch={sequences * len(topology.devices)}"
    config = parse_flags(["main", spec, "--workdir=unused", *flags]).config
    plan.compile_step(plan.prepare(config, topology))  # raises OutOfMemory where it does not fit
