"""Recipes: YAML read the safe way, typed by the command's own signature, classes only from known packages.

A mistake raises InputError with one line: recipe, key, what is wrong, what is near.
"""

from __future__ import annotations

import inspect
import re
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import fields, is_dataclass
from pathlib import Path
from traceback import walk_tb
from types import FrameType
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace, set_parsing_settings

from navsim_adapter.foundation.errors import InputError, did_you_mean
from navsim_adapter.foundation.foreign import check_yaml
from navsim_adapter.foundation.option_checks import local_path

_OURS = ("dipole_vla", "navsim_adapter")
_PASSING_ON = {  # modules that hand a recipe's values to a library, or a library's to another
    "dipole_vla.commands.recipe", "dipole_vla.commands.plan", "dipole_vla.training.ranks", "dipole_vla.commands.fit",
    "dipole_vla.training.deepspeed", "dipole_vla.commands.early",
}  # fmt: skip
_LIBRARIES = tuple({sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")})
TRUSTED = ("dipole_vla", "navsim_adapter", "lightning.pytorch", "torch.optim")


def trust(*packages: str) -> None:
    """Let recipes name classes of these packages, and of no other: parsing a recipe imports what it names."""
    set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=[*TRUSTED, *packages])


def call(function: Callable[..., None], argv: Sequence[str], command: str, positional: bool = False) -> None:
    """Run `function` with arguments from `--config RECIPE.yaml` and the command line, which has the last word.

    A parameter named `recipe` is given the resolved recipe; fields of a dataclass named `run` are options like the
    parameters. positional: required parameters are given without --name.
    A function with a parameter `config` takes a recipe of another command, which it reads itself.
    """
    argv = spelled_out(take_imports(argv))
    parser = ArgumentParser(prog=f"dipole-vla {command}", exit_on_error=False, description=_first_line(function))
    known = inspect.signature(function, eval_str=True).parameters
    if "config" not in known:
        parser.add_argument("--config", action="config", help="recipe YAML; its keys are the options below")
    shared: Any = known["run"].annotation if "run" in known and is_dataclass(known["run"].annotation) else None
    if shared:
        parser.add_class_arguments(shared)
    skipped: set[str | int] = {"recipe", "run"} if shared else {"recipe"}
    parser.add_function_arguments(function, skip=skipped, as_positional=positional)
    with one_line(recipe_of(argv, command), parser, argv):
        namespace = parser.parse_args(argv)
        recipe = plain(parser, namespace)
        objects = parser.instantiate_classes(namespace)
    for name, value in vars(objects).items():
        if isinstance(value, Path):
            local_path(f"--{name}", value)
    arguments = {name: value for name, value in vars(objects).items() if name in known}
    if shared:
        arguments["run"] = shared(**{each.name: objects[each.name] for each in fields(shared)})
    if "recipe" in known:
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


def recipe_of(argv: Sequence[str], command: str | None = None) -> str:
    """The recipe named after --config, for messages; InputError when there is no such file.

    command: whose recipe it should be; another command's is refused by name, not key by key.
    """
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
            kind = _kind(name, command) if command in (*_MARKS, *_UNMARKED) else command
            if kind not in (None, command):
                raise InputError(f"{name}: is a recipe of `dipole-vla {kind}`, not of {command}; name another one")
            return name
    return "command line"


_MARKS = {
    "fit": ("trainer", "model"),
    "rl": ("learner", "task"),
    "evaluate": ("choose_on",),
    "collect": ("with_human",),
    "init": ("sizes", "family"),
}
"""Command -> keys that no other of these commands has."""
_UNMARKED = ("drive", "contexts", "advantage")  # their recipes have no such key, and no scorer


def _kind(recipe: str, command: str) -> str | None:
    """Whose recipe a file is, where a key of its says so; of those that drive and score, either may be `command`'s."""
    try:
        content = yaml.safe_load(Path(recipe).read_text())
    except (yaml.YAMLError, UnicodeDecodeError):  # the parser says what is wrong
        return None
    keys = content if isinstance(content, dict) else {}
    drives = command in ("collect", "evaluate") and not any(mark in keys for marks in _MARKS.values() for mark in marks)
    return command if drives else kind_of(keys)


def kind_of(recipe: Mapping[str, Any]) -> str | None:
    """The command whose recipe this is, as far as its keys tell."""
    named = (command for command, marks in _MARKS.items() if any(mark in recipe for mark in marks))
    drives = "evaluate" if isinstance(recipe.get("candidates"), list) else "collect"
    return next(named, drives if "scorer" in recipe else None)


def raw_recipe(config: Path) -> dict[str, Any]:
    """A recipe as plain YAML, before any class in it is looked at."""
    check_yaml(config)
    try:
        recipe = yaml.safe_load(config.read_text())
    except yaml.YAMLError as problem:
        raise InputError(f"{config}: cannot be read as a recipe ({' '.join(str(problem).split())[:200]})") from problem
    if not isinstance(recipe, dict):
        raise InputError(f"{config}: a recipe is a mapping of keys, got {type(recipe).__name__}")
    return recipe


def overridden(recipe: dict[str, Any], arguments: Sequence[str]) -> dict[str, Any]:
    """A plain recipe with its command's options (`--data.scenes X`) put in their places, unchecked."""
    recipe, words = deepcopy(recipe), spelled_out(arguments)
    for word, following in zip(words, [*words[1:], ""]):
        if not word.startswith("--"):
            continue
        name, equals, value = word[2:].partition("=")
        part, (*sections, key) = recipe, name.split(".")
        for section in sections:
            part = _mapping_in(part, section)
            if "class_path" in part and "init_args" not in sections:
                part = _mapping_in(part, "init_args")
        part[key] = _value(value if equals else following)
    return recipe


def _mapping_in(part: dict[str, Any], key: str) -> dict[str, Any]:
    if not isinstance(part.get(key), dict):
        part[key] = {}
    return part[key]


def _value(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def plain(parser: ArgumentParser, namespace: Namespace) -> dict[str, Any]:
    """The resolved recipe as plain data."""
    resolved = yaml.safe_load(parser.dump(namespace, skip_validation=True, format="yaml", skip_none=False))
    resolved.pop("config", None)
    return resolved


@contextmanager
def one_line(
    recipe: str,
    parser: ArgumentParser,
    argv: Sequence[str] = (),
    elsewhere: Mapping[str, str] | None = None,
    within: str = "",
) -> Iterator[None]:
    """Turn a parser's complaint into an InputError of one line that names the recipe, or the command line, and the key.

    argv: what was typed.  elsewhere: keys that are not accepted, with what stands for them.  within: the section of
    the recipe that is parsed, if not the whole.

    What a library says of a value it was given is told, too; a failure in our own code or the user's stays what it is.
    """
    try:
        yield
    except InputError:
        raise
    except ArgumentError as problem:
        known = [action.dest for action in parser._actions]
        text = _shorten(str(problem), known, elsewhere or {}, within)
        raise InputError(f"{_origin(recipe, argv, text)}: {text}") from problem
    except Exception as problem:
        told = as_input_error(problem) or _innermost(problem)  # the parser wraps what a constructor raised
        if not isinstance(told, InputError) and not said_by_a_library(problem):
            raise
        text = " ".join((_of_union(problem) or str(told)).split())[:400] or type(told).__name__
        named = re.search(r"given class_path '(?:[\w.]*\.)?(\w+)'", str(problem))
        if named and not isinstance(told, InputError):
            text = f"{named[1]}: {text}"
        raise InputError(f"{_origin(recipe, argv, text)}: {text}") from problem


def said_by_a_library(problem: BaseException) -> bool:
    """Whether a library refused what a recipe gave it: no code ran in between but that which reads recipes."""
    names = frames_of(problem)
    own = {name for name in names if not name or name.startswith(_OURS)}
    return own <= _PASSING_ON and names[-1] not in own


def frames_of(problem: BaseException) -> list[str]:
    """Modules whose code was running where an exception came from, the innermost last; "" for code of the user's,
    which lies outside the interpreter's folders."""
    names = [_module_of(frame) for frame, _ in walk_tb(problem.__traceback__)]
    return names if problem.__cause__ is None else names + frames_of(problem.__cause__)


def _module_of(frame: FrameType) -> str:
    name, file = str(frame.f_globals.get("__name__", "")), frame.f_code.co_filename
    return name if name.startswith(_OURS) or file.startswith((*_LIBRARIES, "<")) else ""


def _of_union(problem: BaseException) -> str | None:
    """What a constructor said, where the parser tried other types of a Union after it and blames the last of them."""
    if isinstance(as_input_error(problem), InputError) or "against any of the Union" not in str(problem):
        return None
    errors = str(problem).partition("Errors:")[2].partition("Given value type:")[0]
    said = [text for text in re.split(r"\n\s+- ", errors) if text.strip() and not text.startswith("Expected a")]
    return "; ".join(said) or None


def _innermost(problem: BaseException) -> BaseException:
    return problem if problem.__cause__ is None else _innermost(problem.__cause__)


def _origin(recipe: str, argv: Sequence[str], text: str) -> str:
    """The recipe, or the command line where the key that a message begins with was typed there."""
    key = re.match(r"([\w.]+): ", text)
    option = re.search(r"[Oo]ption '([\w.]+)'|unrecognized arguments: --([\w.]+)", text)
    blamed = ".".join(part for part in (key and key[1], option and (option[1] or option[2])) if part)
    if option and option[2]:
        return "command line"
    words = [word[2:].partition("=")[0].replace("-", "_") for word in argv if word.startswith("--")]
    typed = [word.replace("init_args.", "") for word in words if word != "config"]
    blamed = blamed.replace("init_args.", "")
    named = [*typed, *argv]  # a class is a value, by its path or its name alone
    is_typed = blamed and any(word == blamed or word.endswith(f".{blamed}") for word in named)
    return "command line" if is_typed else recipe


def _shorten(text: str, known: list[str], elsewhere: Mapping[str, str], within: str = "") -> str:
    """The parser's nested complaint as `key: what is wrong (what was meant)`."""
    text = re.sub(r"\s*\n\s*", " ", text).strip()
    text = re.sub(r" - Expected a <class 'NoneType'>.*", "", text)  # the other branch of an Optional
    text = re.sub(r"Does not validate against any of the Union subtypes .*?Errors: - ", "", text)
    key = within
    for part in re.findall(r'Parser key "([^"]+)": ?', text):
        key = key if f".{key}".endswith(f".{part}") else f"{key}.{part}".strip(".")  # one is said twice
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
        stands_for = elsewhere.get(word.partition(".")[0])
        text += f"; {stands_for}" if stands_for else did_you_mean(word, names)
    text = _in_words(text)
    text = f"{key}: {text}" if key else text
    return text if len(text) < 400 else f"{text[:200]} … {text[-180:]}"


_WORDS = {
    "int": "a whole number (int)",
    "float": "a number (float)",
    "bool": "true or false (bool)",
    "str": "text (str)",
    "dict": "keys and values, as {key: value}",
    "list": "a list, as [0, 1]",
    "collections.abc.Sequence": "a list, as [0, 1]",
    "pathlib.Path": "a path",
}


def _in_words(text: str) -> str:
    """The parser's names of types in words, and what was meant where it lists what there is."""
    text = re.sub(r"Expected an? <class '([\w.]+)'>", lambda found: f"expected {_WORDS.get(found[1], found[1])}", text)
    no_keys = re.search(r"Unable to load config '([^']*)'.*|Expected a dot import path string: (.*)", text)
    if no_keys:
        text = text.replace(no_keys[0], f"expected {_WORDS['dict']}, got {no_keys[1] or no_keys[2]}")
    choice = re.search(r"Expected a typing\.Literal\[([^\]]*)\]\. Got value: (\S+)", text)
    if choice:
        names = [name.strip(" '\"") for name in choice[1].split(",")]
        meant = did_you_mean(choice[2], names)
        text = text.replace(choice[0], f"must be one of {', '.join(names)}, got {choice[2]}{meant}")
    return re.sub(r"\. Got value: ", ", got ", text)


def as_input_error(problem: BaseException) -> InputError | None:
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
