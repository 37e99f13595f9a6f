"""The comparison the paper lacks: five weighting rules x omega on the synthetic world; bernoulli against both.

    dipole-vla demo --out runs/demo                                    # the world, the reference, its candidates
    python benchmarks/weighting_rules.py --demo runs/demo --steps 300

Every rule starts from the same reference, candidates, noise and data order, and is driven from the same start noise on
the same scenes; differences are paired by scene and their intervals respect logs. Single plans (N = 1): the
critic is the same for all and is left out. Trained policies lie in DEMO/rules and are not trained twice.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd

from dipole_vla.cli import main as dipole_vla
from dipole_vla.demo import shipped_recipes
from dipole_vla.objective import RULES
from navsim_adapter.foundation.files import write_json
from navsim_adapter.foundation.statistics import TOO_FEW, LogIntervals

Run = tuple[str, str]
"""(rule, routing)."""

RUNS: tuple[Run, ...] = (*((rule, "both") for rule in RULES), ("dichotomous", "bernoulli"))
REFERENCE = -np.inf  # in the place of an omega
LOGGED = ("loss", "grad_norm_positive", "ess_positive")


def name_of(run: Run) -> str:
    return run[0] if run[1] == "both" else f"{run[0]}, {run[1]}"


def folder_of(demo: Path, run: Run, steps: int, beta: float) -> Path:
    return demo / "rules" / f"{run[0]}_{run[1]}_{steps}_beta{beta:g}"


def call(*words: object) -> None:
    if dipole_vla([str(word) for word in words]):
        sys.exit(2)


def train(demo: Path, run: Run, steps: int, beta: float, more: Sequence[str]) -> None:
    """The demo's own recipe with this rule and routing; the frozen encoder is asked once for all runs."""
    rule, routing = run
    call(
        "fit", "--config", shipped_recipes() / "dipole.yaml", "--out", folder_of(demo, run, steps, beta) / "policy",
        "--model.backbone", demo / "imitation", "--model.critic", demo / "critic", "--model.rule", rule,
        "--model.routing", routing, "--model.beta", beta, "--data.scenes", demo / "scenes" / "train",
        "--data.candidates", demo / "candidates", "--data.contexts", demo / "contexts", "--trainer.max_steps", steps,
        "--trainer.log_every_n_steps", 1, *more,
    )  # fmt: skip


def drive(demo: Path, run: Run, steps: int, beta: float, omegas: Sequence[float], split: str, plans: int) -> None:
    folder = folder_of(demo, run, steps, beta)
    call(
        "evaluate", "--config", shipped_recipes() / "evaluate.yaml", "--policy", folder / "policy", "--choose_on",
        "null", "--scenes", demo / "scenes" / split, "--scorer.cache", demo / "cache" / split, "--out",
        folder / f"evaluation_{split}", "--omega", list(omegas), "--candidates", [plans],
    )  # fmt: skip


def scores(folder: Path) -> pd.DataFrame:
    """Mean score of the drawn plans by scene (rows) and omega or REFERENCE (columns)."""
    plans = pd.read_parquet(folder / "plans.parquet", columns=["token", "log_name", "policy", "omega", "score"])
    plans = plans[plans.policy != "human"].fillna({"omega": REFERENCE})
    return plans.groupby(["log_name", "token", "omega"]).score.mean().unstack("omega")


def differences(found: dict[Run, pd.DataFrame], omegas: Sequence[float]) -> list[dict]:
    """100 x (rule at omega - reference), with paired intervals."""
    rows = []
    for run, table in found.items():
        intervals = LogIntervals(table.index.get_level_values("log_name").tolist())
        reference = table[REFERENCE].to_numpy()
        for omega in omegas:
            gain = 100 * (table[omega].to_numpy() - reference)
            rows.append({"rule": name_of(run), "omega": omega, "gain": gain.mean(), "ci95": intervals.interval(gain)})
    return rows


