"""--doctor says what is wrong before a run is started, and leaves nothing behind."""

import fcntl
import importlib.util
import shutil
from pathlib import Path

import pytest
from conftest_runs import ROOT
from test_processes import free_port

from gpt_jax.errors import UserError
from gpt_jax.parallel import runtime
from gpt_jax.runs import doctor
from gpt_jax.runs.doctor import Asked


def pretraining(argument: str | None = None):
    specification = importlib.util.spec_from_file_location("config", ROOT / "configs" / "pretrain.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module.get_config(argument)


@pytest.fixture
def asked(tmp_path) -> Asked:
    """A run that nothing is wrong with, on the eight simulated devices."""
    config = pretraining()
    config.data.cache_dir = str(tmp_path / "cache")
    return Asked(config, tmp_path / "run" / "deep", joined=True)


def report_of(asked: Asked, capsys) -> tuple[int, dict[str, str]]:
    """The exit code, and {check: its line}."""
    code = doctor.run(asked.config, asked.workdir)
    lines = capsys.readouterr().out.splitlines()
    return code, {line.split()[1].rstrip(":"): line for line in lines}


def test_a_run_that_nothing_is_wrong_with_has_a_line_for_each_check_and_leaves_nothing(asked, tmp_path, capsys):
    code, lines = report_of(asked, capsys)
    assert code == 0 and list(lines) == [check.__name__ for check in doctor.CHECKS]
    assert all(line.startswith("ok ") for line in lines.values()), lines
    assert "the sum over 8 devices is right" in lines["collective"]
    assert list(tmp_path.iterdir()) == []


def test_each_thing_that_is_wrong_has_a_line_and_the_rest_is_checked(asked, capsys):
    asked.config.train.batch_size = 9
    asked.config.data.cache_dir = "gs://mine/cache"
    code, lines = report_of(asked, capsys)
    assert code == 2
    assert {name for name, line in lines.items() if line.startswith("wrong")} == {"mesh", "cache"}
    assert "The nearest that does: 8." in lines["mesh"]
    assert "data.cache_dir=gs://mine/cache" in lines["cache"] and "gcsfuse" in lines["cache"]


def test_a_config_that_does_not_resolve_is_said_once(asked, capsys):
    asked.config.data.sequence_length = 10**9
    code, lines = report_of(asked, capsys)
    assert code == 2 and "data.sequence_length=1000000000" in lines["config"]
    assert lines["disk"] == f"ok     disk: {doctor.NOT_CHECKED}"


def test_a_check_that_is_added_is_done(asked, capsys, monkeypatch):
    def moon(asked):
        raise UserError("it is full. Repair: wait")

    monkeypatch.setattr(doctor, "CHECKS", (moon,))
    assert report_of(asked, capsys) == (2, {"moon": "wrong  moon: it is full. Repair: wait"})


def test_processes_that_cannot_be_joined_are_said_and_what_needs_none_is_checked(asked, capsys, monkeypatch):
    def refuse(config):
        raise UserError("3 of 4 processes have not come")

    monkeypatch.setattr(runtime, "start", refuse)
    code, lines = report_of(asked, capsys)
    assert code == 2 and "3 of 4" in lines["processes"]
    assert doctor.NOT_CHECKED in lines["devices"] and lines["workdir"].endswith("can be made")


def test_packages_outside_their_range_are_named(asked, monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "ROOT", tmp_path)
    required = "\n    ".join(["", "jax>=99", "numpy>=1", "nowhere-to-be-found"])
    (tmp_path / "setup.cfg").write_text(f"[options]\npython_requires = >=4\ninstall_requires ={required}\n")
    with pytest.raises(UserError) as refused:
        doctor.packages(asked)
    text = str(refused.value)
    assert "expected >=4" in text and "expected >=99" in text and "nowhere-to-be-found is missing" in text
    assert "numpy" not in text


def test_versions_that_the_tests_did_not_run_with_are_named(asked, monkeypatch, tmp_path):
    shutil.copy(ROOT / "setup.cfg", tmp_path)
    (tmp_path / "requirements.txt").write_text("# a comment\nnumpy==0.1\njax==0.1; python_version < '3'\n")
    monkeypatch.setattr(doctor, "ROOT", tmp_path)
    line = doctor.packages(asked)
    assert "the tests ran with another numpy" in line and "another numpy, jax" not in line


def test_a_tpu_that_another_process_holds_is_named(asked, monkeypatch, tmp_path):
    lock = tmp_path / "libtpu_lockfile"
    monkeypatch.setattr(doctor, "LOCK_FILE", lock)
    monkeypatch.setattr(doctor, "jax", _with_platforms(None))
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    with open(lock, "w") as held:
        assert "held" not in doctor.libtpu(asked)
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="the TPU is held by"):
            doctor.libtpu(asked)


def test_a_libtpu_that_is_there_twice_is_named(asked, monkeypatch):
    monkeypatch.setattr(doctor, "_installed", lambda package: "1.0")
    monkeypatch.setattr(doctor, "jax", _with_platforms("tpu,cpu"))
    with pytest.raises(UserError, match="pip uninstall -y libtpu-nightly"):
        doctor.libtpu(asked)


@pytest.mark.parametrize(("device", "kind"), [("dev/nvidia0", "GPU"), ("dev/accel0", "TPU"), ("dev/vfio/0", "TPU")])
def test_an_accelerator_that_jax_is_kept_from_is_named(asked, monkeypatch, tmp_path, device, kind):
    assert doctor.accelerators(tmp_path) is None
    (tmp_path / device).parent.mkdir(parents=True)
    (tmp_path / device).touch()
    found = doctor.accelerators(tmp_path)
    monkeypatch.setattr(doctor, "accelerators", lambda: found)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    with pytest.raises(UserError, match=f"has a {kind} and JAX uses the CPU: JAX_PLATFORMS=cpu. Repair: unset"):
        doctor.devices(asked)
    monkeypatch.delenv("JAX_PLATFORMS")
    with pytest.raises(UserError, match=rf'pip install -e "\.\[{kind.lower()}\]"'):
        doctor.devices(asked)


def test_a_disk_without_room_for_the_checkpoints_is_named(asked, monkeypatch, capsys):
    doctor.config(asked)
    usage = shutil.disk_usage(asked.workdir.parents[1])
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage._replace(free=10**6))
    with pytest.raises(UserError, match="0.00 GB free .* 4 checkpoints .* take about 0.06 GB"):
        doctor.disk(asked)


def test_a_workdir_that_cannot_be_written_is_named(asked):
    with pytest.raises(UserError, match=r"--workdir=/proc/run: /proc cannot be written"):
        asked.workdir = Path("/proc/run")
        doctor.workdir(asked)


def test_two_processes_check_together_and_one_of_them_speaks(runs, tmp_path):
    variables = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}", "JAX_NUM_PROCESSES": "2"}
    workdir = tmp_path / "run"
    processes = [
        runs.start(workdir, devices=2, environment=variables | {"JAX_PROCESS_ID": index}, flags=["--doctor"])
        for index in "01"
    ]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert "processes: 2, joined" in outputs[0] and "the sum over 4 devices is right" in outputs[0]
    assert "collective:" not in outputs[1] and not workdir.exists()


def _with_platforms(platforms: str | None):
    """A stand-in of jax that says only which platforms it may use."""

    class Config:
        jax_platforms = platforms

    class Jax:
        config = Config

    return Jax
