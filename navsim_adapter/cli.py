"""The command `navsim-adapter`. Nothing is computed here: a command is a module of `commands`."""

from __future__ import annotations

import argparse
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NoReturn

from navsim_adapter import __version__
from navsim_adapter.foundation.errors import InputError, did_you_mean
from navsim_adapter.foundation.exits import one_line, stdout_closed
from navsim_adapter.foundation.option_checks import local_path


@dataclass(frozen=True)
class Command:
    help: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; an InputError, or what the system refuses, becomes one line on stderr and exit status 2."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    if words and words[0] in REMOVED:
        print(f"navsim-adapter {words[0]}: is no command any more: {REMOVED[words[0]]}", file=sys.stderr)
        return 2
    options = _parser(words[0] if words else "").parse_args(words)
    try:
        _check_paths(options)
        COMMANDS[options.command].run(options)
        sys.stdout.flush()
    except BrokenPipeError:
        return stdout_closed()
    except (InputError, OSError) as problem:
        if options.debug:
            traceback.print_exc()
        print(f"navsim-adapter {options.command}: {one_line(problem)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("navsim-adapter: interrupted; the same command resumes", file=sys.stderr)
        return 130
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, as for every other mistake, with the word that was meant."""
        wrong = re.search(r"invalid choice: '(.*)' \(choose from (.*)\)|unrecognized arguments: (\S+)", message)
        hint = ""
        if wrong:
            known = re.findall(r"[\w-]+", wrong[2]) if wrong[2] else list(_options(self))
            hint = did_you_mean(wrong[1] or wrong[3], known)
        self.exit(2, f"{self.prog}: error: {message}{hint}; see {self.prog} --help\n")


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from _options(child)


def _parser(chosen: str) -> argparse.ArgumentParser:
    """The parser; only the chosen command declares its arguments, so that no other one is imported."""
    parser = _Parser("navsim-adapter", description="NAVSIM's files and scores, without the devkit.")
    parser.add_argument("--version", action="version", version=f"navsim-adapter {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, command in COMMANDS.items():
        child = commands.add_parser(name, help=command.help, description=command.help)
        child.add_argument("--debug", action="store_true", help="show the traceback of an error")
        if name == chosen:
            command.arguments(child)
    return parser


_PATHS = (
    "out", "file", "data", "filter", "cache", "trajectories", "two_stage", "second_stage_trajectories",
    "second_stage_cache", "mapping", "tree", "other", "maps", "expect", "first_stage", "a", "b", "vocabulary", "world",
    "beside", "sensors",
    "beside",
)  # fmt: skip


def _check_paths(options: argparse.Namespace) -> None:
    """Every file and folder named is one of this machine, whatever the command does with it."""
    for name in _PATHS:
        value = getattr(options, name, None)
        for path in value if isinstance(value, list) else [value]:
            if path is not None:
                local_path(f"--{name.replace('_', '-')}", path)


def _leaf(module: str, help: str) -> Command:
    """A command that lives in a module of its own with `add_arguments` and `run`, imported when asked for."""
    from importlib import import_module

    return Command(
        help,
        lambda parser: import_module(module).add_arguments(parser),
        lambda options: import_module(module).run(options),
    )


COMMANDS: dict[str, Command] = {
    "synth": _leaf("navsim_adapter.commands.synth", "Make a small world in NAVSIM's formats."),
    "convert": _leaf(
        "navsim_adapter.commands.convert", "Write the scenes of a split, or rendered ones, as an Arrow table."
    ),
    "cache": _leaf("navsim_adapter.commands.cache", "Build the scoring cache of a split from logs and maps."),
    "import": _leaf("navsim_adapter.commands.import_", "Turn the devkit's metric cache into ours."),
    "score": _leaf("navsim_adapter.commands.score", "Score trajectories with an official metric."),
    "vocabulary": _leaf(
        "navsim_adapter.commands.vocabulary", "Score one set of trajectories in every scene of a cache."
    ),
    "compare": _leaf("navsim_adapter.commands.compare", "Say why two score tables differ, row by row."),
    "inspect": _leaf("navsim_adapter.commands.inspect", "Say what a scoring cache holds."),
    "baseline": _leaf("navsim_adapter.commands.baseline", "Trajectories of a planner that needs no weights."),
    "submission": _leaf("navsim_adapter.commands.submission", "Write or check an official submission file."),
    "render": _leaf("navsim_adapter.commands.render", "Draw scenes and trajectories from above."),
    "closed-loop": _leaf("navsim_adapter.commands.closed_loop", "Let a driver drive in a synthetic world."),
}

REMOVED = {"merge": "give all shards of `score --shard i/n` one --out; the last to finish writes the table"}

if __name__ == "__main__":
    sys.exit(main())
