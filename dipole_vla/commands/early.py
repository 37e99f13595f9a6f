"""A recipe of `fit` looked at before torch and Lightning are loaded: its help, and the mistakes that its text shows.

What passes here is parsed again by Lightning's parser, which has the last word: what only it can judge is left to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import yaml
from jsonargparse import ArgumentParser

from dipole_vla.commands.recipe import one_line, overridden, raw_recipe, recipe_of, take_imports
from dipole_vla.commands.signatures import OURS, parameters, signature, summary
from navsim_adapter.foundation.errors import InputError, did_you_mean

CLASSES = {
    "model": tuple(f"dipole_vla.training.{name}" for name in ("ImitationModule", "CriticModule", "DipoleModule")),
    "data": ("dipole_vla.data.module.DrivingData",),
}
SECTIONS = ("trainer", *CLASSES)
TRAINER = ("lightning.pytorch.trainer.trainer", "Trainer")
ELSEWHERE = {  # keys that LightningCLI is known for, and where a recipe of ours has them
    **dict.fromkeys(
        ("optimizer", "lr_scheduler"),
        "model.lr is the rate, model.warmup_steps and then linear decay its course, model.weight_decay AdamW's decay",
    ),
    "ckpt_path": "a run goes on from the newest checkpoint of its --out by itself",
}
USAGE = """usage: dipole-vla fit --config RECIPE.yaml [--out OUT] [--KEY VALUE ...]

Train by recipe: imitation, critic or dipole. The same command resumes. Every key of the recipe is an option too, as in
--model.lr 1e-4 or --data.batch_size 8; the command line has the last word.

  --config RECIPE.yaml
  --out OUT                   folder of this run and of its result (required)
  --checkpoint_every STEPS    steps between checkpoints (default: 500)
  --seed_everything SEED      of whatever draws at random (default: 0)
  --trainer.KEY VALUE         of Lightning's Trainer, as in --trainer.max_steps 2000; `fit --help trainer` lists them
  --print_config              print the whole recipe with every default, and stop
"""


def asks_for_help(argv: Sequence[str]) -> bool:
    return "--help" in argv or "-h" in argv


def help_text() -> str:
    """Our own keys, with what each means."""
    return "\n".join([USAGE, *(_described(section, path) for section, paths in CLASSES.items() for path in paths)])


def _described(section: str, class_path: str) -> str:
    parser = _parser(signature(*_split(class_path)))
    lines = [f"{section}.class_path: {class_path}", f"  {summary(*_split(class_path))}"]
    for action in parser._actions:
        if action.dest not in ("help", "config"):
            default = "required" if action.required else f"default: {_plain(action.default)}"
            text = f"{action.dest:<18} {action.help} ({default})"
            lines.append(fill(text, 110, initial_indent="  ", subsequent_indent=" " * 21))
    return "\n".join(lines) + "\n"


def _plain(value: Any) -> Any:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else value


def check(argv: Sequence[str]) -> None:
    """Raises InputError for unknown keys, missing ones and values of another type, as far as our own classes go."""
    words = take_imports(argv)
    where = recipe_of(words, "fit")
    if where == "command line" or not _is_plain(words):
        return
    recipe = overridden(raw_recipe(Path(where)), _without_config(words))
    for key, instead in ELSEWHERE.items():
        if recipe.get(key) is not None:
            raise InputError(f"{_origin(key, where, words)}: {key}: is not supported, {instead}")
    hidden = {key: "given" for key in SECTIONS if key in recipe}  # the parser would import the classes that they name
    _parse(_top(), {**recipe, **hidden}, where, argv)
    for section in CLASSES:
        if not any(word.split("=")[0] in (f"--{section}", f"--{section}.class_path") for word in words):
            _check_section(section, recipe[section], where, argv)
    _check_trainer(recipe.get("trainer"), where, argv)


def _is_plain(words: Sequence[str]) -> bool:
    """One recipe and options with their values; the rest is Lightning's parser's affair."""
    names = [word.partition("=")[0] for word in words]
    asks = any(name.startswith("--print_config") or name.endswith("help") for name in names)
    return not asks and names.count("--config") == 1 and not (words[-1].startswith("--") and "=" not in words[-1])


def _without_config(words: Sequence[str]) -> list[str]:
    before = ["", *words]
    return [word for word, last in zip(words, before) if "--config" not in (word.split("=")[0], last)]


def _top() -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--seed_everything", type=bool | int)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--checkpoint_every", type=int, default=500)
    for key in ("trainer", "optimizer", "lr_scheduler", "data", "model"):
        parser.add_argument(f"--{key}", type=Any, required=key in CLASSES)
    return parser


def _check_section(section: str, content: Any, where: str, argv: Sequence[str]) -> None:
    """`model` or `data`, where it names a class of ours."""
    path = content.get("class_path") if isinstance(content, dict) else None
    if not isinstance(path, str) or path.partition(".")[0] not in OURS:
        return
    try:
        function = signature(*_split(path))
    except KeyError:
        module, name = _split(path)
        near = did_you_mean(name, [_split(known)[1] for known in CLASSES[section]])
        raise InputError(f"{where}: {section}: module {module!r} has no attribute {name!r}{near}") from None
    arguments = content.get("init_args") or {}
    if path in CLASSES[section] and isinstance(arguments, dict):
        _parse(_parser(function), arguments, where, argv, section)


def _check_trainer(content: Any, where: str, argv: Sequence[str]) -> None:
    if not isinstance(content, dict):
        return
    try:
        known = parameters(*TRAINER)
    except KeyError:  # another Lightning
        return
    for key in content:
        if str(key).removesuffix("+") not in known:
            near, origin = did_you_mean(str(key), known), _origin(f"trainer.{key}", where, argv)
            raise InputError(f"{origin}: trainer: Option {key!r} is not accepted{near}")


def _origin(key: str, where: str, argv: Sequence[str]) -> str:
    return "command line" if any(word.startswith(f"--{key}") for word in argv) else where


def _parser(function: Callable[..., Any]) -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_function_arguments(function, sub_configs=False)
    return parser


def _parse(
    parser: ArgumentParser, content: dict[str, Any], where: str, argv: Sequence[str], within: str = "", **more: Any
) -> None:
    with one_line(where, parser, argv, within=within, **more):
        parser.parse_string(yaml.safe_dump(content))


def _split(class_path: str) -> tuple[str, str]:
    module, _, name = class_path.rpartition(".")
    return module, name
