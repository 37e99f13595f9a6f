"""`dipole-vla`: the commands. The only module of the package that reads the environment or decides an exit code."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Sequence

from dipole_vla.preemption import EXIT_CODE, Preempted, listen
from navsim_adapter.foundation.errors import InputError, did_you_mean
from navsim_adapter.foundation.exits import Unwell, one_line, stdout_closed

USAGE = """usage: dipole-vla COMMAND [options]      (dipole-vla COMMAND --help shows the options)

  demo       the whole loop on a small synthetic world, on a CPU, in minutes
  init       a new backbone folder with random weights, from a family's configuration
  import     a published checkpoint (DP-VLA, PI0, ReCogDrive, X-VLA) as a backbone folder
  fit        train by recipe: imitation, critic or dipole; the same command resumes
  consolidate  the result of an unfinished training, from its newest checkpoint
  contexts   cache the frozen encoder's output of every scene
  collect    let a policy drive every scene K times, score it, write the advantage beside it
  advantage  rewrite the advantage column from a critic's Q - V
  evaluate   sweep omega and N over a split that RL has not seen
  report     one HTML page from an evaluation
  drive      a policy's plan in every scene, as a table for navsim-adapter score and submission
  serve      a policy as a driver in closed loop, for AlpaSim and CARLA (gRPC)
  launch     a recipe as a Slurm job, requeued and resumed until it is finished
  doctor     GPUs, network, storage, data and disk space, checked before a long job
  export     a policy as PEFT folders, as one distilled network, or as a loop (ONNX, torch.export)
  plan       what a training recipe needs: parameters, memory per GPU, steps, hours
  data       offline RL data sets: OGBench made or downloaded, a substitute in ExORL's format
  rl         one RL task by recipe: critic and every method, offline and online, the whole table
  experiment one of the paper's questions on a small known world, as a page

