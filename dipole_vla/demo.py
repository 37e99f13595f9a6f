"""`dipole-vla demo`: the whole loop on a small synthetic world, as the very commands a team runs at scale, and a drive.

Each step is printed as one would type it, runs in this process, is skipped when finished and resumes when interrupted.
"""

from __future__ import annotations

import shlex
import time
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dipole_vla.demo_drives import drive_both, words_of
from dipole_vla.evaluation.settings import Setting
from dipole_vla.evaluation.summary import difference_words, headline
from dipole_vla.progress import console
from dipole_vla.reference import shipped_reference
from dipole_vla.report.metrics import sub_score
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.files import read_json
from navsim_adapter.foundation.words import counted

# Worlds are cheap: few scenes to learn from are learnt by heart, and few to choose on make a choice a toss of a coin.
SCENES = {"train": 1200, "validation": 240, "test": 240}
SPLITS = {"train": "trainval", "validation": "mini", "test": "test"}  # ours -> NAVSIM's folder


def demo(
    out: Path = Path("runs/demo"),
    seed: int = 0,
    recipes: Path | None = None,
    rounds: int = 0,
    omega: float = 1.0,
    from_scratch: bool = False,
) -> None:
    """From logs to a policy better than the one that imitates: synth, convert, cache, fit, collect, evaluate, drive.

    Args:
        out: folder of everything the demo writes.
        seed: world, weights, noise, data order.
        recipes: folder of the demo's recipes; default is the one shipped.
        rounds: online rounds after it, each in a folder of its own: the guided policy of the round before drives the
            training scenes, a new critic learns from what came of it, and the pair is trained on.
        omega: greed of the policy that drives in those rounds.
        from_scratch: imitate on this very world, from random weights, instead of starting from the reference policy
            that comes with the recipes.
    """
    if rounds < 0:
        raise InputError(f"--rounds: must be >= 0, got {rounds}; 0 is the offline loop alone")
    recipes = recipes or shipped_recipes()
    started = time.monotonic()
    reference = None if from_scratch else shipped_reference(recipes, seed)
    console.print(f"starts from {reference or 'random weights'}", markup=False, soft_wrap=True)
    for line in steps(out, seed, recipes, rounds, omega, reference.folder if reference else None):
        run_shown(line)
    for folder in [out, *(out / f"round-{number}" for number in range(1, rounds + 1))]:
        closed_loop = drive_both(folder, out / "world", run_shown)
        run_shown(report(folder, closed_loop))
        print_summary(folder / "evaluation", closed_loop)
        console.print(f"report: [bold]{escape(str(folder / 'report' / 'index.html'))}[/bold]\n")
    console.print(f"{time.monotonic() - started:.0f} s")


def steps(
    out: Path, seed: int, recipes: Path, rounds: int = 0, omega: float = 1.0, reference: Path | None = None
) -> list[list[str]]:
    """The command lines up to the evaluation, in order. reference: the policy to start from; None trains one first."""
    lines = prepare(out, seed)
    if reference is None:
        lines += imitate(out, seed, recipes)
        reference = out / "imitation"
    lines += improve(out, out, seed, recipes, reference, reference)
    policy = out / "dipole"
    for number in range(1, rounds + 1):
        folder = out / f"round-{number}"
        lines += improve(out, folder, seed, recipes, reference, policy, omega)
        policy = folder / "dipole"
    return lines


def prepare(out: Path, seed: int) -> list[list[str]]:
    """World, scenes and caches."""
    world, scenes, cache = out / "world", out / "scenes", out / "cache"
    lines: list[list] = [["navsim-adapter", "synth", "--out", world, "--seed", seed]]
    lines[0] += [word for split, count in SCENES.items() for word in (f"--{split}", count)]
    for ours, theirs in SPLITS.items():
        lines.append(["navsim-adapter", "convert", "--data", world, "--split", theirs, "--out", scenes / ours])
        lines.append(["navsim-adapter", "cache", "--data", world, "--split", theirs, "--out", cache / ours])
    return [[str(word) for word in line] for line in lines]


def imitate(out: Path, seed: int, recipes: Path) -> list[list[str]]:
    """Random weights, then the policy that imitates the humans of this world."""
    line: list = ["dipole-vla", "init", "--config", recipes / "init.yaml", "--out", out / "init", "--seed", seed]
    model, data = {"backbone": out / "init"}, {"scenes": out / "scenes" / "train"}
    lines = [line, _fit(recipes / "imitation.yaml", out / "imitation", seed, model, data)]
    return [[str(word) for word in line] for line in lines]


