"""Make the policy that the demo starts from, with the product's own commands: `make checkpoint`, hours on one core.

    python recipes/demo/reference/make.py [runs/checkpoint] [--keep]

Worlds of seeds that no demo, test or benchmark uses, one table of all their scenes, random weights, imitation. A killed
run resumes. The result replaces the one in this folder, or stays where it is with --keep.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
from pathlib import Path

from dipole_vla.backbones import load_backbone
from dipole_vla.demo import run_step
from dipole_vla.reference import FACTS, MADE_FOR
from navsim_adapter.foundation.files import MANIFEST, finish, read_json, verify, write_json

HERE = Path(__file__).resolve().parent
SEEDS = tuple(range(1000, 1006))
SCENES = 1200  # of each world
SPLIT = "trainval"
SOLVER_STEPS = 5  # a network that predicts the clean action gains nothing from ten
OURS = ("README.md", "make.py", "__pycache__", "init.yaml", "imitation.yaml")  # of this folder, and no result
FITS = {  # folder -> what differs from imitation.yaml; each goes on from the one before
    "imitation": {},
    "longer": {"--model.lr": 1e-3, "--model.fit_action": "false", "--trainer.max_steps": 3000},
}


def steps(out: Path) -> list[list[str]]:
    """The command lines, in order; between the worlds and the table the worlds are put together."""
    lines: list[list] = []
    for seed in SEEDS:
        world = ["--train", SCENES, "--validation", 0, "--test", 0]
        lines.append(["navsim-adapter", "synth", "--out", out / "worlds" / str(seed), "--seed", seed, *world])
    lines.append(["navsim-adapter", "convert", "--data", out / "data", "--split", SPLIT, "--out", out / "scenes"])
    lines.append(["dipole-vla", "init", "--config", HERE / "init.yaml", "--out", out / "init"])
    backbone = out / "init"
    for seed, (name, values) in enumerate(FITS.items()):
        fit: list = ["dipole-vla", "fit", "--config", HERE / "imitation.yaml", "--out", out / name]
        fit += ["--model.backbone", backbone, "--data.scenes", out / "scenes"]
        seeds = ["--model.seed", seed, "--data.seed", seed]
        lines.append([*fit, *seeds, *(word for pair in values.items() for word in pair)])
        backbone = out / name
    return [[str(word) for word in line] for line in lines]


def join(out: Path) -> None:
    """All worlds as one data root of links: logs and pictures are named by what is in them, maps are not needed."""
    for kind in ("navsim_logs", "sensor_blobs"):
        folder = out / "data" / kind / SPLIT
        folder.mkdir(parents=True, exist_ok=True)
        for seed in SEEDS:
            for path in sorted((out / "worlds" / str(seed) / kind / SPLIT).iterdir()):
                if not (folder / path.name).exists():
                    (folder / path.name).symlink_to(path.resolve())


def ship(made: Path) -> None:
    """A finished backbone as this folder's own, with what it was trained on; sampled in fewer steps."""
    verify(made)
    network = load_backbone(made)
    network.solver = network.solver.with_steps(SOLVER_STEPS)
    network.save_pretrained(HERE)
    shutil.copyfile(made / "provenance.json", HERE / "provenance.json")
    write_json(HERE / FACTS, {**MADE_FOR, "seeds": list(SEEDS), "scenes": SCENES * len(SEEDS)})
    finish(HERE, read_json(made / MANIFEST)["made_by"], exclude=OURS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", type=Path, default=Path("runs/checkpoint"))
    parser.add_argument("--keep", action="store_true", help="leave this folder as it is")
    options = parser.parse_args()
    for line in steps(options.out):
        if line[1] == "convert":
            join(options.out)
        print("\n$", shlex.join(line), flush=True)
        run_step(line)
    if not options.keep:
        ship(options.out / list(FITS)[-1])


if __name__ == "__main__":
    main()
