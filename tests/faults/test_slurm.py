"""A real Slurm on this machine: launch, a preemption, a time limit hit in earnest; the same run comes to its end."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dipole_vla.commands.fit import CHECKPOINTS
from navsim_adapter.foundation.files import MANIFEST
from tests.small_loop import small_steps

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "scontrol", "munged")
MISSING = [name for name in PROGRAMS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]
pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(bool(MISSING), reason=f"no {', '.join(MISSING)}; apt-get install slurm-wlm munge"),
    pytest.mark.skipif(os.geteuid() != 0, reason="the daemons of a private Slurm need root"),
]

CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
SlurmctldPort=16817
SlurmctldPidFile={here}/slurmctld.pid
SlurmdPidFile={here}/slurmd-%n.pid
SlurmdSpoolDir={here}/spool-%n
StateSaveLocation={here}/state
SlurmctldLogFile={here}/slurmctld.log
SlurmdLogFile={here}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2
AccountingStorageType=accounting_storage/none
JobRequeue=1
KillWait=10
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port=16821 CPUs=2 RealMemory=4000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port=16822 CPUs=2 RealMemory=4000
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


EVERY = 1000  # steps between checkpoints of the interval


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two nodes on this machine; environment and PATH say so until the end of the module."""
    here, host = tmp_path_factory.mktemp("slurm"), socket.gethostname().split(".")[0]
    for name in ("state", "spool-n1", "spool-n2", "bin"):
        (here / name).mkdir()
    (here / "slurm.conf").write_text(CONFIGURATION.format(here=here, host=host))
    program = here / "bin" / "dipole-vla"  # whatever this interpreter would run, under the name the script calls
    program.write_text(f'#!/bin/sh\necho "starts $1"\nexec {sys.executable} -m dipole_vla.cli "$@"\n')
    program.chmod(0o755)
    root = str(Path(__file__).resolve().parents[2])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(here / "slurm.conf"))
        patch.setenv("PATH", f"{here / 'bin'}:{os.environ['PATH']}:/usr/sbin")
        patch.setenv("PYTHONPATH", root)
        patch.setenv("MASTER_ADDR", "127.0.0.1")  # n1 and n2 are no host names here
        patch.setenv("OMP_NUM_THREADS", "1")
        if subprocess.run(["munge", "-n"], capture_output=True, check=False).returncode:
            subprocess.run(["install", "-d", "-o", "munge", "-g", "munge", "-m", "755", "/run/munge"], check=True)
            subprocess.run(["runuser", "-u", "munge", "--", "munged"], check=True)
        subprocess.run(["slurmctld"], check=True)
        for node in ("n1", "n2"):
            subprocess.run(["slurmd", "-N", node], check=True)
        try:
            until(lambda: output("sinfo", "-h", "-o", "%T") == "idle", 60)
            yield here
        finally:
            subprocess.run(["scancel", "--user", "root"], check=False)
            until(lambda: not output("squeue", "-h"), 120)  # the daemons must live until their steps are dead
            for pid in here.glob("*.pid"):
                os.kill(int(pid.read_text()), 15)


def output(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


def until(condition, limit: float = 600.0, told=lambda: "") -> None:
    ends = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < ends, told()
        time.sleep(0.5)


def launched(loop: Path, folder: Path, steps: int, *more: str) -> tuple[str, Path, Path]:
    """Job id, log and output folder of a training with two tasks on two nodes."""
    line = next(line for line in small_steps(loop) if line[1] == "fit" and line[5] == str(loop / "dipole"))
    recipe, out = folder / "recipe.yaml", folder / "dipole"
    recipe.write_text(Path(line[3]).read_text().replace("runs/demo/dipole", str(out)))
    recipe.write_text(recipe.read_text().replace("recipes/demo/reference", str(loop / "imitation")))
    for name in ("critic", "scenes/train", "candidates"):
        recipe.write_text(recipe.read_text().replace(f"runs/demo/{name}", str(loop / name)))
    options = [word for word in line[6:] if word != str(loop / "dipole")]
    argv = ["--config", str(recipe), "--nodes", "2", "--gpus", "0", "--cpus", "1", *more, "--", *options]
    argv += ["--trainer.max_steps", str(steps), "--trainer.strategy", "ddp", "--checkpoint_every", str(EVERY)]
    told = output(sys.executable, "-m", "dipole_vla.cli", "launch", *argv)
    job = re.search(r"batch job (\d+)", told)
    assert job, told
    return job[1], folder / f"dipole-{job[1]}.log", out


def again(job: str, log: Path) -> None:
    """A requeued job waits two minutes; not here: wait until it runs again."""
    time.sleep(5)  # in the second of its end a node would take it for the run that was ended ("credential revoked")

    def runs() -> bool:
        subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], capture_output=True, check=False)
        return state(job) == "RUNNING"  # not yet while the run before is still COMPLETING

    until(runs, told=log.read_text)


def starts(job: str) -> int:
    return int(re.search(r"Restarts=(\d+)", output("scontrol", "show", "job", job))[1])  # type: ignore[index]


def state(job: str) -> str:
    return re.search(r"JobState=(\w+)", output("scontrol", "show", "job", job))[1]  # type: ignore[index]


def said(log: Path) -> str:
    return log.read_text() if log.is_file() else ""


def test_a_preempted_job_requeues_itself_and_finishes(slurm: Path, loop: Path, tmp_path: Path) -> None:
    """Preempted while doctor still looks, and again amid the training."""
    job, log, out = launched(loop, tmp_path, 400)
    until(lambda: "starts doctor" in said(log), told=lambda: said(log))
    subprocess.run(["scancel", "--signal=USR1", job], check=True)
    until(lambda: starts(job) == 1, told=log.read_text)
    assert not out.exists()
    again(job, log)
    curves = out / "logs" / "metrics.csv"
    until(curves.is_file, told=log.read_text)
    subprocess.run(["scancel", "--signal=USR1", job], check=True)
    until(lambda: starts(job) == 2, told=log.read_text)
    assert len(list((out / CHECKPOINTS).glob("*.ckpt"))) == 1
    again(job, log)
    until(lambda: state(job) in ("COMPLETED", "FAILED", "CANCELLED"), 1200, told=log.read_text)
    assert state(job) == "COMPLETED", log.read_text()
    assert (out / MANIFEST).is_file()
    text = log.read_text().replace("\n", "")
    assert text.count("is requeued") == 1
    assert "resuming from" in text


def test_a_job_at_its_time_limit_goes_on_in_the_next(slurm: Path, loop: Path, tmp_path: Path) -> None:
    job, log, out = launched(loop, tmp_path, 1_000_000, "--time", "5:00", "--grace", "60")
    until(lambda: starts(job) == 1, told=lambda: said(log))
    newest = max((out / CHECKPOINTS).glob("*.ckpt"))
    assert int(newest.stem.partition("=")[2]) % EVERY, "the newest is of the interval, none was taken at the limit"
    again(job, log)
    until(lambda: "resuming from" in log.read_text().replace("\n", ""), told=log.read_text)
    subprocess.run(["scancel", job], check=True)
