"""The only door for pickles: an unpickler that knows a short list of names and can run nothing else.

It takes plain data (numbers, strings, containers, numpy arrays) as NAVSIM's logs hold them, and turns any class of
nuPlan or NAVSIM into an inert `Record` that only carries attributes. Everything else is refused with an InputError.
The interpreter is the standard library's own in Python (not the C one), because only there can the operations that
build objects be checked one by one; every allocation is bounded by the size of the file.
"""

from __future__ import annotations

import io
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.foreign import what_it_is

STAND_IN_PACKAGES = ("nuplan.", "navsim.")
_PLAIN_DTYPE = re.compile(r"^[<>|=]?[?biufcSUO]\d*$")
_SCALARS = (str, int, float, complex, bytes, type(None), np.generic, PurePosixPath)


class Record:
    """Stand-in for an object of a class we do not have: `kind` (module.Class), constructor `args`, attributes."""

    def __init__(self, kind: str, args: tuple[Any, ...] = ()):
        self.kind = kind
        self.args = args

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    def __repr__(self) -> str:
        return f"Record({self.kind!r}, {self.args!r})"


Names = Mapping[tuple[str, str], Any]  # (module, name) -> what stands for it: a function, or a `StandIn`


def read_pickle(path: str | Path, names: Names | None = None) -> Any:
    """The object in a pickle file; raises InputError if it is unreadable, damaged or asks for a name not allowed.

    names: allowed besides the plain ones.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as problem:
        raise InputError(f"{path}: cannot be read ({problem.strerror}); check the path") from problem
    return loads(content, str(path), names)


def loads(content: bytes, where: str, names: Names | None = None) -> Any:
    """As `read_pickle`, from bytes; `names` adds allowed (module, name) pairs with what stands for them."""
    try:
        return _Unpickler(content, names or {}).load()
    except Exception as problem:  # whatever a damaged stream makes the interpreter do, it is the file's fault
        other = what_it_is(content)
        if isinstance(problem, _Refused) and not other:
            raise InputError(f"{where}: {problem}; only plain data and numpy arrays are read from pickles") from problem
        reason = other or " ".join(str(problem).split())[:120] or type(problem).__name__
        raise InputError(f"{where}: not a readable pickle ({reason}); replace the file") from problem


class _Refused(Exception):
    """The stream asks for something that is not plain data."""


class StandIn:
    """What stands for a class of nuPlan or NAVSIM: calling it makes a `Record`."""

    def __init__(self, kind: str):
        self.kind = kind


class _DType:
    """A numpy dtype being unpickled: kept as text, since real dtype objects can be given dangerous state."""

    def __init__(self, spec: Any, *_align_copy: Any):
        text = spec.decode("ascii") if isinstance(spec, bytes) else spec
        if not isinstance(text, str) or not _PLAIN_DTYPE.match(text):
            raise _Refused(f"array type {spec!r} is not a plain number, string or object type")
        self.value = np.dtype(text)

    def restore(self, state: Any) -> None:
        """State as numpy writes it: (version, byte order, sub-array, names, fields, ...)."""
        if not isinstance(state, tuple) or len(state) < 5 or any(part is not None for part in state[2:5]):
            raise _Refused("a structured array type is not allowed")
        if state[1] in ("<", ">"):
            self.value = self.value.newbyteorder(state[1])


def _reconstruct(_subtype: Any, _shape: Any, _typecode: Any) -> np.ndarray:
    return np.empty(0)  # filled by its state, see _restore_array


def _restore_array(array: np.ndarray, state: Any) -> None:
    """State as numpy writes it: (version, shape, dtype, is_fortran, content)."""
    if not isinstance(state, tuple) or len(state) != 5 or not isinstance(state[2], _DType):
        raise _Refused("an array with unknown state")
    _, shape, kind, is_fortran, content = state
    if isinstance(content, str):
        content = content.encode("latin1")
    count = _count(shape)
    holds = len(content) if isinstance(content, list) else len(content) / max(kind.value.itemsize, 1)
    if holds != count or isinstance(content, list) != kind.value.hasobject:
        raise _Refused(f"an array of {count} elements with content for {holds:g}")
    array.__setstate__((1, shape, kind.value, bool(is_fortran), content))  # type: ignore[arg-type]


def _from_buffer(content: Any, kind: Any, shape: Any, order: Any = "C") -> np.ndarray:
    if not isinstance(kind, _DType) or kind.value.hasobject or not isinstance(content, bytes | bytearray):
        raise _Refused("an array buffer of unknown kind")
    if _count(shape) * kind.value.itemsize != len(content):
        raise _Refused("an array buffer whose size does not match its shape")
    return np.frombuffer(bytes(content), kind.value).reshape(shape, order="F" if order == "F" else "C")


def _scalar(kind: Any, content: Any = b"") -> Any:
    if isinstance(content, str):
        content = content.encode("latin1")
    if not isinstance(kind, _DType) or kind.value.hasobject or not isinstance(content, bytes):
        raise _Refused("a numpy scalar of unknown kind")
    return np.frombuffer(content, kind.value, count=1)[0]


def _count(shape: Any) -> int:
    if not isinstance(shape, tuple) or len(shape) > 8 or not all(type(n) is int and 0 <= n < 2**40 for n in shape):
        raise _Refused(f"an array of impossible shape {str(shape)[:60]}")
    count = 1
    for size in shape:
        count *= size
    return count


def _latin1(text: Any, _encoding: Any = "latin1") -> bytes:
    return str.encode(text, "latin1")


def _empty_bytes() -> bytes:
    return b""  # how old protocols write b"", of numpy arrays without elements among others


def _path(*parts: str) -> PurePosixPath:
    return PurePosixPath(*parts)


def _container(kind: Callable[[Any], Any], is_hashed: bool) -> Callable[..., Any]:
    def make(items: Any = ()) -> Any:
        if not isinstance(items, list | tuple | dict | set | frozenset):
            raise _Refused("a container made of something that is no container")
        if is_hashed:
            for item in items:
                _check_key(item)
        return kind(items)

    return make


def _ordered(pairs: Any = ()) -> OrderedDict[Any, Any]:
    made: OrderedDict[Any, Any] = OrderedDict()
    for key, value in pairs:
        _check_key(key)
        made[key] = value
    return made


def _check_key(key: Any) -> None:
    """Keys are scalars or flat tuples: hashing a deeply nested tuple would overflow the C stack."""
    if not isinstance(key, (*_SCALARS, Record)) and not (
        isinstance(key, tuple) and all(isinstance(part, (*_SCALARS, Record)) for part in key)
    ):
        raise _Refused(f"a key of type {type(key).__name__}")


_NDARRAY = StandIn("numpy.ndarray")
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _DType,
    ("_codecs", "encode"): _latin1,
    ("collections", "OrderedDict"): _ordered,
}
for _module in ("pathlib", "pathlib._local", "pathlib._abc"):  # as Pythons up to 3.12, 3.13 and its betas say
    for _name in ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath"):
        _ALLOWED[_module, _name] = _path
for _module in ("numpy.core", "numpy._core"):
    _ALLOWED[_module + ".multiarray", "_reconstruct"] = _reconstruct
    _ALLOWED[_module + ".multiarray", "scalar"] = _scalar
    _ALLOWED[_module + ".numeric", "_frombuffer"] = _from_buffer
for _module in ("builtins", "__builtin__"):
    _ALLOWED[_module, "bytes"] = _empty_bytes
    _ALLOWED[_module, "list"] = _container(list, False)
    _ALLOWED[_module, "tuple"] = _container(tuple, False)
    _ALLOWED[_module, "set"] = _container(set, True)
    _ALLOWED[_module, "frozenset"] = _container(frozenset, True)


class _Unpickler(pickle._Unpickler):
    stack: list[Any]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]
    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)

    def __init__(self, content: bytes, names: Mapping[tuple[str, str], Callable[..., Any]]):
        super().__init__(io.BytesIO(content))
        self._budget = 2**26 + 64 * len(content)  # bytes that calls may copy; plain data is bounded by the file
        self._names = {**_ALLOWED, **names}
        self._callables = {id(value) for value in self._names.values()}

    def find_class(self, module: str, name: str) -> Any:
        found = self._names.get((module, name))
        if found is not None:
            return found
        if isinstance(module, str) and isinstance(name, str) and (module + ".").startswith(STAND_IN_PACKAGES):
            return StandIn(f"{module}.{name}")
        raise _Refused(f"asks for {str(module)[:60]}.{str(name)[:60]}")

    def get_extension(self, code: int) -> None:
        raise _Refused(f"asks for extension {code}")

    def persistent_load(self, _pid: Any) -> None:
        raise _Refused("asks for an object outside the file")

    def _make(self, kind: Any, args: Any) -> Any:
        if not isinstance(args, tuple):
            raise _Refused("a call without arguments")
        if isinstance(kind, StandIn) and kind is not _NDARRAY:
            return Record(kind.kind, args)
        if id(kind) not in self._callables or kind is _NDARRAY:
            raise _Refused(f"a call of {type(kind).__name__}")
        self._charge(args)
        return kind(*args)

    def _charge(self, values: Any) -> None:
        """Count what a call copies, so that a small file cannot copy one large value again and again."""
        for value in values if isinstance(values, tuple) else ():
            if isinstance(value, str | bytes):
                self._budget -= len(value)
            elif isinstance(value, list | tuple | dict | set | frozenset):
                self._budget -= 64 * len(value)
        if self._budget < 0:
            raise _Refused("copies more data than the file holds")

    def _instantiate(self, klass: Any, args: Any) -> None:  # opcodes INST and OBJ
        self.append(self._make(klass, tuple(args)))

    def load_reduce(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = self._make(self.stack[-1], args)

    def load_newobj(self) -> None:
        args = self.stack.pop()
        self.append(self._make(self.stack.pop(), args))

    def load_newobj_ex(self) -> None:
        if self.stack.pop():
            raise _Refused("an object made with keywords")
        self.load_newobj()

    def load_build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        self._charge(state)
        if isinstance(target, np.ndarray) and target.shape == (0,):
            _restore_array(target, state)
        elif isinstance(target, _DType):
            target.restore(state)
        elif isinstance(target, Record):
            for part in state if isinstance(state, tuple) else (state,):
                _restore_record(target, part)
        else:
            raise _Refused(f"state for an object of type {type(target).__name__}")

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _fill(self.stack[-1], [key, value])

    def load_setitems(self) -> None:
        items = self.pop_mark()
        _fill(self.stack[-1], items)

    def load_dict(self) -> None:
        items = self.pop_mark()
        made: dict[Any, Any] = {}
        _fill(made, items)
        self.append(made)

    def load_appends(self) -> None:
        items = self.pop_mark()
        _extend(self.stack[-1], items)

    def load_append(self) -> None:
        value = self.stack.pop()
        _extend(self.stack[-1], [value])

    def load_additems(self) -> None:
        items = self.pop_mark()
        for item in items:
            _check_key(item)
        if type(self.stack[-1]) is not set:
            raise _Refused("items added to something that is no set")
        self.stack[-1].update(items)

    def load_frozenset(self) -> None:
        items = self.pop_mark()
        for item in items:
            _check_key(item)
        self.append(frozenset(items))

    def load_dup(self) -> None:
        raise _Refused("an operation that no writer of ours uses")  # DUP: cheap to refuse, handy for bombs


def _restore_record(record: Record, state: Any) -> None:
    if state is None:
        return
    if not isinstance(state, dict) or not all(type(name) is str for name in state):
        raise _Refused(f"state of {record.kind} that is no dict of attributes")
    record.__dict__.update({name: value for name, value in state.items() if not name.startswith("__")})


def _fill(target: Any, items: list[Any]) -> None:
    if type(target) not in (dict, OrderedDict) or len(items) % 2:
        raise _Refused("entries added to something that is no dict")
    for key, value in zip(items[::2], items[1::2]):
        _check_key(key)
        target[key] = value


def _extend(target: Any, items: list[Any]) -> None:
    if type(target) is not list:
        raise _Refused("elements added to something that is no list")
    target.extend(items)


for _opcode, _method in (
    (pickle.REDUCE, _Unpickler.load_reduce),
    (pickle.NEWOBJ, _Unpickler.load_newobj),
    (pickle.NEWOBJ_EX, _Unpickler.load_newobj_ex),
    (pickle.BUILD, _Unpickler.load_build),
    (pickle.SETITEM, _Unpickler.load_setitem),
    (pickle.SETITEMS, _Unpickler.load_setitems),
    (pickle.DICT, _Unpickler.load_dict),
    (pickle.APPENDS, _Unpickler.load_appends),
    (pickle.APPEND, _Unpickler.load_append),
    (pickle.ADDITEMS, _Unpickler.load_additems),
    (pickle.FROZENSET, _Unpickler.load_frozenset),
    (pickle.DUP, _Unpickler.load_dup),
):
    _Unpickler.dispatch[_opcode[0]] = _method
