"""Official submission files: write them without the devkit, read them back, say what is wrong with them (metric 2.4).

A submission is a pickle of devkit objects. They are written here as instances of two classes of our own, while the
stream names the official ones; arrays name numpy's old module paths, which every numpy from 1.x on understands.
Reading goes through the allow-list reader. v1 has one set of predictions, the two-stage v2 two.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import BuiltinFunctionType, FunctionType
from typing import Any

import numpy as np

from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.files import write_once
from navsim_adapter.foundation.words import counted
from navsim_adapter.nuplan.unpickle import Names, Record, StandIn, read_pickle

ONE_STAGE = ("predictions",)
TWO_STAGES = ("first_stage_predictions", "second_stage_predictions")
PROTOCOL = 4  # what pickle.dump of python 3.8 to 3.13, the devkit's included, writes and reads
_COUNTRY = "country / region"
_HORIZON_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Team:
    """Who submits; every field must be filled."""

    team_name: str
    authors: Sequence[str]
    email: str
    institution: str
    country: str


@dataclass(frozen=True)
class Plan:
    """One trajectory: (T, 3) x, y, heading in the ego frame, the first pose `interval` seconds ahead."""

    poses: np.ndarray
    interval: float = 0.5


Plans = Mapping[str, Plan]  # by token
Tokens = Collection[str] | None  # that a stage must have, all of them and no others; None is not checked


def write_submission(
    path: str | Path,
    team: Team,
    first: Plans,
    second: Plans | None = None,
    expected: tuple[Tokens, Tokens] = (None, None),
) -> None:
    """Write a v1 submission, or with `second` (plans of the second-stage scenes) a two-stage v2 one.

    team: who submits; every field must be filled.
    first, second: token -> `Plan`, its poses (T, 3) x, y (m), heading (rad) in the ego frame.
    expected: the tokens that each stage must have; None does not check.
    Raises InputError for the first thing that is wrong with it, and for another file in its place; then nothing is
    written.
    """
    samplings: dict[tuple[int, float], _TrajectorySampling] = {}
    content = {name: _listed(value) for name, value in _team_fields(team).items()}
    stages = zip(TWO_STAGES, (first, second)) if second is not None else zip(ONE_STAGE, (first,))
    for name, plans in stages:
        content[name] = [{token: _official(plan, samplings) for token, plan in (plans or {}).items()}]
    wrong = problems(_readable(content), *expected)
    if wrong:
        raise InputError(f"{path}: {wrong[0]}" + (f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""))
    stream = io.BytesIO()
    _Pickler(stream, PROTOCOL).dump(content)
    write_once(path, stream.getvalue())


def read_submission(path: str | Path) -> dict[str, Any]:
    """Content of a submission file: team fields, and per stage a list of {token: Plan}.

    What is not as it should be is left in place for `problems` to name; raises InputError if it is no dict.
    """
    content = read_pickle(path, _HYDRA)
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}, a submission is a dict; write it again")
    return _readable(content)


def check_submission(path: str | Path, first: Tokens = None, second: Tokens = None) -> list[str]:
    """Everything wrong with a submission file, one line each; empty if the official scorer will take it.

    first, second: what each stage must have.
    """
    return problems(read_submission(path), first, second)


def problems(content: Mapping[str, Any], first: Tokens = None, second: Tokens = None) -> list[str]:
    """As `check_submission`, for content as `read_submission` returns it."""
    stages = TWO_STAGES if any(name in content for name in TWO_STAGES) else ONE_STAGE
    found = [line for name in _team_names() for line in _team_problem(name, content.get(name))]
    known = {*_team_names(), *stages}
    found += [f"{name}: unknown field; remove it" for name in content if name not in known]
    if second is not None and stages is ONE_STAGE:
        found.append("second_stage_predictions: missing; this split needs a two-stage submission")
    for name, wanted in zip(stages, (first, second)):
        found += _stage_problems(name, content.get(name), wanted)
    return found


# -- checks ------------------------------------------------------------------------------------------------------------


def _team_names() -> list[str]:
    return [_COUNTRY if item.name == "country" else item.name for item in fields(Team)]


def _team_fields(team: Team) -> dict[str, Any]:
    return dict(zip(_team_names(), (getattr(team, item.name) for item in fields(Team))))


def _team_problem(name: str, value: Any) -> list[str]:
    listed = list(value) if isinstance(value, list | tuple) else [value]
    if not listed or not all(isinstance(part, str) and part.strip() and part.strip() != "???" for part in listed):
        return [f"{name}: missing or empty; fill it in"]
    if name == "email" and "@" not in listed[0]:
        return [f"email: {listed[0]!r} is no address; the organisers answer to it"]
    return []


def _stage_problems(stage: str, value: Any, wanted: Tokens) -> list[str]:
    """One stage of one seed, or, in a submission of one stage, of several that the devkit has merged."""
    if not isinstance(value, list) or not value or not all(isinstance(seed, dict) for seed in value):
        count = f"{len(value)} elements" if isinstance(value, list) else "no list"
        return [
            f"{stage}: must be a list of dicts token -> trajectory, one for each seed, found {count}; write it again"
        ]
    if len(value) == 1:
        return _seed_problems(stage, value[0], wanted)
    if stage not in ONE_STAGE:
        return [f"{stage}: has {len(value)} seeds, the official two-stage scorer takes one; give each seed a file"]
    found = []
    for number, seed in enumerate(value, 1):
        where = f"{stage}: seed {number} of {len(value)}"
        if set(seed) != set(value[0]):
            found.append(f"{where}: has other scenes than the first seed; the devkit merges seeds of the same scenes")
        found += _seed_problems(where, seed, wanted)
    return found


def _seed_problems(stage: str, plans: Mapping[Any, Any], wanted: Tokens) -> list[str]:
    found = [f"{stage}: has no trajectory; nothing would be scored"] if not plans else []
    if wanted is not None:
        found += _token_problems(stage, plans, set(wanted))
    for token, plan in plans.items():
        wrong = _plan_problem(token, plan)
        if wrong:
            found.append(f"{stage}: scene {token}: {wrong}")
    return found


def _token_problems(stage: str, plans: Mapping[Any, Any], wanted: set[str]) -> list[str]:
    missing, more = sorted(wanted - set(plans)), sorted(map(str, set(plans) - wanted))
    found = []
    if missing:
        found.append(f"{stage}: {len(missing)} of {len(wanted)} scenes have no trajectory ({missing[0]} …); add them")
    if more:
        found.append(f"{stage}: {counted(len(more), 'scene')} beyond the split ({more[0]} …); remove")
    return found


def _plan_problem(token: Any, plan: Any) -> str | None:
    if not isinstance(token, str) or not token:
        return "its token is not text; use the frame token"
    if not isinstance(plan, Plan):
        return plan if isinstance(plan, str) else f"a {type(plan).__name__} instead of a trajectory; write it again"
    poses = plan.poses
    if not isinstance(poses, np.ndarray) or poses.dtype.kind != "f" or poses.ndim != 2 or poses.shape[1:] != (3,):
        shape = f"{poses.dtype} {poses.shape}" if isinstance(poses, np.ndarray) else type(poses).__name__
        return f"poses are {shape}, expected floats (T, 3): x, y, heading; write it again"
    if not len(poses):
        return "has no poses; plan at least one"
    if not np.isfinite(poses).all():
        return f"poses contain NaN or infinity at step {int(np.argmin(np.isfinite(poses).all(axis=1)))}; plan it again"
    if not 0 < plan.interval < np.inf:
        return f"interval is {plan.interval} s; it must be positive"
    return None


# -- between devkit objects and ours -----------------------------------------------------------------------------------


class _TrajectorySampling:
    """Carries what the devkit's nuPlan sampling carries."""

    def __init__(self, size: int, interval: float):
        self.num_poses = size
        self.time_horizon = size * interval
        self.interval_length = interval


