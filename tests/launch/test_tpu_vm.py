"""launch/tpu_vm.sh calls gcloud as it should, and what it starts arrives on the workers as it was given."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from stand_ins import AWKWARD, COMMAND, SHOW_PLACE, Stage, wait_for

TPUS = ["gcloud", "compute", "tpus"]
SSH = [*TPUS, "tpu-vm", "ssh", "gpt-jax", "--zone=z"]
REQUEST = [*TPUS, "queued-resources", "list", "--zone=z", "--filter=name ~ /gpt-jax$", "--format=value(state.state)"]
VM = [*TPUS, "tpu-vm", "list", "--zone=z", "--filter=name ~ /gpt-jax$", "--format=value(state)"]
DELETE = [*TPUS, "queued-resources", "delete", "gpt-jax", "--zone=z", "--force", "--quiet"]


def create(*extra: str, type: str = "v5litepod-8", version: str = "v2-alpha-tpuv5-lite") -> list[str]:
    return [*TPUS, "queued-resources", "create", "gpt-jax", "--zone=z", "--node-id=gpt-jax",
            f"--accelerator-type={type}", f"--runtime-version={version}", *extra]  # fmt: skip


@pytest.fixture
def tpu(stage) -> Stage:
    """A stage with a gcloud that answers everything with nothing, and with success."""
    stage.plays("gcloud")
    stage.environment |= {"TPU_ZONE": "z", "TPU_POLL_SECONDS": "0"}
    return stage


def stands(tpu: Stage, *request: str, vm: str = "READY") -> None:
    """What gcloud says of the request, one state after another, and of the TPU."""
    tpu.answers("value(state.state)", *request)
    tpu.answers("value(state)", vm)


def steps(tpu: Stage) -> list[str]:
    """The calls but for those that only look: delete, create, scp, ssh."""
    return [call[4] for call in tpu.calls if call[4] != "list"]


def remote(call: list[str]) -> str:
    return call[-1].removeprefix("--command=")


# --- create and delete


@pytest.mark.parametrize(
    "flags, call",
    [
        ([], create()),
        (["--spot", "--type=v5e-16"], create("--spot", type="v5litepod-16")),
        (["--type=v6e-8"], create(type="v6e-8", version="v2-alpha-tpuv6e")),
        (["--type=new-8", "--version=v9"], create(type="new-8", version="v9")),
    ],
)
def test_create_asks_for_a_queued_resource_and_waits_for_it(tpu, flags, call):
    stands(tpu, "", "WAITING_FOR_RESOURCES", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE")
    out, err = tpu.run("tpu_vm.sh", "create", *flags)
    assert tpu.calls == [REQUEST, call, *[REQUEST] * 4]
    assert out == "gpt-jax is WAITING_FOR_RESOURCES\ngpt-jax is PROVISIONING\n"
    assert err.count("+ gcloud") == 3 and f"--accelerator-type={call[8].partition('=')[2]}" in err


@pytest.mark.parametrize("value, spot", [("1", True), ("0", False), ("", False)])
def test_the_environment_says_whether_spot(tpu, value, spot):
    stands(tpu, "", "ACTIVE")
    tpu.run("tpu_vm.sh", "create", TPU_SPOT=value)
    assert tpu.calls[1] == create(*["--spot"] * spot)


def test_create_a_second_time_goes_on_waiting_for_the_same_request(tpu):
    stands(tpu, "PROVISIONING", "PROVISIONING", "ACTIVE")
    tpu.run("tpu_vm.sh", "create")
    assert tpu.calls == [REQUEST] * 3


def test_create_ends_where_the_request_fails(tpu):
    stands(tpu, "", "PROVISIONING", "FAILED")
    assert "gpt-jax is FAILED and will not become ACTIVE" in tpu.run("tpu_vm.sh", "create", code=1)[1]


def test_delete_asks_nothing_and_is_content_where_nothing_is_left(tpu):
    stands(tpu, "ACTIVE", "")
    tpu.run("tpu_vm.sh", "delete")
    assert tpu.calls == [REQUEST, DELETE]
    assert tpu.run("tpu_vm.sh", "delete")[0] == "there is no request gpt-jax in z\n"
    assert tpu.calls == [REQUEST, DELETE, REQUEST]


def test_name_zone_and_project_reach_every_gcloud_command(tpu):
    stands(tpu, "ACTIVE")
    tpu.commit()
    for step in ("create", "install", "log", "status", "stop", "delete", "run"):
        tpu.run("tpu_vm.sh", step, "--name=mine", "--zone=west", "--project=p", "--", "x")
    assert len(tpu.calls) == 12
    for call in tpu.calls:
        assert {"--zone=west", "--project=p"} < set(call)
        assert {"mine", "mine:gpt_jax.bundle", "--filter=name ~ /mine$"} & set(call)


# --- install


def test_install_brings_the_commit_to_the_workers_and_installs_it(tpu):
    commit = tpu.commit()
    (tpu.checkout / "launch" / "local.sh").write_text("changed")
    # gcloud's scp, which puts the bundle into the worker's home
    tpu.script(
        tpu.bin / "gcloud",
        f"""#!/usr/bin/env bash