options everywhere: --debug (tracebacks), --allow-import PACKAGE (let a recipe name classes of PACKAGE)
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; 0 done, 2 the input is wrong or the system refuses a file (one line on stderr), 1 doctor found
    something, 75 preempted, 130 interrupted, 141 nobody reads the output."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0 if words else 2
    if words[0] in ("-V", "--version"):
        from dipole_vla import __version__

        print(f"dipole-vla {__version__}")
        return 0
    try:
        run(words[0], words[1:])
        sys.stdout.flush()
    except BrokenPipeError:
        return stdout_closed()
    except (InputError, OSError) as problem:
        if debug:
            raise
        print(f"error: {one_line(problem)}", file=sys.stderr)
        return 2
    except Preempted as word:
        print(word, file=sys.stderr)
        return EXIT_CODE
    except Unwell as word:
        print(word, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command resumes", file=sys.stderr)
        return 130
    return 0


def run(command: str, argv: Sequence[str]) -> None:
    """Run one command in this process; raises InputError."""
    if command not in COMMANDS:
        raise InputError(f"{command}: no such command{did_you_mean(command, list(COMMANDS))}; see dipole-vla --help")
    _check_ranks()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.getLogger("transformers.modeling_utils").setLevel(logging.ERROR)  # of a loss that nobody here asks for
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin while they wait starve a shared machine
    try:
        COMMANDS[command](argv)
    except ModuleNotFoundError as problem:
        if (problem.name or "").split(".")[0] in EXTRA_OF:
            extra = EXTRA_OF[(problem.name or "").split(".")[0]]
            raise InputError(
                f"{command}: needs the package {problem.name}; pip install 'dipole-vla[{extra}]'"
            ) from problem
        raise
    except (MemoryError, RuntimeError) as problem:
        told = _out_of_memory(problem)
        if told is None:
            raise
        remedy = "lower batch_size, and the same command resumes"
        if command == "fit":
            remedy = (
                "set model.checkpointing (of a pair) or lower data.workers, and the same command resumes; with a lower "
                "data.batch_size or model.draws it is another run, in another --out"
            )
        raise InputError(f"{command}: out of memory ({told}); what was saved so far is intact; {remedy}") from problem


def _check_ranks() -> None:
    """Lightning reads these as numbers, some of them as soon as it is imported."""
    for name in RANKS:
        try:
            int(os.environ.get(name, "0"))
        except ValueError:
            raise InputError(
                f"{name} in the environment: must be a whole number, got {os.environ[name]!r}; unset it, "
                "or correct it where ranks are started"
            ) from None


def _out_of_memory(problem: BaseException) -> str | None:
    """What an allocator said, in short; None for other failures. PyTorch's CPU one raises a bare RuntimeError."""
    text = " ".join(str(problem).split())
    if isinstance(problem, MemoryError) or type(problem).__name__ == "OutOfMemoryError":
        return text[:160] or "host memory"
    return text[:160] if "not enough memory" in text or "can't allocate memory" in text else None


def _function(path: str, positional: bool = False, called: str = "") -> Callable[[Sequence[str]], None]:
    """A command whose options are a function's parameters, imported when it runs; `called` where not by its name."""

    def command(argv: Sequence[str]) -> None:
        from dipole_vla.commands.recipe import call
        from dipole_vla.commands.signatures import deferred

        call(deferred(path), argv, called or path.partition(":")[2], positional)

    return command


def _fit(argv: Sequence[str]) -> None:
    listen()  # before the imports: a scheduler does not wait for them
    from dipole_vla.commands import early

    if early.asks_for_help(argv) and "trainer" not in argv:
        return print(early.help_text(), end="")
    early.check(argv)
    from dipole_vla.commands.fit import fit

    if early.asks_for_help(argv):
        argv = ["--help"]
        sys.argv[0] = "dipole-vla fit"  # Lightning's parser shows it; elsewhere ranks are started again by sys.argv
    fit(argv)


def _export(argv: Sequence[str]) -> None:
    if any(word.startswith("--scorer.") for word in argv) and "--scorer" not in argv and "--config" not in argv:
        argv = ["--scorer", "navsim_adapter.scoring.scorer.Scorer", *argv]
    _function("dipole_vla.commands.export:export", positional=True)(argv)


def _plan(argv: Sequence[str]) -> None:
    from dipole_vla.commands.plan import plan

    plan(argv)


def _passing_on(path: str) -> Callable[[Sequence[str]], None]:
    """A command that is given another command's options after --."""

    def command(argv: Sequence[str]) -> None:
        words = list(argv)
        cut = words.index("--") if "--" in words else len(words)
        own, passed_on = words[:cut], words[cut + 1 :]
        if passed_on:
            own += ["--arguments", json.dumps(passed_on)]
        _function(path)(own)

    return command


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "demo": _function("dipole_vla.demo:demo"),
    "init": _function("dipole_vla.commands.init:init"),
    "import": _function("dipole_vla.commands.import_:convert", positional=True, called="import"),
    "fit": _fit,
    "consolidate": _function("dipole_vla.commands.consolidate:consolidate", positional=True),
    "contexts": _function("dipole_vla.commands.contexts:contexts"),
    "collect": _function("dipole_vla.commands.collect:collect"),
    "advantage": _function("dipole_vla.commands.advantage:advantage"),
    "evaluate": _function("dipole_vla.commands.evaluate:evaluate"),
    "drive": _function("dipole_vla.commands.drive:drive"),
    "serve": _function("dipole_vla.commands.serve:serve"),
    "report": _function("dipole_vla.commands.report:report", positional=True),
    "launch": _passing_on("dipole_vla.commands.launch:launch"),
    "doctor": _passing_on("dipole_vla.commands.doctor:doctor"),
    "export": _export,
    "plan": _plan,
    "data": _function("dipole_vla.commands.data:data", positional=True),
    "rl": _function("dipole_vla.commands.rl:rl"),
    "experiment": _function("dipole_vla.commands.experiment:experiment", positional=True),
}

RANKS = (
    "RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_NTASKS",
    "JSM_NAMESPACE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT",
)  # fmt: skip

EXTRA_OF = {
    **dict.fromkeys(("torch", "lightning", "jsonargparse", "transformers", "peft", "timm", "safetensors"), "train"),
    **dict.fromkeys(("matplotlib", "jinja2"), "report"),
    "deepspeed": "deepspeed",
    **dict.fromkeys(("carla_driver_interface", "grpc", "scipy"), "drive"),
    **dict.fromkeys(("ogbench", "mujoco", "dm_control", "gymnasium"), "rl"),
}

if __name__ == "__main__":
    sys.exit(main())
