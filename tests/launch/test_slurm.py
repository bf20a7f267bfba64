"""launch/slurm.sh hands sbatch its options, and launch/slurm.sbatch runs, ends and requeues as Slurm's signals say."""

import signal

import pytest
from stand_ins import AWKWARD, COMMAND, SHOW_PLACE, Stage


def test_the_batch_job_asks_for_its_options(stage):
    stage.plays("sbatch")
    flags = ["--nodes=4", "--partition=h100", "--cpus=12", "--sbatch=--exclusive --qos=high"]
    stage.run("slurm.sh", *flags, "--", *AWKWARD)
    assert stage.calls == [
        ["sbatch", "--job-name=gpt-jax", "--nodes=4", "--gpus-per-node=8", "--ntasks-per-node=8", "--time=24:00:00",
         "--signal=B:USR1@180", "--requeue", "--open-mode=append", f"--chdir={stage.checkout}",
         "--output=slurm-%x-%j.log", "--cpus-per-task=12", "--partition=h100", "--exclusive", "--qos=high",
         f"{stage.checkout}/launch/slurm.sbatch", *AWKWARD]
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


def test_tasks_meet_at_the_first_node_by_a_port_of_the_job_and_have_the_processors_asked_for(job):
    srun_of(job, "echo started $JAX_COORDINATOR_ADDRESS $SRUN_CPUS_PER_TASK")
    assert "started gpu3:61444 12\n" in job.run("slurm.sbatch", *COMMAND, SLURM_CPUS_PER_TASK="12")[0]


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
    out, _ = stage.run("worker.sh", "slurm", *SHOW_PLACE, JAX_COORDINATOR_ADDRESS="gpu3:61444", **environment)
    assert out.splitlines()[-1] == place