def routing_difference(found: dict[Run, pd.DataFrame], omegas: Sequence[float]) -> list[dict]:
    """100 x (bernoulli - both) of DIPOLE's own rule, paired."""
    one, both = found["dichotomous", "bernoulli"], found["dichotomous", "both"]
    intervals = LogIntervals(both.index.get_level_values("log_name").tolist())
    rows = []
    for omega in omegas:
        gain = 100 * (one[omega] - both[omega]).to_numpy()
        rows.append({"omega": omega, "gain": gain.mean(), "ci95": intervals.interval(gain)})
    return rows


def stability(folder: Path) -> dict[str, float]:
    """What the log of a training shows: where a rule's gradients jump and how many samples carry it."""
    log = pd.read_csv(folder / "policy" / "logs" / "metrics.csv")
    loss, norm, ess = (log[name].dropna() for name in LOGGED)
    return {
        "loss": loss.median(),
        "largest loss": loss.max(),
        "gradient norm": norm.median(),
        "99 % / median": norm.quantile(0.99) / norm.median(),
        "ESS": ess.mean(),
        "least ESS": ess.min(),
    }


def show(rows: list[dict], steady: list[dict], routing: list[dict], omegas: Sequence[float], title: str) -> None:
    print(f"\n{title}\nscore x 100 minus the reference policy's, 95 % interval over logs; N = 1")
    print(f"{'rule':24s}" + "".join(f"{f'omega {omega:g}':>24s}" for omega in omegas))
    for rule in dict.fromkeys(row["rule"] for row in rows):
        cells = {row["omega"]: cell(row) for row in rows if row["rule"] == rule}
        print(f"{rule:24s}" + "".join(f"{cells[omega]:>24s}" for omega in omegas))
    print("\nbernoulli minus both (dichotomous), paired")
    print(f"{'':24s}" + "".join(f"{cell(row):>24s}" for row in routing))
    keys = [key for key in steady[0] if key not in ("rule", "beta")]
    print("\ntraining, positive policy\n" + f"{'rule':24s}{'beta':>6s}" + "".join(f"{key:>16s}" for key in keys))
    for row in steady:
        print(f"{row['rule']:24s}{row['beta']:6g}" + "".join(f"{row[key]:16.3g}" for key in keys))


def cell(row: dict) -> str:
    if row["ci95"] is None:
        return f"{row['gain']:+.1f} ({TOO_FEW})"
    low, high = row["ci95"]
    return f"{row['gain']:+.1f} ({low:+.1f} … {high:+.1f})"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"), help="folder of a finished demo")
    parser.add_argument("--steps", type=int, default=300, help="of every training")
    parser.add_argument("--beta", type=float, default=2.0)
    parser.add_argument("--wild_beta", type=float, default=6.0, help="also trained, for stability alone; 0 leaves out")
    parser.add_argument("--omega", type=float, nargs="+", default=[0.0, 1.0, 2.0, 4.0])
    parser.add_argument("--split", default="test", choices=("validation", "test"))
    parser.add_argument("--plans", type=int, default=8, help="single plans a scene, averaged")
    options, more = parser.parse_known_args(argv)
    demo, steps = options.demo, options.steps
    found, steady = {}, []
    for run in RUNS:
        train(demo, run, steps, options.beta, more)
        drive(demo, run, steps, options.beta, options.omega, options.split, options.plans)
        folder = folder_of(demo, run, steps, options.beta)
        found[run] = scores(folder / f"evaluation_{options.split}")
        steady.append({"rule": name_of(run), "beta": options.beta, **stability(folder)})
    for run in (("dichotomous", "both"), ("exponential", "both")) if options.wild_beta else ():
        train(demo, run, steps, options.wild_beta, more)
        folder = folder_of(demo, run, steps, options.wild_beta)
        steady.append({"rule": name_of(run), "beta": options.wild_beta, **stability(folder)})
    rows, routing = differences(found, options.omega), routing_difference(found, options.omega)
    scenes = len(next(iter(found.values())))
    show(
        rows, steady, routing, options.omega, f"{options.split}: {scenes} scenes, beta {options.beta:g}, {steps} steps"
    )
    write_json(demo / "rules" / "table.json", {"rules": rows, "routing": routing, "training": steady})


if __name__ == "__main__":
    main()
