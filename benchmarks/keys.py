"""Each key by which G is formed or guidance is shaped, against the plain recipe, on a finished demo.

    dipole-vla demo --out runs/demo
    python benchmarks/keys.py --demo runs/demo --dry_run     # the command lines
    python benchmarks/keys.py --demo runs/demo               # resumable: what is finished is skipped

A variant of training is the demo's pair with a key changed, on three seeds; one of guidance drives the plain pair. All
drive the same scenes from the same start noise. Differences are paired by scene, averaged over seeds; their intervals
respect logs. Single plans (N = 1): the critic is the same for all and is left out. Results lie in DEMO/keys.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd

from dipole_vla.cli import main as dipole_vla
from dipole_vla.demo import shipped_recipes
from navsim_adapter.foundation.files import write_json
from navsim_adapter.foundation.statistics import TOO_FEW, LogIntervals, verdict


@dataclass(frozen=True)
class Variant:
    """train: keys of `fit`. guidance: of `evaluate`, on the pair of `trained`. against: what it is compared with."""

    train: Mapping[str, Any] = field(default_factory=dict)
    guidance: Mapping[str, float] | None = None
    against: str = "plain"


def _g(**keys: Any) -> Variant:
    return Variant({f"data.advantage.{name}": value for name, value in keys.items()})


OTHER_REWARD = {
    "weights": {"ego_progress": 10, "time_to_collision_within_bound": 5, "comfort": 2},
    "gates": ["no_at_fault_collisions", "drivable_area_compliance"],
}
VARIANTS: dict[str, Variant] = {
    "plain": Variant(),  # the demo's recipe: normalise mean, beta 16
    "normalise std, beta 4": Variant({"data.advantage.normalise": "std", "model.beta": 4}),
    "normalise std, beta 1": Variant({"data.advantage.normalise": "std", "model.beta": 1}),
    "normalise none, shift -10": Variant({"data.advantage.normalise": "none", "model.shift": -10}),
    "shift +1": Variant({"model.shift": 1}),
    "shift -1": Variant({"model.shift": -1}),
    "reference_below 0.9": _g(reference_below=0.9),
    "reference_below 0.6": _g(reference_below=0.6),
    "human_weight 4": _g(human_weight=4),
    "human_sign 1": _g(human_sign=1),
    "human_sign 1, weight 4": _g(human_sign=1, human_weight=4),
    "reward: progress counts 10": _g(reward=OTHER_REWARD),
    "indicator": Variant({"model.rule": "indicator", "model.routing": "both"}),
    "indicator, quantile 0.7": Variant(
        {"model.rule": "indicator", "model.routing": "both", "data.advantage.quantile": 0.7}, against="indicator"
    ),
    "distance 1": Variant(guidance={"distance": 1}),
    "power 0.5": Variant(guidance={"power": 0.5}),
    "power -0.5": Variant(guidance={"power": -0.5}),
    "early 0.5": Variant(guidance={"early": 0.5}),
    "decay 1": Variant(guidance={"decay": 1}),
    "low 0.5": Variant(guidance={"low": 0.5}),
}


def folder_of(demo: Path, name: str, seed: int) -> Path:
    return demo / "keys" / "".join(c if c.isalnum() or c in ".-+" else "_" for c in name) / f"seed-{seed}"


def reference_of(demo: Path) -> Path:
    """The policy a demo started from: its own, of --from-scratch, or the shipped one."""
    own = demo / "imitation"
    return own if own.is_dir() else shipped_recipes() / "reference"


def trained(demo: Path, name: str, seed: int) -> Path:
    """The policy that a variant drives: its own, or the plain one."""
    return folder_of(demo, "plain" if VARIANTS[name].guidance is not None else name, seed) / "policy"


def fit_line(demo: Path, name: str, seed: int, more: Sequence[str]) -> list[str]:
    """The demo's own recipe with the variant's keys; the frozen encoder is asked once for all runs."""
    line: list[Any] = ["fit", "--config", shipped_recipes() / "dipole.yaml", "--out", trained(demo, name, seed)]
    given = {
        "model.backbone": reference_of(demo), "model.critic": demo / "critic", "model.seed": seed, "data.seed": seed,
        "data.scenes": demo / "scenes" / "train", "data.candidates": demo / "candidates",
        "data.contexts": demo / "contexts",
    }  # fmt: skip
    for key, value in {**given, **VARIANTS[name].train}.items():
        line += [f"--{key}", json.dumps(value) if isinstance(value, dict) else value]
    return [str(word) for word in [*line, *more]]


def drive_line(demo: Path, name: str, seed: int, split: str, omegas: Sequence[float], plans: int) -> list[str]:
    line: list[Any] = [
        "evaluate", "--config", shipped_recipes() / "evaluate.yaml", "--policy", trained(demo, name, seed),
        "--choose_on", "null", "--scenes", demo / "scenes" / split, "--scorer.cache", demo / "cache" / split,
        "--out", folder_of(demo, name, seed) / split, "--omega", list(omegas), "--candidates", [plans],
    ]  # fmt: skip
    if VARIANTS[name].guidance is not None:
        line += ["--guidance", json.dumps([VARIANTS[name].guidance])]
    return [str(word) for word in line]


def lines_of(demo: Path, name: str, seed: int, options: argparse.Namespace, more: Sequence[str]) -> list[list[str]]:
    drive = drive_line(demo, name, seed, options.split, options.omega, options.plans) + options.evaluate
    own = VARIANTS[name].guidance is None
    return [*([fit_line(demo, name, seed, more)] if own else []), drive]


def scores(folder: Path) -> pd.DataFrame:
    """Mean score of the pair's drawn plans by scene (rows) and omega (columns)."""
    plans = pd.read_parquet(folder / "plans.parquet")
    plans = plans[plans.policy == "dipole"]
    if "start_scale" in plans:  # several: each counts alike
        plans = plans.groupby(["log_name", "token", "omega", "start_scale"], as_index=False, dropna=False).score.mean()
    return plans.groupby(["log_name", "token", "omega"]).score.mean().unstack("omega")


