"""Recipes: YAML read the safe way, typed by the command's own signature, classes only from known packages.

A mistake raises InputError with one line: recipe, key, what is wrong, what is near.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace, set_parsing_settings

from navsim_adapter.errors import InputError, did_you_mean
from navsim_adapter.foreign import check_yaml
from navsim_adapter.option_checks import local_path

TRUSTED = ("dipole_vla", "navsim_adapter", "lightning.pytorch", "torch.optim")


def trust(*packages: str) -> None:
    """Let recipes name classes of these packages, and of no other: parsing a recipe imports what it names."""
    set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=[*TRUSTED, *packages])


def call(function: Callable[..., None], argv: Sequence[str], command: str, positional: bool = False) -> None:
    """Run `function` with arguments from `--config RECIPE.yaml` and the command line, which has the last word.

    A parameter named `recipe` is given the resolved recipe. positional: required parameters are given without --name.
    A function with a parameter `config` takes a recipe of another command, which it reads itself.
    """
    argv = spelled_out(take_imports(argv))
    parser = ArgumentParser(prog=f"dipole-vla {command}", exit_on_error=False, description=_first_line(function))
    if "config" not in inspect.signature(function).parameters:
        parser.add_argument("--config", action="config", help="recipe YAML; its keys are the options below")
    parser.add_function_arguments(function, skip={"recipe"}, as_positional=positional)
    with one_line(recipe_of(argv), parser):
        namespace = parser.parse_args(argv)
        recipe = plain(parser, namespace)
        objects = parser.instantiate_classes(namespace)
    known = inspect.signature(function).parameters
    arguments = {name: value for name, value in vars(objects).items() if name in known}
    for name, value in arguments.items():
        if isinstance(value, Path):
            local_path(f"--{name}", value)
    if "recipe" in inspect.signature(function).parameters:
        arguments["recipe"] = recipe
    function(**arguments)


def take_imports(argv: Sequence[str]) -> list[str]:
    """Remove `--allow-import NAME` (repeatable) and trust those packages for this run."""
    rest, extra = [], []
    words = iter(argv)
    for word in words:
        if word == "--allow-import":
            extra.append(next(words, ""))
        else:
            rest.append(word)
    trust(*[name for name in extra if name])
    return rest


def spelled_out(argv: Sequence[str]) -> list[str]:
    """`--allow-eval-split` as the parser wants it: `--allow_eval_split true`. Options may be written with dashes."""
    words: list[str] = []
    for word, following in zip(argv, [*argv[1:], "--"]):
        if not word.startswith("--"):
            words.append(word)
            continue
        name, equals, value = word.partition("=")
        words.append("--" + name[2:].replace("-", "_") + equals + value)
        if not equals and following.startswith("--") and name not in ("--help", "--print_config"):
            words.append("true")
    return words


def recipe_of(argv: Sequence[str]) -> str:
    """The recipe named after --config, for messages; InputError when there is no such file."""
    for word, following in zip(argv, [*argv[1:], ""]):
        name = (
            following
            if word == "--config"
            else word.removeprefix("--config=")
            if word.startswith("--config=")
            else None
        )
        if name is not None:
            if not Path(name).is_file():
                raise InputError(f"{name}: no such recipe file; give its path after --config")
            check_yaml(name)
            return name
    return "command line"


def plain(parser: ArgumentParser, namespace: Namespace) -> dict[str, Any]:
    """The resolved recipe as plain data."""
    resolved = yaml.safe_load(parser.dump(namespace, skip_validation=True, format="yaml", skip_none=False))
    resolved.pop("config", None)
    return resolved


@contextmanager
def one_line(recipe: str, parser: ArgumentParser) -> Iterator[None]:
    """Turn a parser's complaint into an InputError of one line that names the recipe and the key."""
    try:
        yield
    except InputError:
        raise
    except ValueError as problem:  # how the parser wraps what a constructor raised
        told = _told(problem)
        if told is None:
            raise
        raise InputError(f"{recipe}: {told}") from problem
    except ArgumentError as problem:
        known = [action.dest for action in parser._actions]
        raise InputError(f"{recipe}: {_shorten(str(problem), known)}") from problem


def _shorten(text: str, known: list[str]) -> str:
    """The parser's nested complaint as `key: what is wrong (what was meant)`."""
    text = re.sub(r"\s*\n\s*", " ", text).strip()
    text = re.sub(r" - Expected a <class 'NoneType'>.*", "", text)  # the other branch of an Optional
    text = re.sub(r"Does not validate against any of the Union subtypes .*?Errors: - ", "", text)
    key = ".".join(re.findall(r'Parser key "([^"]+)": ?', text))
    text = re.sub(r'Parser key "[^"]+": ?', "", text)
    named = re.match(r"Problem with given class_path '([^']+)': ?(.*)", text)
    if named:
        text = named[2]
    foreign = re.search(r"Importing '([^']+)' is not allowed", text)
    if foreign:
        package = foreign[1].split(".")[0]
        trusted = ", ".join(TRUSTED)
        text = f"class {foreign[1]!r} is not allowed, only those of {trusted}; --allow-import {package} trusts it"
    unknown = re.search(r"[Oo]ption '([^']+)'|unrecognized arguments: --([\w.]+)", text)
    if unknown:
        word = unknown[1] or unknown[2]
        names = [*known, *(name.rsplit(".", 1)[-1] for name in known), *(_parameters(named[1]) if named else [])]
        text += did_you_mean(word, names)
    text = f"{key}: {text}" if key else text
    return text if len(text) < 400 else f"{text[:200]} … {text[-180:]}"


def _told(problem: BaseException) -> InputError | None:
    """The InputError a constructor raised, however deeply the parser has wrapped it."""
    while problem is not None and not isinstance(problem, InputError):
        problem = problem.__cause__ or problem.__context__  # type: ignore[assignment]
    return problem


def _parameters(class_path: str) -> list[str]:
    """Names of a class's parameters; the parser has imported it already."""
    module, _, name = class_path.rpartition(".")
    found = getattr(sys.modules.get(module), name, None)
    return list(inspect.signature(found).parameters) if found else []


def _first_line(function: Callable[..., None]) -> str:
    return (inspect.getdoc(function) or "").split("\n\n")[0]
