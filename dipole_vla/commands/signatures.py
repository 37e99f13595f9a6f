"""Signatures read from the source, so that help and mistakes cost no import of torch: a command's module is imported
when its function runs.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Callable, Iterator
from copy import copy
from functools import cache, wraps
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

OURS = ("dipole_vla", "navsim_adapter")


def deferred(path: str) -> Callable[..., None]:
    """`module:function` with its signature and docstring; calling it imports the module."""
    module, name = path.split(":")

    @wraps(signature(module, name))
    def run(**arguments: Any) -> None:
        getattr(import_module(module), name)(**arguments)

    return run


def signature(module: str, name: str) -> Callable[..., Any]:
    """A function without its body: parameters, defaults, annotations and docstring; of a class, its `__init__`.

    Raises KeyError where the module's source has no such function or class.
    """
    home, node = _definition(module, name)
    function = _function(node)
    texts = {id(node): ast.get_docstring(node), id(function): ast.get_docstring(function)}
    bare, bare.args = copy(function), copy(function.args)
    bare.body = [ast.Expr(ast.Constant("\n\n".join(filter(None, texts.values()))))]
    bare.decorator_list = []
    bare.args.args = [argument for argument in function.args.args if argument.arg != "self"]
    names = _Names(home)
    _run(bare, home, names)
    return names[bare.name]


def parameters(module: str, name: str) -> list[str]:
    """Names of a function's or class's parameters; nothing that annotates them is imported."""
    arguments = _function(_definition(module, name)[1]).args
    return [argument.arg for argument in (*arguments.args, *arguments.kwonlyargs) if argument.arg != "self"]


def summary(module: str, name: str) -> str:
    """First line of a function's or class's docstring."""
    return (ast.get_docstring(_definition(module, name)[1]) or "").partition("\n")[0]


def _function(node: Any) -> ast.FunctionDef:
    inner = node.body if isinstance(node, ast.ClassDef) else [node]
    return next(each for each in inner if isinstance(each, ast.FunctionDef) and each.name in (node.name, "__init__"))


class _Names(dict[str, Any]):
    """What the names in a module's annotations stand for: an alias is worked out from its text, as is a constant; a
    class is imported, by itself, for a value must be of the very class that the function means."""

    def __init__(self, module: str):
        super().__init__()
        self.module = module

    def __missing__(self, name: str) -> Any:
        if hasattr(builtins, name):
            raise KeyError(name)
        home, node = _definition(self.module, name)
        if isinstance(node, ast.Assign | ast.AnnAssign):
            there = self if home == self.module else _Names(home)
            _run(node, home, there)
            return there[name]
        return getattr(import_module(home), name) if isinstance(node, ast.ClassDef | ast.FunctionDef) else node


def _definition(module: str, name: str) -> tuple[str, Any]:
    """Where a name of a module is defined, and how: followed through imports within our packages.

    From another package it is the object itself.
    """
    for node in _statements(_tree(module).body):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                if name == (alias.asname or alias.name):
                    if node.module.partition(".")[0] in OURS:
                        return _definition(node.module, alias.name)
                    return node.module, getattr(import_module(node.module), alias.name)
        if isinstance(node, ast.Import) and name in [alias.asname or alias.name for alias in node.names]:
            return name, import_module(name)
        if name in _defined(node):
            return module, node
    raise KeyError(f"{module}: defines no {name}")


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements of a module, those under `if TYPE_CHECKING` too."""
    for node in body:
        yield from _statements(node.body) if isinstance(node, ast.If) else [node]


def _defined(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _run(node: ast.stmt, module: str, names: dict[str, Any]) -> None:
    whole = ast.fix_missing_locations(ast.Module([node], []))
    # Under this module's name: the parser imports the one that a function says it is of.
    exec(compile(whole, source(module), "exec", dont_inherit=True), {"__name__": __name__}, names)


@cache
def _tree(module: str) -> ast.Module:
    return ast.parse(Path(source(module)).read_text())


def source(module: str) -> str:
    """The file of a module, found without importing the packages that it lies in (but for the outermost)."""
    package, *rest = module.split(".")
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise KeyError(f"{module}: is not installed")
    path = Path(spec.origin).parent.joinpath(*rest)
    found = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if not found.is_file():
        raise KeyError(f"{module}: has no source here")
    return str(found)