if [[ $4 == scp ]]; then cp "$5" "{tpu.home}/${{6#*:}}"; else printf %s "${{!#}}" >"{tpu.place}/remote"; fi
""",
    )
    assert "changes that are not committed stay here" in tpu.run("tpu_vm.sh", "install")[1]
    tpu.plays("python3")
    tpu.script(
        tpu.home / ".local/bin/uv",
        """#!/usr/bin/env bash
mkdir -p .venv/bin && printf '#!/usr/bin/env bash\\necho "$@" >>pip.log' >.venv/bin/pip && chmod +x .venv/bin/pip
""",
    )
    command = (tpu.place / "remote").read_text().removeprefix("--command=")
    for _ in range(2):  # a second time brings a new commit
        done = tpu.on_worker(command)
        assert done.returncode == 0, done.stderr
    there = tpu.home / "gpt_jax"
    head = subprocess.run(["git", "-C", there, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    assert head == commit and "changed" != (there / "launch" / "local.sh").read_text()
    assert (there / "pip.log").read_text() == "install --quiet -r requirements.txt -e .[tpu]\n" * 2
    assert tpu.calls[0] == ["python3", "-m", "pip", "install", "--quiet", "--user", "uv"]


def test_install_from_an_address_copies_nothing_and_ends_where_a_step_fails(tpu):
    tpu.run("tpu_vm.sh", "install", "--source=/no where/a.git", "--ref=v1")
    (call,) = tpu.calls
    assert call[:-1] == [*SSH, "--worker=all"] and "git fetch --quiet '/no where/a.git' v1 &&" in call[-1]
    done = tpu.on_worker(remote(call))
    assert done.returncode != 0 and "/no where/a.git" in done.stderr
    assert not any(call[0] == "python3" for call in tpu.calls)


def test_an_installation_that_fails_on_a_worker_says_so(tpu):
    tpu.commit()
    tpu.answers("pip install", "ERROR: no space left\n", code=3)
    out, err = tpu.run("tpu_vm.sh", "install", code=1)
    assert "no space left" in out and "the installation failed on at least one worker of gpt-jax" in err


# --- run, status, stop


@pytest.fixture
def worker(tpu) -> Stage:
    """The stage of a TPU whose home is that of worker 1 of two, where gpt_jax is installed; curl is its metadata."""
    shutil.copytree(tpu.checkout / "launch", tpu.home / "gpt_jax" / "launch")
    tpu.script(tpu.home / "gpt_jax/.venv/bin/python", "#!/usr/bin/env bash\nexec sleep 60\n")
    tpu.plays("curl")
    tpu.answers("worker-network-endpoints", "a:0:10.0.0.5,b:1:10.0.0.6")
    tpu.answers("agent-worker-number", "1")
    return tpu


def test_the_command_arrives_on_a_worker_as_it_was_given(worker):
    show = "import json, os, sys; print(json.dumps([sys.argv[1:], dict(os.environ)]))"
    worker.run("tpu_vm.sh", "run", "--", sys.executable, "-c", show, *AWKWARD)
    (call,) = worker.calls
    assert call[:-1] == [*SSH, "--worker=all"]
    done = worker.on_worker(remote(call))
    assert done.returncode == 0 and done.stdout == "", done.stderr
    log = worker.home / "gpt_jax" / "run.log"
    wait_for(lambda: log.exists() and "]" in log.read_text())
    place, shown = log.read_text().splitlines()
    words, environment = json.loads(shown)
    assert words == AWKWARD
    assert re.fullmatch(r"process 1 of 2 on \S+, coordinator 10\.0\.0\.5:8482", place)
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    assert [environment[name] for name in names] == ["10.0.0.5:8482", "2", "1"]
    assert environment["PATH"].startswith(f"{worker.home}/gpt_jax/.venv/bin:")


def test_a_run_outlives_the_connection_refuses_a_second_one_and_is_stopped(worker):
    stands(worker, "ACTIVE")
    for step in ("run", "status", "stop", "resume"):
        worker.run("tpu_vm.sh", step, "--source=x", "--", *COMMAND)
    start, status, stop, whether_running, *_ = [remote(call) for call in worker.calls if call[4] == "ssh"]
    assert worker.on_worker(whether_running).stdout == ""
    assert worker.on_worker(start).returncode == 0  # and returns, though the run goes on
    again = worker.on_worker(start)
    assert again.returncode == 2 and "a run is going on here" in again.stderr
    assert worker.on_worker(status).stdout.startswith("a run is going on\n")
    assert worker.on_worker(whether_running).stdout == "running\n"
    process = int((worker.home / "gpt_jax" / "run.pid").read_text())
    assert os.getsid(process) == process  # a session of its own
    wait_for(lambda: Path(f"/proc/{process}/cmdline").read_bytes().startswith(b"sleep"))
    assert worker.on_worker(stop).returncode == 0
    wait_for(lambda: worker.on_worker(status).stdout.startswith("no run is going on\n"))


def test_nothing_is_started_where_nothing_is_installed(tpu):
    tpu.run("tpu_vm.sh", "run", "--", *COMMAND)
    done = tpu.on_worker(remote(tpu.calls[0]))
    assert done.returncode == 2 and "nothing is installed here" in done.stderr


def test_a_bucket_is_mounted_anew_before_the_run_and_without_it_nothing_starts(worker):
    worker.run("tpu_vm.sh", "run", "--bucket=mine", "--", "env", "true")
    command = remote(worker.calls[0])
    missing = worker.on_worker(command)
    assert missing.returncode == 2 and "gcsfuse is not installed here" in missing.stderr
    worker.plays("gcsfuse", "mountpoint", "fusermount")
    assert worker.on_worker(command).returncode == 0
    mount = ["gcsfuse", "--implicit-dirs", "--rename-dir-limit=200000", "--metadata-cache-ttl-secs=0", "mine",
             f"{worker.home}/bucket"]  # fmt: skip
    mounting = [call for call in worker.calls if call[0] in ("mountpoint", "fusermount", "gcsfuse")]
    assert mounting == [["mountpoint", "-q", mount[-1]], ["fusermount", "-u", mount[-1]], mount]
    (worker.home / "gpt_jax" / "run.pid").unlink()
    worker.answers("gcsfuse --", "", code=1)
    assert worker.on_worker(command).returncode == 1
    assert not (worker.home / "gpt_jax" / "run.pid").exists()


def test_log_follows_one_worker(tpu):
    tpu.run("tpu_vm.sh", "log", "--worker=3")
    assert tpu.calls == [[*SSH, "--worker=3", "--command=tail -n 100 -F ~/gpt_jax/run.log"]]


def test_status_of_a_tpu_that_is_not_there_connects_to_none(tpu):
    stands(tpu, "SUSPENDED", vm="")
    assert "the TPU is not there" in tpu.run("tpu_vm.sh", "status")[0]
    assert steps(tpu) == ["describe"]


@pytest.mark.parametrize(
    "endpoints, place", [("w0,w1,w2", "w0:8482 3 2 all"), ("n:0:10.1.2.3,n:1:b,n:2:c", "10.1.2.3:8482 3 2 all")]
)
def test_a_worker_knows_its_place_from_both_forms_of_its_metadata(stage, endpoints, place):
    stage.plays("curl")
    stage.answers("worker-network-endpoints", endpoints)
    stage.answers("agent-worker-number", "2")
    assert stage.run("worker.sh", "tpu-vm", *SHOW_PLACE)[0].splitlines()[-1] == place
    assert all("Metadata-Flavor: Google" in call for call in stage.calls)


# --- resume


@pytest.mark.parametrize(
    "request_state, vm_state",
    [("SUSPENDED", ""), ("FAILED", ""), ("ACTIVE", "PREEMPTED"), ("ACTIVE", "TERMINATED")],
)
def test_resume_after_a_preemption_creates_anew_installs_and_runs_again(tpu, request_state, vm_state):
    tpu.commit()
    # looked at by resume, delete, create, and create's waiting
    stands(tpu, request_state, request_state, "", "WAITING_FOR_RESOURCES", "ACTIVE", vm=vm_state)
    tpu.run("tpu_vm.sh", "resume", "--spot", "--", *AWKWARD)
    calls = [call for call in tpu.calls if call[4] != "list"]
    assert steps(tpu) == ["delete", "create", "scp", "ssh", "ssh"]
    assert calls[:2] == [DELETE, create("--spot")] and "pip install --quiet -r requirements.txt" in calls[3][-1]
    tpu.run("tpu_vm.sh", "run", "--", *AWKWARD)
    assert calls[4] == tpu.calls[-1]


def test_resume_deletes_only_once_the_request_is_suspended(tpu):
    tpu.commit()
    stands(tpu, "SUSPENDING", "SUSPENDING", "SUSPENDED", "SUSPENDED", "", "ACTIVE")
    tpu.run("tpu_vm.sh", "resume", "--", *COMMAND)
    assert tpu.calls[:4] == [REQUEST] * 4 and steps(tpu) == ["delete", "create", "scp", "ssh", "ssh"]


def test_resume_goes_on_where_an_earlier_one_was_cut_off(tpu):
    tpu.commit()
    stands(tpu, "", "", "PROVISIONING", "ACTIVE")  # deleted, not created
    tpu.run("tpu_vm.sh", "resume", "--", *COMMAND)
    assert steps(tpu) == ["create", "scp", "ssh", "ssh"]
    tpu.run("tpu_vm.sh", "resume", "--", *COMMAND)  # created; not installed or not started
    assert steps(tpu)[4:] == ["ssh", "scp", "ssh", "ssh"]


def test_resume_beside_a_run_that_goes_on_does_nothing(tpu):
    stands(tpu, "ACTIVE")
    tpu.answers("--worker=0", "running\n")  # what a worker says: see test_a_run_outlives_the_connection
    assert tpu.run("tpu_vm.sh", "resume", "--", *COMMAND)[0] == "a run is going on\n"
    assert steps(tpu) == ["ssh"]


@pytest.mark.parametrize("out_of_sight", ["queued-resources list", "tpu-vm list"])
def test_resume_deletes_nothing_when_gcloud_cannot_tell_how_it_stands(tpu, out_of_sight):
    tpu.answers(out_of_sight, "", code=1)
    stands(tpu, "ACTIVE")
    err = tpu.run("tpu_vm.sh", "resume", "--", *COMMAND, code=1)[1]
    assert "gcloud does not tell how gpt-jax stands" in err and steps(tpu) == []


@pytest.mark.parametrize("vm_state", ["", "REPAIRING"])
def test_resume_deletes_nothing_while_the_request_is_active_and_the_tpu_not_known_to_be_lost(tpu, vm_state):
    stands(tpu, "ACTIVE", vm=vm_state)
    err = tpu.run("tpu_vm.sh", "resume", "--", *COMMAND, code=1)[1]
    assert "nothing to resume from now. Try again in a minute" in err and steps(tpu) == []


@pytest.mark.parametrize("failing", ["delete", "create", "scp", "uv venv"])
def test_resume_ends_at_the_first_step_that_fails(tpu, failing):
    tpu.commit()
    tpu.answers(failing, "", code=1)
    stands(tpu, "SUSPENDED", "SUSPENDED", "", "ACTIVE")
    err = tpu.run("tpu_vm.sh", "resume", "--", *COMMAND, code=1)[1]
    assert err.splitlines()[-1].startswith("error: launch/tpu_vm.sh: ")
    assert failing in " ".join(tpu.calls[-1])


def test_resume_touches_nothing_for_a_type_that_does_not_exist(tpu):
    tpu.run("tpu_vm.sh", "resume", "--type=h100", "--", *COMMAND, code=2)
    assert tpu.calls == []
