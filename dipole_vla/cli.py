"""`dipole-vla`: the commands. The only module of the package that reads the environment or decides an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from navsim_adapter.errors import InputError, did_you_mean

USAGE = """usage: dipole-vla COMMAND [options]      (dipole-vla COMMAND --help shows the options)

  demo       the whole loop on a small synthetic world, on a CPU, in minutes
  init       a new backbone folder with random weights, from a family's configuration
  import     a published checkpoint (DP-VLA, X-VLA) as a backbone folder
  fit        train by recipe: imitation, critic or dipole; the same command resumes
  collect    let a policy drive every scene K times, score it, write the advantage beside it
  advantage  rewrite the advantage column from a critic's Q - V
  evaluate   sweep omega and N over a split that RL has not seen
  report     one HTML page from an evaluation

options everywhere: --debug (tracebacks), --allow-import PACKAGE (let a recipe name classes of PACKAGE)
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; 0 done, 2 the user's input is wrong (one line on stderr), 130 interrupted."""
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
    except InputError as problem:
        if debug:
            raise
        print(f"error: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where this stopped", file=sys.stderr)
        return 130
    return 0


def run(command: str, argv: Sequence[str]) -> None:
    """Run one command in this process; raises InputError."""
    if command not in COMMANDS:
        raise InputError(f"{command}: no such command{did_you_mean(command, list(COMMANDS))}; see dipole-vla --help")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
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


def _function(path: str, positional: bool = False) -> Callable[[Sequence[str]], None]:
    """A command whose options are a function's parameters, imported when it runs."""
    module, name = path.split(":")

    def command(argv: Sequence[str]) -> None:
        from importlib import import_module

        from dipole_vla.recipes import call

        call(getattr(import_module(module), name), argv, name, positional)

    return command


def _fit(argv: Sequence[str]) -> None:
    from dipole_vla.training.fit import fit

    fit(argv)


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "demo": _function("dipole_vla.demo:demo"),
    "init": _function("dipole_vla.backbones.init:init"),
    "import": _function("dipole_vla.backbones.importing:convert", positional=True),
    "fit": _fit,
    "collect": _function("dipole_vla.collect:collect"),
    "advantage": _function("dipole_vla.critic.advantage:advantage"),
    "evaluate": _function("dipole_vla.evaluation.sweep:evaluate"),
    "report": _function("dipole_vla.evaluation.report.page:report", positional=True),
}

EXTRA_OF = {
    **dict.fromkeys(("torch", "lightning", "jsonargparse", "transformers", "peft", "timm", "safetensors"), "train"),
    **dict.fromkeys(("matplotlib", "jinja2"), "report"),
    "deepspeed": "deepspeed",
}

if __name__ == "__main__":
    sys.exit(main())
