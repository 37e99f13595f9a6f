"""`dipole-vla experiment`: run one of the paper's questions and write its page."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from dipole_vla.progress import skipped, wrote
from dipole_vla.provenance import commit, versions
from dipole_vla.rl.experiments.page import Page, render
from navsim_adapter.foundation.errors import InputError, did_you_mean
from navsim_adapter.foundation.files import finish, making, write_json, write_text

EXPERIMENTS = {
    "exponential": "exp(beta G) against sigma(beta G): is training stable, and what does it return?",
    "omega": "how greedy: performance against diversity",
    "advantages": "learned against true advantages, on a bandit and a gridworld solved exactly",
    "unseen-states": "states outside the data",
    "region": "beta x omega: where it works, and how it fails",
    "network-size": "a small MLP against a VLA: gradients and losses per parameter",
}


def experiment(name: str, out: Path | None = None, seed: int = 0, updates: int | None = None) -> None:
    """Run one experiment, a minute or two, and write its page.

    Args:
        name: exponential, omega, advantages, unseen-states, region or network-size.
        out: folder for index.html and numbers.json; default runs/experiments/NAME.
        seed: of the data, the weights and the samples.
        updates: training steps, in place of the experiment's own number.
    """
    if name not in EXPERIMENTS:
        raise InputError(
            f"experiment: no {name!r}{did_you_mean(name, list(EXPERIMENTS))}; use {', '.join(EXPERIMENTS)}"
        )
    out = out or Path("runs/experiments") / name
    made_by: dict[str, Any] = {"command": "experiment", "name": name, "seed": seed, "updates": updates}
    with making(out, made_by) as is_open:
        if not is_open:
            return skipped(f"experiment {name}", out)
        run: Callable[..., Page] = import_module(f"dipole_vla.rl.experiments.{name.replace('-', '_')}").run
        page = run(seed=seed) if updates is None else run(seed=seed, updates=updates)
        facts = versions()
        made = [
            ("command", f"dipole-vla experiment {name} --seed {seed}" + (f" --updates {updates}" if updates else "")),
            ("commit", commit() or "not recorded"),
            ("versions", " · ".join(f"{package} {facts[package]}" for package in ("python", "torch", "dipole-vla"))),
        ]
        write_json(out / "numbers.json", page.numbers)
        write_text(out / "index.html", render(name, page, made))
        finish(out, made_by)
    wrote(f"experiment {name}", out / "index.html")