def improve(
    out: Path, folder: Path, seed: int, recipes: Path, backbone: Path, policy: Path, omega: float | None = None
) -> list[list[str]]:
    """One round in `folder`: `policy` drives, critic and adapters learn from what came of it, both splits are driven.

    backbone: the reference, on which critic and pair are built.
    omega: of a guided policy, whose pair is then trained on; None: the reference drives, as in the offline loop.
    """
    scenes, cache = out / "scenes", out / "cache"
    train = {"scenes": scenes / "train", "candidates": folder / "candidates", "contexts": out / "contexts"}
    reference = {"backbone": backbone}
    collect: list = ["dipole-vla", "collect", "--config", recipes / "collect.yaml", "--policy", policy]
    collect += ["--scenes", scenes / "train", "--scorer.cache", cache / "train", "--out", folder / "candidates"]
    lines: list[list] = [[*collect, "--seed", seed, *([] if omega is None else ["--omega", omega])]]
    lines.append(_fit(recipes / "critic.yaml", folder / "critic", seed, reference, train))
    pair = {**reference, "critic": folder / "critic", **({} if omega is None else {"start": policy})}
    lines.append(_fit(recipes / "dipole.yaml", folder / "dipole", seed, pair, train))
    for split, choose_on, name in (("validation", "null", "validation"), ("test", folder / "validation", "evaluation")):
        line: list = ["dipole-vla", "evaluate", "--config", recipes / "evaluate.yaml", "--policy", folder / "dipole"]
        line += ["--scenes", scenes / split, "--scorer.cache", cache / split, "--out", folder / name]
        lines.append([*line, "--choose_on", choose_on])
    return [[str(word) for word in line] for line in lines]


def report(folder: Path, closed_loop: Path | None = None) -> list[str]:
    """The page of an evaluation, and of the drives, if there were any."""
    line = ["dipole-vla", "report", folder / "evaluation", "--out", folder / "report"]
    return [str(word) for word in (*line, *(["--closed_loop", closed_loop] if closed_loop else []))]


def _fit(recipe: Path, out: Path, seed: int, model: dict[str, Path], data: dict[str, Path]) -> list:
    line: list = ["dipole-vla", "fit", "--config", recipe, "--out", out]
    for section, values in (("model", {**model, "seed": seed}), ("data", {**data, "seed": seed})):
        for key, value in values.items():
            line += [f"--{section}.{key}", value]
    return line


def shipped_recipes() -> Path:
    """recipes/demo of the source tree, or the copy inside an installed package."""
    package = Path(__file__).resolve().parent
    for folder in (package.parent / "recipes" / "demo", package / "recipes_shipped" / "demo"):
        if folder.is_dir():
            return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    raise InputError(f"{package}: the demo's recipes are missing; install again or pass --recipes")


def print_summary(evaluation: Path, closed_loop: Path | None = None) -> None:
    """The score table of an evaluation, on the terminal, and what became of the gain in closed loop."""
    summary = read_json(evaluation / "summary.json")
    table = Table(
        title=(
            f"{summary['metric']} x 100 on {summary['split']}: {counted(summary['scenes'], 'scene')}, "
            f"{counted(summary['logs'], 'log')}"
        )
    )
    short = {name: sub_score(name).short for name in summary["sub_scores"]}
    gains = {"fairest_gain": "vs fairest ref., same N", "human_gain": "vs human"}
    for column in ("policy", "omega", "start", "N", "score", "95 %", *gains.values(), *short.values()):
        table.add_column(column, justify="left" if column == "policy" else "right", no_wrap=True)
    chosen = Setting.of({"policy": "dipole", **summary["chosen"]})
    for row in summary["rows"]:
        is_chosen = Setting.of(row) == chosen
        table.add_row(
            ", ".join(filter(None, [row["policy"], row["guidance"]]))
            + (" (simulator chooses)" if row["policy"] == "oracle" else ""),
            "" if row["omega"] is None else f"{row['omega']:g}",
            "" if row["start_scale"] is None else f"{row['start_scale']:g}",
            str(row["candidates"]),
            f"{100 * row['score']:.1f}",
            "" if row["ci95"] is None else f"{100 * row['ci95'][0]:.1f} … {100 * row['ci95'][1]:.1f}",
            *["" if row[name] is None else difference_words(row, name) for name in gains],
            *["" if row[name] is None else f"{100 * row[name]:.1f}" for name in short],
            style="bold green" if is_chosen else "dim" if row["policy"] == "oracle" else "",
        )
    Console(width=max(console.width, 190), highlight=False).print(table)
    lines = headline(summary)
    if closed_loop:
        lines.append(words_of(closed_loop, next(row for row in summary["rows"] if Setting.of(row) == chosen)))
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def run_shown(line: list[str]) -> None:
    """Print a command line as one would type it, and run it."""
    console.print(f"\n$ {shlex.join(line)}", style="bold", markup=False)
    run_step(line)


def run_step(line: list[str]) -> None:
    """Run one command line in this process; SystemExit when it fails (it has said why)."""
    from dipole_vla import cli as training_cli
    from navsim_adapter import cli as adapter_cli

    program, *argv = line
    code = (adapter_cli if program == "navsim-adapter" else training_cli).main(argv)
    if code:
        raise SystemExit(code)
