"""The shardings and collectives that were reviewed are those of today (tests/golden/sharding)."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
import sharding_dump
from sharding_dump import MESHES, read, sections

from gpt_jax.models.presets import model_config
from gpt_jax.parallel.mesh import AXES
from gpt_jax.runs.recipe import check_model_fits

ANEW = "if this is meant: python -m tests.parallel.sharding_dump"
QUICK = (("books", 1), ("laptop-lstm", 1))  # to compile: which of the preset's meshes


def reviewed(preset, heading):
    parts = read(preset)
    if heading not in parts:
        written = next((name.split(", jax ")[1] for name in parts if ", jax " in name), "another version")
        pytest.skip(f"the collectives were written with jax {written}, this is {jax.__version__}; {ANEW}")
    return parts[heading]


@pytest.mark.parametrize("preset", MESHES)
def test_every_file_has_the_sections_of_its_meshes_and_no_others(preset):
    def without_version(names):
        return [name.split(", jax ")[0] for name in names]

    assert without_version(read(preset)) == without_version(sections(preset))


@pytest.mark.parametrize("preset", MESHES)
def test_parameters_live_where_the_review_left_them(preset):
    for heading, (kind, sizes) in sections(preset).items():
        if kind == "parameters":
            assert sharding_dump.parameters(preset, sizes) == read(preset)[heading], ANEW
            mesh = jax.sharding.AbstractMesh(tuple(sizes.get(axis, 1) for axis in AXES), AXES)
            check_model_fits(model_config(preset), mesh)


@pytest.mark.parametrize(("preset", "mesh"), QUICK)
def test_the_steps_collectives_are_those_reviewed(preset, mesh):
    heading = [heading for heading, (kind, _) in sections(preset).items() if kind == "step"][mesh]
    expected = reviewed(preset, heading)
    assert sharding_dump.step(preset, MESHES[preset][mesh]) == expected, ANEW


@pytest.mark.slow
@pytest.mark.parametrize("preset", MESHES)
def test_the_collectives_of_all_meshes_are_those_reviewed(preset):
    for heading, (kind, _) in sections(preset).items():
        if kind == "step":
            reviewed(preset, heading)
    printed = subprocess.run(
        [sys.executable, "-m", "tests.parallel.sharding_dump", "--print", preset],
        env=os.environ, cwd=Path(__file__).resolve().parents[2], check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert printed.stdout == (sharding_dump.FOLDER / f"{preset}.txt").read_text(), ANEW


def test_collectives_are_counted_with_all_their_results():
    hlo = """
      %a = f32[8,128]{1,0} all-gather(%x), dimensions={1}
      ROOT %b = (f32[], bf16[3,2]{1,0}, f32[4]{0}, f32[4]{0}, f32[4]{0}, /*index=5*/f32[4]{0}) all-reduce-start(%y, %z)
      %c = f32[8]{0} add(%all-reduce.3, %d), metadata={op_name="all-gather"}
    """
    counts, size = sharding_dump.collectives(hlo)
    assert (counts, size) == ({"all-gather": 1, "all-reduce": 1}, {"all-gather": 4096, "all-reduce": 4 + 12 + 64})