class _Trajectory:
    """Carries what the devkit's trajectory carries."""

    def __init__(self, poses: np.ndarray, sampling: _TrajectorySampling):
        self.poses = poses
        self.trajectory_sampling = sampling


_OFFICIAL_NAMES = {
    _Trajectory: ("navsim.common.dataclasses", "Trajectory"),
    _TrajectorySampling: ("nuplan.planning.simulation.trajectory.trajectory_sampling", "TrajectorySampling"),
}
_TRAJECTORY_KIND = "navsim.common.dataclasses.Trajectory"


_PicklerInPython: Any = vars(pickle)["_Pickler"]


class _Pickler(_PicklerInPython):
    """The library's pickler in Python, because only there can the name of a class be chosen."""

    def reducer_override(self, obj: Any) -> Any:
        """By name, before anything else is asked: dill puts its own way into the library's table of types."""
        return obj.__qualname__ if isinstance(obj, (type, FunctionType, BuiltinFunctionType)) else NotImplemented

    def save_global(self, obj: Any, name: str | None = None) -> None:
        module = getattr(obj, "__module__", None) or ""
        if obj in _OFFICIAL_NAMES:
            self._save_name(obj, *_OFFICIAL_NAMES[obj])
        elif module.startswith("numpy._core"):  # numpy 2's name, unknown to numpy 1
            self._save_name(obj, module.replace("numpy._core", "numpy.core", 1), name or obj.__qualname__)
        else:
            super().save_global(obj, name)

    def _save_name(self, obj: Any, module: str, name: str) -> None:
        self.save(module)
        self.save(name)
        self.write(pickle.STACK_GLOBAL)
        self.memoize(obj)


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


