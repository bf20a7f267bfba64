"""Real starts: the second reads its programs from the disk, and a profile changes no number."""

import gzip
import json
import re
import shutil

import jax
from conftest_runs import hex_numbers

FIRST_STEP = re.compile(
    r"^first step after \d+:\d\d: start [\d.]+ s, data [\d.]+ s, state [\d.]+ s, first batch [\d.]+ s, "
    r"tracing [\d.]+ s, compiling [\d.]+ s(?P<cache> \(from the cache: [\d.]+ s\))?, running [\d.]+ s$",
    re.MULTILINE,
)


def test_a_second_start_reads_its_step_from_the_disk_and_a_cut_entry_is_made_anew(runs, tmp_path):
    own = {"environment": {"JAX_COMPILATION_CACHE_DIR": ""}, "data.cache_dir": tmp_path / "cache"}
    own |= {"train.steps": 4, "train.eval_every": 0, "report.sample_every": 0}
    (first,) = FIRST_STEP.finditer(runs.finish(tmp_path / "first", **own))
    (second,) = FIRST_STEP.finditer(runs.finish(tmp_path / "second", **own))
    assert not first["cache"] and second["cache"]
    assert hex_numbers(tmp_path / "first") == hex_numbers(tmp_path / "second")

    (step,) = (tmp_path / "cache" / "programs").glob("jit_train_step-*")
    half = step.read_bytes()[: step.stat().st_size // 2]
    step.write_bytes(half)
    output = runs.finish(tmp_path / "third", **own)
    assert "Error reading" not in output
    assert not FIRST_STEP.search(output)["cache"]
    assert step.stat().st_size > len(half)
    assert hex_numbers(tmp_path / "third") == hex_numbers(tmp_path / "first")


def test_a_profile_changes_no_number_and_holds_its_steps(runs, undisturbed, tmp_path):
    output = runs.finish(tmp_path, **{"report.profile_steps": "3:5"})
    assert hex_numbers(tmp_path) == hex_numbers(undisturbed)
    assert f"profile of steps 3 to 5: {tmp_path / 'profile'}" in output

    (planes,) = (tmp_path / "profile" / "plugins" / "profile").glob("*/*.xplane.pb")  # what TensorBoard looks for
    events = [
        dict(event.stats)["step_num"]
        for plane in jax.profiler.ProfileData.from_file(str(planes)).planes
        for line in plane.lines
        for event in line.events
        if event.name == "train"
    ]
    assert events == [3, 4, 5]
    trace = json.loads(gzip.decompress((planes.parent / "perfetto_trace.json.gz").read_bytes()))
    assert any("train_step" in event.get("name", "") for event in trace["traceEvents"])


def test_a_resumed_run_beyond_these_steps_profiles_nothing(runs, undisturbed, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed, workdir)
    shutil.rmtree(workdir / "checkpoints" / "12")
    output = runs.finish(workdir, **{"report.profile_steps": "3:5"})
    assert "going on from the checkpoint of step 9" in output and FIRST_STEP.search(output)
    assert "profile" not in output and not (workdir / "profile").exists()
    assert hex_numbers(workdir) == hex_numbers(undisturbed)
