"""What a command costs before it does anything: CPU seconds and peak memory, beside another tree of this project.

    git worktree add OLD 485b528
    python benchmarks/startup.py --old OLD

Every `--help`, a wrong key in a recipe, a recipe that is not there, and the import of both packages; each in a process
of its own, old and new in turn, the least of --repeats. Only the ratios of one run mean something. Beside them what no
command can be below: bare Python, and numpy. A verb that the old tree lacks has its own cost alone.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
VERBS = {
    "dipole_vla": (
        "demo", "init", "import", "fit", "consolidate", "contexts", "collect", "advantage", "evaluate", "report",
        "drive", "launch", "doctor", "export", "plan", "data", "rl", "experiment", "serve",
    ),
    "navsim_adapter": (
        "synth", "convert", "cache", "import", "score", "merge", "inspect", "baseline", "submission", "render",
        "compare", "vocabulary", "closed-loop",
    ),
}  # fmt: skip
NEW = ("serve", "compare", "vocabulary", "closed-loop")
FLOOR = {"bare python": "pass", "numpy": "import numpy"}
WITH_RECIPE = ("fit", "plan", "collect", "evaluate", "init", "rl")
RECIPES = {"fit": "demo/dipole", "plan": "demo/dipole", "rl": "rl/cube-single-task1"}


def cases(folder: Path) -> dict[str, list[str]]:
    """Name -> words after `python`."""
    found = {f"floor: {name}": ["-c", program] for name, program in FLOOR.items()}
    found |= {f"import {package}": ["-c", f"import {package}"] for package in VERBS}
    for package, verbs in VERBS.items():
        found |= {f"{package} {verb} --help": ["-m", f"{package}.cli", verb, "--help"] for verb in verbs}
    for verb in WITH_RECIPE:
        recipe = folder / f"{verb}.yaml"
        text = (HERE / "recipes" / f"{RECIPES.get(verb, f'demo/{verb}')}.yaml").read_text()
        recipe.write_text(f"{text}\nnot_a_key: 1\n")
        found[f"{verb}: a wrong key"] = ["-m", "dipole_vla.cli", verb, "--config", str(recipe)]
        found[f"{verb}: no such recipe"] = ["-m", "dipole_vla.cli", verb, "--config", str(folder / "nowhere.yaml")]
    for name, old, new in (("model", "beta:", "betta:"), ("data", "batch_size:", "batchsize:")):
        recipe = folder / f"{name}.yaml"
        recipe.write_text((HERE / "recipes/demo/dipole.yaml").read_text().replace(old, new))
        found[f"fit: a wrong key in {name}"] = ["-m", "dipole_vla.cli", "fit", "--config", str(recipe)]
    return found


def cost(tree: Path, words: Sequence[str]) -> tuple[float, float]:
    """CPU seconds and peak MB of one process; a fork of this small one measures its own child alone."""
    program = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], capture_output=True);"
        "use = resource.getrusage(resource.RUSAGE_CHILDREN); print(use.ru_utime + use.ru_stime, use.ru_maxrss / 1024)"
    )
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", program, sys.executable, *words]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=True)
    seconds, megabytes = map(float, done.stdout.split())
    return seconds, megabytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--old", type=Path, required=True, help="another tree of this project")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--only", default="", help="a pattern that the names of the cases must hold")
    options = parser.parse_args()
    print("| | old CPU s | new | old / new | old MB | new |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        chosen = {name: words for name, words in cases(Path(folder)).items() if re.search(options.only, name)}
        for name, words in chosen.items():
            trees = [HERE] if set(words) & set(NEW) else [options.old.resolve(), HERE]
            rounds = [[cost(tree, words) for tree in trees] for _ in range(options.repeats)]
            *known, new = (min(values) for values in zip(*rounds))
            old, ratio, held = ("-", "-", "-")
            if known:
                old, ratio, held = f"{known[0][0]:.2f}", f"{known[0][0] / new[0]:.1f}", f"{known[0][1]:.0f}"
            print(f"| {name} | {old} | {new[0]:.2f} | {ratio} | {held} | {new[1]:.0f} |", flush=True)


if __name__ == "__main__":
    main()