# Hydra's own types of values and lists: the devkit pickles a list of authors as its configuration holds it, and with it
# the whole configuration, which is its parent.
_LIST_KIND = "omegaconf.listconfig.ListConfig"
_HYDRA_NAMES = {
    "omegaconf.listconfig": "ListConfig",
    "omegaconf.dictconfig": "DictConfig",
    "omegaconf.base": "Metadata ContainerMetadata UnionNode",
    "omegaconf.nodes": "AnyNode StringNode IntegerNode FloatNode BooleanNode BytesNode PathNode EnumNode",
    "typing": "Any List Dict Tuple Union Optional",
    "builtins": "str int float bool dict",
}
_HYDRA: Names = {
    **{(module, name): StandIn(f"{module}.{name}") for module, names in _HYDRA_NAMES.items() for name in names.split()},
    ("collections", "defaultdict"): lambda *_: {},
}


def _from_hydra(value: Any) -> Any:
    """Hydra's list as a list of its values; anything else as it is."""
    if isinstance(value, Record) and value.kind == _LIST_KIND and isinstance(getattr(value, "_content", None), list):
        return [getattr(node, "_val", node) for node in value._content]
    return value


def _official(plan: Plan, samplings: dict[tuple[int, float], _TrajectorySampling]) -> _Trajectory:
    poses = np.ascontiguousarray(plan.poses)
    key = (len(poses) if poses.ndim else 0, float(plan.interval))
    return _Trajectory(poses, samplings.setdefault(key, _TrajectorySampling(*key)))


def _readable(content: Mapping[str, Any]) -> dict[str, Any]:
    """Trajectories as `Plan`s, wherever a stage has the expected form."""
    result = {name: _from_hydra(value) for name, value in content.items()}
    for name in (*ONE_STAGE, *TWO_STAGES):
        if isinstance(result.get(name), list):
            result[name] = [
                {token: _plan(value) for token, value in stage.items()} if isinstance(stage, dict) else stage
                for stage in result[name]
            ]
    return result


def _plan(value: Any) -> Any:
    """A `Plan`, or a line that says why there is none."""
    is_trajectory = isinstance(value, _Trajectory) or (isinstance(value, Record) and value.kind == _TRAJECTORY_KIND)
    if not is_trajectory:
        kind = value.kind if isinstance(value, Record) else type(value).__name__
        return f"a {kind} instead of a {_TRAJECTORY_KIND}; write it again"
    sampling, poses = getattr(value, "trajectory_sampling", None), getattr(value, "poses", None)
    numbers = [getattr(sampling, name, None) for name in ("num_poses", "time_horizon", "interval_length")]
    if not all(isinstance(number, int | float | np.number) for number in numbers):
        return "its sampling lacks num_poses, time_horizon or interval_length; write it again"
    size, horizon, interval = (float(number) for number in numbers if number is not None)
    if isinstance(poses, np.ndarray) and poses.ndim == 2 and len(poses) != size:
        return f"has {len(poses)} poses but a sampling of {size:g}; make them agree"
    if abs(size * interval - horizon) > _HORIZON_TOLERANCE:
        return f"sampling of {size:g} poses every {interval:g} s does not last {horizon:g} s; make them agree"
    return Plan(poses, interval)  # type: ignore[arg-type]
