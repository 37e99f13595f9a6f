"""`dipole-vla launch`: a recipe as a Slurm job: a script one can read, submitted, and run again until it is finished.

Training is one job on all its GPUs. It hears of its end beforehand (SIGUSR1), saves at the end of the step, and asks
for its own requeue; the requeued job is the same script, and the same `fit` command resumes. Collection and evaluation
are job arrays, a GPU and a shard a task; the last task to finish puts the shards together. Launching a recipe twice
queues the second job behind the first, where it finds the work done.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from dipole_vla.commands import early
from dipole_vla.commands.recipe import kind_of, overridden, raw_recipe
from dipole_vla.progress import console
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.files import write_text
from navsim_adapter.foundation.option_checks import check_range, local_path

Command = Literal["fit", "collect", "evaluate"]

_HEAD = """\
#!/bin/bash
# {title}
# Written by: {line}
#SBATCH --job-name={name}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node={tasks}
#SBATCH --time={time}
#SBATCH --output={log}
# A requeued job continues the same log; after a preemption or a lost node Slurm starts it again.
#SBATCH --open-mode=append
#SBATCH --requeue
# Seconds before the time limit.
#SBATCH --signal={signal}@{grace}
{more}
set -uo pipefail{setup}
"""

_FIT = """
# The signal ends a step that cannot answer it (doctor, a rank that is still starting), with code 138. Such a job goes
# back into the queue, too.
step() {{
  srun "$@"
  local code=$?
  if [ $code -eq 138 ]; then scontrol requeue "$SLURM_JOB_ID"; fi    # 128 + SIGUSR1
  return $code
}}

# What a long job would else trip over late; one line each.
step --ntasks={nodes} --ntasks-per-node=1 {program} doctor --config {config}{overrides} || exit

# Every rank is the same command. The signal goes to the ranks, which save and requeue the job themselves.
step --kill-on-bad-exit=1 {program} fit --config {config} \\
  --trainer.num_nodes {nodes} --trainer.devices {gpus} --trainer.accelerator {accelerator}{arguments}
"""

_ARRAY = """
# The signal comes to this shell: what is scored is kept, the task goes back into the queue and on from there.
trap 'scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"' USR1

# What a long job would else trip over late; one line each.
{program} doctor --config {config}{overrides} || exit

srun {program} {command} --config {config} --shard "$((SLURM_ARRAY_TASK_ID + 1))/{array}"{arguments} &
wait $!; code=$?
while kill -0 $! 2>/dev/null; do wait $!; code=$?; done    # a trapped signal ends `wait` early
exit $code
"""


def launch(
    config: Path,
    nodes: int = 1,
    gpus: int = 1,
    time: str = "4:00:00",
    command: Command | None = None,
    array: int = 8,
    partition: str | None = None,
    account: str | None = None,
    cpus: int = 8,
    grace: int = 300,
    setup: str = "",
    program: str = "dipole-vla",
    out: Path | None = None,
    dry_run: bool = False,
    arguments: Sequence[str] = (),
) -> None:
    """Write the Slurm script of a recipe beside its output, and submit it.

    Args:
        config: recipe of fit, collect or evaluate.
        nodes: machines (fit).
        gpus: GPUs and processes a machine (fit); 0 trains on CPUs with one process a machine.
        time: limit of one run, as Slurm writes it; the job is requeued as often as it needs.
        command: which command the recipe belongs to; default is what its keys say.
        array: tasks of a collection or an evaluation.
        partition: Slurm partition.
        account: Slurm account.
        cpus: processors a task.
        grace: seconds between the signal and the limit; a step and a checkpoint must fit in.
        setup: lines run before anything else, e.g. "module load cuda; source .venv/bin/activate".
        program: what starts dipole-vla in the job, e.g. "apptainer run --nv dipole-vla.sif".
        out: script to write; default is OUT.sbatch beside the recipe's output folder.
        dry_run: write the script and submit nothing.
        arguments: further arguments of the command, as a list; on the command line: after --. Doctor sees them too.
    """
    recipe = overridden(raw_recipe(config), arguments)
    folder = local_path(f"{config}: out", str(recipe.get("out", config.stem)))
    chosen = command or _command_of(config, recipe)
    if chosen == "fit":
        early.check(["--config", str(config), *arguments])
    job = Job(
        chosen, config, folder, nodes, gpus, time, array, partition, account, cpus, grace, setup, program, arguments
    )
    path = out or folder.with_name(folder.name + ".sbatch")
    write_text(path, script(job))
    _log(folder, chosen).parent.mkdir(parents=True, exist_ok=True)  # Slurm makes no folder for a log, and then has none
    if dry_run:
        console.print(f"{path}: written, not submitted", markup=False, soft_wrap=True)
        return
    if shutil.which("sbatch") is None:
        raise InputError(f"{path}: written, but sbatch is not on PATH; submit it from a login node of the cluster")
    answer = subprocess.run(["sbatch", str(path)], capture_output=True, text=True)
    if answer.returncode:
        raise InputError(f"sbatch {path}: {' '.join(answer.stderr.split())}")
    said = f"{answer.stdout.strip()}; script {path}, log {_log(folder, chosen)}"
    console.print(said, markup=False, soft_wrap=True)


@dataclass(frozen=True)
class Job:
    """What a script is written from. folder: the command's output; the other fields as `launch` takes them."""

    command: Command
    config: Path
    folder: Path
    nodes: int
    gpus: int
    time: str
    array: int
    partition: str | None
    account: str | None
    cpus: int
    grace: int
    setup: str
    program: str
    arguments: Sequence[str]

    def __post_init__(self) -> None:
        for name, least in (("nodes", 1), ("gpus", 0), ("array", 1), ("cpus", 1), ("grace", 10)):
            check_range(f"--{name}", getattr(self, name), least)
        if not re.fullmatch(r"(\d+-)?\d+(:\d\d){0,2}", self.time):
            raise InputError(f"--time: {self.time!r} is no Slurm time; write it as 4:00:00 or 1-12:00:00")
        if not self.program.strip():
            raise InputError("--program: is empty; give what starts dipole-vla, or leave it out")


