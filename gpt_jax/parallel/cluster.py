"""Which processes a run has and which of them this one is, as the environment says: JAX_*, Slurm, GKE, a TPU pod.

JAX's own detection (jax/_src/clusters) is asked where it does the work. It is not asked blindly: it takes the shell of
a Slurm allocation for all its tasks, gives a process only one of its host's GPUs, and on machines that are no TPU VM
but have libtpu it waits for a metadata server that does not exist.
"""

import dataclasses
import os
import urllib.error
import urllib.request
from collections.abc import Mapping

import jax
from jax._src import clusters

from gpt_jax.errors import UserError
from gpt_jax.progress import say

EXPLICIT = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
TPU_PORT = "8482"  # of process 0 on TPU hosts, as in JAX's cloud_tpu_cluster.py


@dataclasses.dataclass(frozen=True)
class Place:
    """One process among all.

    Attributes:
      environment: what was recognised, for people.
      coordinator: host:port where process 0 is found.
      processes: how many there are; process: which this one is, from 0.
      local_devices: which of the host's devices are this process's; None: all, or what JAX_LOCAL_DEVICE_IDS says.
    """

    environment: str
    coordinator: str
    processes: int
    process: int
    local_devices: list[int] | None = None


def recognise(environ: Mapping[str, str] = os.environ, time_limit: int = 300) -> Place | None:
    """The place of this process; None where the run is one process.

    Args:
      time_limit: seconds that a look-up of the coordinator's name may take, where there is one.

    Raises:
      UserError: when variables are missing or contradict each other.
    """
    for detect in (_explicit, _slurm, _gke, lambda environ: _detected_by_jax(environ, time_limit)):
        place = detect(environ)
        if place is not None:
            _check(place)
            return place if place.processes > 1 else None
    return None


def _explicit(environ: Mapping[str, str]) -> Place | None:
    if not any(environ.get(name) for name in EXPLICIT):
        return None
    missing = [name for name in EXPLICIT if not environ.get(name)]
    if missing:
        raise UserError(
            f"several processes: {', '.join(missing)} not set. All of {', '.join(EXPLICIT)} are needed; "
            "unset them all to run as one process."
        )
    address, processes, process = (environ[name] for name in EXPLICIT)
    return Place("JAX_* variables", address, _number(EXPLICIT[1], processes), _number(EXPLICIT[2], process))


def _slurm(environ: Mapping[str, str]) -> Place | None:
    if "SLURM_JOB_ID" not in environ:
        return None
    # SLURM_NTASKS is the whole job's in the shell of an allocation; the step's own count says how many really started.
    tasks = _number("SLURM_NTASKS", environ.get("SLURM_STEP_NUM_TASKS") or environ.get("SLURM_NTASKS", "1"))
    if not clusters.SlurmCluster.is_env_present():
        if tasks > 1:
            say(f"Slurm: a job of {tasks} tasks, but no step of it: one process. `srun` before the command starts all")
        return None
    if tasks == 1:
        say("Slurm: a step of one task, one process")
        return Place("Slurm", "localhost:0", 1, 0)
    address = clusters.SlurmCluster.get_coordinator_address(
        timeout_secs=None, override_coordinator_port=environ.get("JAX_COORDINATOR_PORT")
    )
    alone_on_its_host = environ.get("SLURM_STEP_NUM_NODES") == str(tasks)
    sees_one_device = len(environ.get("CUDA_VISIBLE_DEVICES", "0,1").split(",")) == 1
    local = None if alone_on_its_host or sees_one_device else [_number("SLURM_LOCALID", environ["SLURM_LOCALID"])]
    return Place("Slurm", address, tasks, _number("SLURM_PROCID", environ["SLURM_PROCID"]), local)


