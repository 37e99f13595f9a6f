"""The command `navsim-adapter submission`: trajectory tables to an official submission file, or a check of one."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import yaml

from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.foreign import plain_yaml, read_text
from navsim_adapter.foundation.option_checks import spare_inputs
from navsim_adapter.foundation.words import counted
from navsim_adapter.nuplan.scenes import check_texts
from navsim_adapter.sampling import SIMULATED, Sampling, resampled
from navsim_adapter.submission import Plan, Team, Tokens, check_submission, write_submission
from navsim_adapter.trajectories import read_trajectories

_RENDERED_KEYS = ("synthetic_scene_tokens", "reactive_synthetic_initial_tokens")
_SYNTHETIC_TOKEN = 17  # characters of a second-stage token; others have 16 (metric 1.2)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE.pkl", help="the submission to write, or with --check to look at")
    parser.add_argument("--check", action="store_true", help="say what is wrong with FILE instead of writing it")
    parser.add_argument("--trajectories", metavar="T.npz", help="arrays token, name, poses (M, T, 3)")
    parser.add_argument("--second-stage-trajectories", metavar="T2.npz", help="the same for second-stage scenes")
    parser.add_argument("--name", help="whose trajectories, where the tables hold several planners")
    parser.add_argument(
        "--expect",
        metavar="SPLIT",
        help="what must be complete: a cache folder, mapping.json, the devkit's split or scene filter YAML, or tokens, "
        "one per line",
    )
    parser.add_argument("--team-name", default="")
    parser.add_argument("--authors", nargs="+", default=[])
    parser.add_argument("--email", default="")
    parser.add_argument("--institution", default="")
    parser.add_argument("--country", default="", help="country or region")


def run(options: argparse.Namespace) -> None:
    """Write what has no problem, or say what is wrong with a file, a line each."""
    expected = expected_tokens(options.expect) if options.expect else (None, None)
    path = Path(options.file)
    if options.check:
        _check(path, expected)
    else:
        _write(path, options, expected)
    print(f"{path}: complete and readable" + ("" if options.expect else "; give --expect to check that no scene lacks"))


def expected_tokens(place: str | Path) -> tuple[set[str], set[str] | None]:
    """Tokens that each stage must have; the second is None for a split of one stage."""
    place = Path(place)
    if place.is_dir():
        from navsim_adapter.cache.store import open_cache

        tokens = list(open_cache(place))
        return _by_stage(tokens)
    try:
        text = read_text(place)
    except (OSError, UnicodeDecodeError) as problem:
        raise InputError(f"{place}: cannot be read ({problem}); check --expect") from problem
    if place.suffix not in (".json", ".yaml", ".yml"):
        return _by_stage(text.split())
    try:
        content = json.loads(text) if place.suffix == ".json" else plain_yaml(text)
    except (ValueError, yaml.YAMLError) as problem:
        raise InputError(
            f"{place}: cannot be parsed ({' '.join(str(problem).split())[:120]}); check --expect"
        ) from problem
    return _from_split(place, content)


def _by_stage(tokens: list[str]) -> tuple[set[str], set[str] | None]:
    second = {token for token in tokens if len(token) == _SYNTHETIC_TOKEN}
    return set(tokens) - second, second or None


def _from_split(place: Path, content: Any) -> tuple[set[str], set[str] | None]:
    if isinstance(content, dict):
        mapping = content.get("reactive_all_mapping")
        if mapping is None:
            if not isinstance(content.get("tokens"), list):
                raise InputError(f"{place}: names no tokens; give the scene filter that lists them, or a cache folder")
            return _listed(place, content, "tokens"), _rendered(place, content) or None
    else:
        mapping = content
    try:
        first = [token for now, previous, _ in mapping for token in (now, previous)]
        second = [token for _, _, pairs in mapping for pair in pairs for token in pair]
    except (TypeError, ValueError) as problem:
        raise InputError(f"{place}: not a list of [now, previous, pairs]; give the split's mapping") from problem
    check_texts(place, "mapping", [*first, *second])
    return set(first), set(second)


def _rendered(place: Path, content: dict[str, Any]) -> set[str]:
    """Rendered scenes of a filter: those that the official loader keeps, whichever of its two lists names them."""
    lists = [_listed(place, content, key) for key in _RENDERED_KEYS if content.get(key) is not None]
    return set.intersection(*lists) if lists else set()


def _listed(place: Path, content: dict[str, Any], key: str) -> set[str]:
    if not isinstance(content[key], list):
        raise InputError(f"{place}: {key}: must be a list of text, found {str(content[key])[:60]!r}")
    check_texts(place, key, content[key])
    return set(content[key])


def _check(path: Path, expected: tuple[Tokens, Tokens]) -> None:
    found = check_submission(path, *expected)
    if found:
        for line in found[1:]:
            print(f"{path}: {line}")
        raise InputError(f"{path}: {found[0]}")


def _write(path: Path, options: argparse.Namespace, expected: tuple[Tokens, Tokens]) -> None:
    if not options.trajectories:
        raise InputError(f"{path}: --trajectories is missing; name the table to submit, or --check to look at a file")
    spare_inputs([path], [options.trajectories, options.second_stage_trajectories, options.expect])
    team = Team(options.team_name, options.authors, options.email, options.institution, options.country)
    second = options.second_stage_trajectories
    plans = [
        _expected(table, _plans(table, options.name), wanted) if table else None
        for table, wanted in zip((options.trajectories, second), expected)
    ]
    write_submission(path, team, plans[0] or {}, plans[1], expected)


def _expected(table: str, plans: dict[str, Plan], wanted: Tokens) -> dict[str, Plan]:
    """Plans of the scenes that are asked for; a table may hold more, as one of a whole split does."""
    if wanted is None:
        return plans
    kept = {token: plan for token, plan in plans.items() if token in wanted}
    if len(kept) < len(plans):
        print(
            f"left out: {len(plans) - len(kept)} of {counted(len(plans), 'scene')} of {table}, not of --expect",
            file=sys.stderr,
        )
    return kept


def _simulated(where: str, plan: Plan) -> Plan:
    """The plan if it ends when the simulation does, else what of it is simulated, at the times that the metric reads.

    Raises InputError for one that ends before: the official scorer would hold its last pose.
    """
    own = Sampling(len(plan.poses), plan.interval)
    if own.within(SIMULATED.reach) == own and own.lasts(SIMULATED.reach):
        return plan
    try:
        return Plan(resampled(plan.poses, plan.interval, SIMULATED), SIMULATED.interval)
    except InputError as problem:
        raise InputError(f"{where}: {problem}; plan {SIMULATED.reach:g} s") from None


def _plans(table: str, name: str | None) -> dict[str, Plan]:
    rows = read_trajectories(table)
    names = sorted(set(rows.names))
    if name is None and len(names) > 1:
        raise InputError(
            f"{table}: holds {counted(len(names), 'planner')} ({', '.join(names[:5])}); choose one with --name"
        )
    chosen = {
        token: _simulated(f"{table}: scene {token}", Plan(poses, float(interval)))
        for token, row_name, poses, interval in zip(rows.tokens, rows.names, rows.poses, rows.interval)
        if name in (None, row_name)
    }
    if not chosen:
        raise InputError(f"{table}: has no trajectory named {name!r}; it has {', '.join(names[:5])}")
    return chosen
