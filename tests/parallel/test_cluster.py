"""Which processes a run has, as each environment says it."""

import http.server
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax._src.clusters import cloud_tpu_cluster

from gpt_jax.errors import UserError
from gpt_jax.parallel import cluster
from gpt_jax.parallel.cluster import recognise

EXPLICIT = {"JAX_COORDINATOR_ADDRESS": "ten:1234", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "2"}
STEP = {
    "SLURM_JOB_ID": "5000", "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NODELIST": "node[07-08]", "SLURM_PROCID": "3", "SLURM_LOCALID": "1",
}  # fmt: skip
POD = {"TPU_WORKER_HOSTNAMES": "a,b,c,d", "TPU_WORKER_ID": "1"}


@pytest.fixture
def environ(monkeypatch):
    """Sets the variables of an environment, and only these; a function of a dict. TPUs may be used."""
    for name in (*EXPLICIT, *STEP, *POD, "TPU_PROCESS_ADDRESSES", "JAX_COORDINATOR_PORT", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setattr(cluster, "_tpu_wanted", lambda: True)
    return lambda variables: [monkeypatch.setenv(name, value) for name, value in variables.items()]


def facts_of(place):
    return place.coordinator, place.processes, place.process, place.local_devices


def test_a_machine_without_any_of_them_is_one_process(environ):
    assert recognise() is None


def test_our_own_variables_come_first(environ):
    environ(EXPLICIT | STEP | POD)
    assert facts_of(recognise()) == ("ten:1234", 4, 2, None)


@pytest.mark.parametrize("missing", EXPLICIT)
def test_a_variable_that_is_missing_is_named(environ, missing):
    environ({name: value for name, value in EXPLICIT.items() if name != missing})
    with pytest.raises(UserError, match=f"{missing} not set"):
        recognise()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("JAX_PROCESS_ID", "4"),
        ("JAX_PROCESS_ID", "-1"),
        ("JAX_NUM_PROCESSES", "four"),
        ("JAX_COORDINATOR_ADDRESS", "ten"),
    ],
)
def test_a_variable_that_cannot_be_is_refused(environ, name, value):
    environ(EXPLICIT | {name: value})
    with pytest.raises(UserError, match=f"(process |=|'){value}"):
        recognise()


@given(st.dictionaries(st.sampled_from([*EXPLICIT, *STEP, *POD]), st.text("0123²٣:,a-", max_size=8)))
def test_any_variables_give_a_place_or_one_message(variables):
    try:
        place = cluster._explicit(variables) or cluster._gke(variables)
        assert place is None or cluster._check(place) is None
    except UserError:
        pass


def test_a_slurm_step_is_its_tasks(environ):
    environ(STEP)
    assert facts_of(recognise()) == (f"node07:{61440 + 5000 % 4096}", 4, 3, [1])


def test_a_slurm_task_that_is_alone_on_its_host_has_all_its_devices(environ):
    environ(STEP | {"SLURM_STEP_NUM_NODES": "4"})
    assert recognise().local_devices is None


def test_a_slurm_task_that_sees_one_device_has_it(environ):
    environ(STEP | {"CUDA_VISIBLE_DEVICES": "5"})
    assert recognise().local_devices is None


def test_the_shell_of_a_slurm_allocation_is_one_process(environ):
    environ(STEP | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"})
    assert recognise() is None


def test_a_slurm_batch_script_without_srun_is_one_process_and_says_so(environ, monkeypatch, capfd):
    environ(STEP)
    for name in ("SLURM_STEP_NODELIST", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name)
    assert recognise() is None
    assert "a job of 4 tasks, but no step of it: one process" in capfd.readouterr().err


def test_a_tpu_pod_on_gke_is_its_workers(environ):
    environ(POD)
    assert facts_of(recognise()) == ("a:8482", 4, 1, None)


def test_several_slices_on_gke_are_one_run(environ):
    environ(POD | {"MEGASCALE_NUM_SLICES": "2", "MEGASCALE_SLICE_ID": "1", "MEGASCALE_COORDINATOR_ADDRESS": "first:80"})
    assert facts_of(recognise()) == ("first:8482", 8, 5, None)


def test_a_worker_of_a_pod_that_does_not_know_its_number_is_refused(environ):
    environ({"TPU_WORKER_HOSTNAMES": "a,b"})
    with pytest.raises(UserError, match="TPU_WORKER_ID is not set"):
        recognise()


def test_one_tpu_host_is_one_process(environ):
    environ({"TPU_WORKER_HOSTNAMES": "localhost"})
    assert recognise() is None


def test_a_run_on_the_cpu_of_a_tpu_host_is_one_process(environ, monkeypatch):
    environ(POD)
    monkeypatch.setattr(cluster, "_tpu_wanted", lambda: False)
    assert recognise() is None


def test_a_tpu_vm_asks_its_metadata_server(environ, monkeypatch):
    answers = {
        "/computeMetadata/v1/": "",
        "/computeMetadata/v1/instance/attributes/agent-worker-number": "1",
        "/computeMetadata/v1/instance/attributes/worker-network-endpoints": "x:y:127.0.0.1,x:y:10.0.0.2",
        "/computeMetadata/v1/instance/attributes/tpu-env": "ZONE: 'here'",
    }

    class Metadata(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answers[self.path].encode())

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metadata) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.delenv("TPU_SKIP_MDS_QUERY")
        monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
        environ({"GCE_METADATA_IP": f"127.0.0.1:{server.server_port}", "no_proxy": "127.0.0.1"})
        place = recognise()
        server.shutdown()
    assert facts_of(place) == ("127.0.0.1:8482", 2, 1, None) and place.environment == "TPU VM"