def _gke(environ: Mapping[str, str]) -> Place | None:
    """A TPU pod on GKE: its webhook sets TPU_WORKER_*, and MEGASCALE_* where a JobSet spans several slices."""
    hosts = environ.get("TPU_PROCESS_ADDRESSES") or environ.get("TPU_WORKER_HOSTNAMES")
    if not hosts or not _tpu_wanted():
        return None
    hosts = [host.partition(":")[0] for host in hosts.split(",")]
    slices = _number("MEGASCALE_NUM_SLICES", environ.get("MEGASCALE_NUM_SLICES") or "1")
    if len(hosts) * slices > 1 and not environ.get("TPU_WORKER_ID"):
        raise UserError(f"TPU_WORKER_HOSTNAMES names {len(hosts)} hosts, and TPU_WORKER_ID is not set: which is this?")
    worker = _number("TPU_WORKER_ID", environ.get("TPU_WORKER_ID") or "0")
    first = environ.get("MEGASCALE_COORDINATOR_ADDRESS", hosts[0]).partition(":")[0]
    slice_id = _number("MEGASCALE_SLICE_ID", environ.get("MEGASCALE_SLICE_ID") or "0")
    return Place(
        "TPU pod on GKE" if slices == 1 else f"{slices} TPU slices on GKE",
        f"{first}:{environ.get('JAX_COORDINATOR_PORT') or TPU_PORT}",
        len(hosts) * slices,
        worker + slice_id * len(hosts),
    )


def _detected_by_jax(environ: Mapping[str, str], time_limit: int) -> Place | None:
    """A TPU VM, which asks its metadata server, or an indexed Kubernetes job, which asks its API."""
    known = {
        "TPU VM": (clusters.GceTpuCluster, lambda: _tpu_wanted() and _metadata_answers(environ)),
        "Kubernetes job": (clusters.K8sCluster, lambda: "JOB_COMPLETION_INDEX" in environ),
    }
    for name, (cluster, plausible) in known.items():
        if not (plausible() and cluster.is_env_present()):
            continue
        try:
            processes, process = cluster.get_process_count(), cluster.get_process_id()
            if processes == 1:
                return Place(name, "localhost:0", 1, 0)
            address = cluster.get_coordinator_address(
                timeout_secs=time_limit, override_coordinator_port=environ.get("JAX_COORDINATOR_PORT")
            )
        except RuntimeError as error:
            raise UserError(
                f"{name}: JAX cannot find the processes of this run ({error}). {', '.join(EXPLICIT)} say it by hand."
            ) from error
        return Place(name, address, processes, process)
    return None


def _tpu_wanted() -> bool:
    """Whether JAX may use a TPU: `JAX_PLATFORMS=cpu` on one host of a pod is a run of its own."""
    return "tpu" in (jax.config.jax_platforms or "tpu").split(",")


def _metadata_answers(environ: Mapping[str, str]) -> bool:
    """Whether this is a machine of Google's cloud that has a TPU; where it is not, JAX would wait long to find out."""
    if "TPU_SKIP_MDS_QUERY" in environ:  # JAX sets it where it finds no TPU
        return False
    url = f"http://{environ.get('GCE_METADATA_IP', 'metadata.google.internal')}/computeMetadata/v1/"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers={"Metadata-Flavor": "Google"}), timeout=3):
            return True
    except (urllib.error.URLError, OSError):
        return False


def _check(place: Place) -> None:
    """Raises UserError for numbers that do not fit together, or an address without a port."""
    host, _, port = place.coordinator.rpartition(":")
    if not (host and port.isdecimal() and int(port) < 2**16):
        raise UserError(f"{place.environment}: the coordinator is {place.coordinator!r}: expected host:port.")
    if not 0 <= place.process < place.processes:
        raise UserError(
            f"{place.environment}: process {place.process} of {place.processes}: expected an id from 0 to one less "
            "than the number of processes."
        )


def _number(name: str, text: str) -> int:
    if not text.isdecimal():
        raise UserError(f"several processes: {name}={text}: expected a whole number.")
    return int(text)