def script(job: Job) -> str:
    """The text of the Slurm script."""
    command, folder, gpus = job.command, job.folder, job.gpus
    is_fit = command == "fit"
    more = {
        "--array": None if is_fit else f"0-{job.array - 1}",
        "--dependency": "singleton" if is_fit else None,
        "--gpus-per-node": (gpus or None) if is_fit else (1 if gpus else None),
        "--cpus-per-task": job.cpus,
        "--partition": job.partition,
        "--account": job.account,
    }
    lines = [f"#SBATCH {key}={value}" for key, value in more.items() if value is not None]
    words = "".join(f" {shlex.quote(word)}" for word in job.arguments)
    facts: dict[str, Any] = {
        "title": f"{command} of {job.config}. Slurm runs this script again after an interruption, until all is done.",
        "line": " ".join(["dipole-vla", *_written_by()]),
        "name": re.sub(r"[^\w.-]", "-", f"{folder.name}-{command}"),
        "nodes": job.nodes if is_fit else 1,
        "tasks": max(gpus, 1) if is_fit else 1,
        "time": job.time,
        "log": _as_sbatch_reads(_log(folder, command)),
        "signal": "USR1" if is_fit else "B:USR1",
        "grace": job.grace,
        "more": "\n".join(lines),
        "setup": "".join(f"\n{line}" for line in job.setup.split("; ") if line),
        "program": job.program,
        "config": shlex.quote(str(job.config)),
        "command": command,
        "array": job.array,
        "gpus": max(gpus, 1),
        "accelerator": "gpu" if gpus else "cpu",
        "arguments": words,
        "overrides": words and f" --{words}",
    }
    return _HEAD.format(**facts) + (_FIT if is_fit else _ARRAY).format(**facts)


def _command_of(config: Path, recipe: dict[str, Any]) -> Command:
    kind = kind_of(recipe)
    if kind not in get_args(Command):
        found = f"one of {kind}" if kind else "no trainer, no scorer"
        raise InputError(f"{config}: no recipe of fit, collect or evaluate ({found}); give --command")
    return cast(Command, kind)


def _log(folder: Path, command: Command) -> Path:
    return folder.with_name(f"{folder.name}-%j.log" if command == "fit" else f"{folder.name}-%A_%a.log")


def _as_sbatch_reads(path: Path) -> str:
    """In a script's directives quotes hold words together, a backslash takes the next character as it is."""
    escaped = re.sub(r'(["\\])', r"\\\1", str(path))
    return f'"{escaped}"' if re.search(r"""[\s"'\\#]""", str(path)) else str(path)


def _written_by() -> list[str]:
    words = sys.argv[1:]
    return [shlex.quote(word) for word in words] if words[:1] == ["launch"] else ["launch"]
