"""`dipole-vla plan`: what a training recipe needs, before any GPU is asked for (`dipole_vla.planning.needs`)."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, cast

from dipole_vla.commands import early

USAGE = """usage: dipole-vla plan --config RECIPE.yaml [--gpus COUNTxGIGABYTES] [--json] [--measure] [options of fit]

  --gpus     such as 8x80; default 1x80
  --json     print data instead of lines
  --measure  time a few real steps on this machine for the hours"""


def plan(argv: Sequence[str]) -> None:
    """The command; see the module docstring."""
    if not argv or early.asks_for_help(argv):
        print(USAGE)
        return
    options, rest = _options(argv)
    early.check(rest)
    print("plan: reading the recipe", file=sys.stderr, flush=True)  # the imports alone take seconds
    from dipole_vla.planning.needs import Gpus, planned, report_lines

    recipe = resolved_recipe(rest)
    found = planned(recipe, Gpus.parse(options["gpus"]), measure=options["measure"])
    print(json.dumps(found, indent=2) if options["json"] else report_lines(found))


def _options(argv: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """This command's own options; the rest is the recipe and changes to it."""
    options: dict[str, Any] = {"gpus": "1x80", "json": False, "measure": False}
    rest, words = [], iter(argv)
    for word in words:
        name, equals, value = word.removeprefix("--").partition("=")
        if word in ("--json", "--measure"):
            options[name] = True
        elif word.startswith("--gpus"):
            options["gpus"] = value if equals else next(words, "")
        else:
            rest.append(word)
    return options, rest


def resolved_recipe(argv: Sequence[str]) -> dict[str, Any]:
    """The resolved training recipe, checked as `dipole-vla fit` checks it, with nothing built."""
    from lightning.pytorch.cli import LightningArgumentParser

    from dipole_vla.commands.fit import FitCLI, quiet_lightning
    from dipole_vla.commands.recipe import one_line, plain, recipe_of, take_imports

    class Parsed(Exception):
        pass

    class ParsingCLI(FitCLI):
        def before_instantiate_classes(self) -> None:
            raise Parsed(plain(self.parser, self.config))

    quiet_lightning()
    argv = take_imports(argv)
    where = recipe_of(argv, "fit")
    try:
        with one_line(where, LightningArgumentParser(exit_on_error=False), argv):
            ParsingCLI(argv, ExitStack())
    except Parsed as parsed:
        return cast(dict[str, Any], parsed.args[0])
    raise AssertionError("a recipe is parsed or refused")