def differences(found: Mapping[tuple[str, int], pd.DataFrame], names: Sequence[str]) -> list[dict[str, Any]]:
    """100 x (variant - what it is compared with), by omega, paired by scene and averaged over seeds."""
    seeds, rows = sorted({seed for _, seed in found}), []
    for name in names:
        against = VARIANTS[name].against
        if name == against or against not in names:
            continue
        gains = sum(found[name, seed] - found[against, seed] for seed in seeds) * (100 / len(seeds))
        intervals = LogIntervals(gains.index.get_level_values("log_name").tolist())
        for omega in gains.columns:
            values = gains[omega].to_numpy()
            interval = intervals.interval(values)
            by_seed = [float(100 * (found[name, s] - found[against, s])[omega].mean()) for s in seeds]
            rows.append({
                "key": name, "against": against, "omega": omega, "gain": float(np.mean(values)), "ci95": interval,
                "by_seed": by_seed, "verdict": verdict(interval),
            })  # fmt: skip
    return rows


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """As lines of a table in markdown."""
    omegas = list(dict.fromkeys(row["omega"] for row in rows))
    print(
        "| key | against |" + "".join(f" ω = {omega:g} |" for omega in omegas) + "\n" + "|---" * (2 + len(omegas)) + "|"
    )
    for name in dict.fromkeys(row["key"] for row in rows):
        own = [row for row in rows if row["key"] == name]
        cells = [f"{row['gain']:+.1f} ({_words(row['ci95'])})" for row in own]
        print(f"| {name} | {own[0]['against']} | " + " | ".join(cells) + " |")


def _words(interval: Sequence[float] | None) -> str:
    return TOO_FEW if interval is None else f"{interval[0]:+.1f} … {interval[1]:+.1f}"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"), help="folder of a finished demo")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--keys", nargs="+", default=list(VARIANTS), choices=list(VARIANTS), help="plain is always run")
    parser.add_argument("--omega", type=float, nargs="+", default=[0.0, 1.0, 2.0])
    parser.add_argument("--split", default="test", choices=("validation", "test"))
    parser.add_argument("--plans", type=int, default=8, help="single plans a scene, averaged")
    parser.add_argument("--evaluate", nargs="*", default=[], help="more words for evaluate, as in start_scale=[1]")
    parser.add_argument("--dry_run", action="store_true", help="print the command lines and stop")
    options, more = parser.parse_known_args(argv)
    options.evaluate = [f"--{word}" for word in options.evaluate]
    needed = {"plain", *(VARIANTS[name].against for name in options.keys), *options.keys}
    names = [name for name in VARIANTS if name in needed]
    found = {}
    for seed in options.seeds:
        for name in names:
            for line in lines_of(options.demo, name, seed, options, more):
                if options.dry_run:
                    print("dipole-vla", shlex.join(line))
                elif dipole_vla(line):
                    sys.exit(2)
            if not options.dry_run:
                found[name, seed] = scores(folder_of(options.demo, name, seed) / options.split)
    if not options.dry_run:
        rows = differences(found, names)
        show(rows)
        write_json(options.demo / "keys" / "table.json", {"rows": rows, "seeds": options.seeds, "split": options.split})


if __name__ == "__main__":
    main()
