"""launch/gke.sh writes a JobSet with the fields that JobSet and GKE document, and calls kubectl as it should."""

import re

import pytest
import yaml
from hypothesis import given, settings
from stand_ins import COMMAND, ROOT, SHOW_PLACE, WORDS, Stage, bash


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
    assert pod["volumes"][0]["csi"]["volumeAttributes"] == {
        "bucketName": "mine", "mountOptions": "implicit-dirs,rename-dir-limit=200000,metadata-cache:ttl-secs:0"
    }  # fmt: skip
    assert pod["volumes"][0]["name"] == pod["containers"][0]["volumeMounts"][0]["name"]


@pytest.mark.parametrize(
    "flags, chips, nodes",
    [(["--topology=1x1"], 1, 1), (["--topology=2x2"], 4, 1), (["--topology=2x4", "--chips=8"], 8, 1)],
)
def test_the_number_of_nodes_follows_from_the_topology(stage, flags, chips, nodes):
    job = jobset(stage, *flags)["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["completions"] == nodes
    assert job["template"]["spec"]["containers"][0]["resources"]["limits"]["google.com/tpu"] == chips


def test_a_command_that_looks_like_the_template_is_not_filled_in(stage):
    words = ["${IMAGE}", "$(NAME)", "x # --spot", "a & b", "line\nbreak"]
    command = jobset(stage, command=words)["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"][
        "containers"
    ][0]["command"]
    assert [expanded(word) for word in command[3:]] == words


@settings(max_examples=30, deadline=None)
@given(WORDS)
def test_any_words_come_out_of_yaml_and_kubernetes_as_they_went_in(words):
    function = re.search(r"^yaml_list\(\) \{.*?^\}", (ROOT / "launch/gke.sh").read_text(), re.DOTALL | re.MULTILINE)[0]
    listed = yaml.safe_load(bash(f'{function}; yaml_list "$@"', *words))
    assert [expanded(word) for word in listed] == words


def test_apply_creates_what_it_prints(stage):
    stage.script(
        stage.bin / "kubectl", f"#!/usr/bin/env bash\necho \"$@\" >'{stage.place}/words'\ncat >'{stage.place}/yaml'\n"
    )
    out, err = stage.run("gke.sh", "apply", "--image=i", "--namespace=n", "--", *COMMAND)
    assert (stage.place / "words").read_text() == "--namespace=n create --filename=-\n"
    assert (stage.place / "yaml").read_text() == out and "+ kubectl --namespace=n create" in err


def test_gke_steps_call_kubectl(stage):
    stage.plays("kubectl")
    for step in (["log", "--worker=2"], ["status"], ["delete"]):
        stage.run("gke.sh", *step, "--name=mine")
    named = "--selector=jobset.sigs.k8s.io/jobset-name=mine"
    assert stage.calls == [
        ["kubectl", "logs", "--follow", "--tail=100", "--container=gpt-jax",
         f"{named},jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=2"],
        ["kubectl", "get", "jobset", "mine"],
        ["kubectl", "get", "pods", named, "--output=wide"],
        ["kubectl", "delete", "jobset", "mine", "--ignore-not-found"],
    ]  # fmt: skip


def test_a_refusal_of_kubectl_is_explained(stage):
    stage.plays("kubectl")
    stage.answers("create", "", code=1)
    assert "kubectl did not take the JobSet" in stage.run("gke.sh", "apply", "--image=i", "--", "x", code=1)[1]


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
    assert stage.run("worker.sh", "gke", *SHOW_PLACE, **environment)[0].splitlines()[-1] == place


def test_a_worker_that_is_alone_runs_as_one_process(stage):
    check = ["bash", "-c", 'echo "${JAX_COORDINATOR_ADDRESS-unset} ${JAX_NUM_PROCESSES-unset} ${JAX_PROCESS_ID-unset}"']
    out, _ = stage.run("worker.sh", "gke", *check, JAX_COORDINATOR_ADDRESS="left:1")
    assert out.splitlines()[-1] == "unset unset unset"
