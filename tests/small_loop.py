"""The demo's own chain of commands on a world of a few scenes and a few steps."""

from __future__ import annotations

from pathlib import Path

from dipole_vla.demo import report, run_step, shipped_recipes, steps

SMALLER = {
    "synth": ["--train", "12", "--validation", "6", "--test", "6"],
    "init": ["--sizes.width", "32", "--sizes.depth", "1", "--sizes.image_size", "32"],
    "imitation.yaml": [
        "--trainer.max_steps",
        "6",
        "--data.batch_size",
        "4",
        "--model.draws",
        "2",
        "--checkpoint_every",
        "2",
    ],
    "collect.yaml": ["--candidates", "3"],
    "critic.yaml": ["--trainer.max_steps", "4", "--data.batch_size", "4", "--data.contexts", "null"],
    "dipole.yaml": [
        "--trainer.max_steps",
        "4",
        "--data.batch_size",
        "4",
        "--data.contexts",
        "null",
        "--model.pair",
        "lora",
        "--model.rank",
        "4",
        "--checkpoint_every",
        "2",
    ],
    "evaluate.yaml": ["--omega", "[-1, 0, 1]", "--candidates", "[1, 2]", "--start_scale", "[0, 1]", "--samples", "3"],
}


def small_steps(out: Path, seed: int = 0, rounds: int = 0) -> list[list[str]]:
    """The demo's command lines with smaller numbers appended: the command line has the last word."""
    lines, done = [], 0
    folders = [out, *(out / f"round-{number}" for number in range(1, rounds + 1))]
    wanted: list[list[str]] = []
    for number, folder in enumerate(folders):
        so_far = steps(out, seed, shipped_recipes(), number)
        wanted += [*so_far[done:], report(folder)]
        done = len(so_far)
    for line in wanted:
        recipe = next((Path(word).name for word in line if word.endswith(".yaml")), "")
        lines.append(line + SMALLER.get(recipe, SMALLER.get(line[1], [])))
    return lines


def run_loop(out: Path, seed: int = 0) -> Path:
    for line in small_steps(out, seed):
        run_step(line)
    return out
