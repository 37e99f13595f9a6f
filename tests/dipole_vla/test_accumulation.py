"""A step is the same step, whoever takes it: every engine on two ranks against one plain process.

Two ranks that accumulate n batches each are one process that accumulates 2 n: same data, same noise. Compared are what
trains, its running mean, Adam's moments, all counts and the gradient's norms, after a few steps.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_runs import HALF, STEPS, run
from ranks import LIMIT, ROOT, free_port
from small_data import write_inputs
from torch import Tensor

ENGINES = ("FSDP2", "ZeRO-1", "ZeRO-2", "ZeRO-3")  # the last one leaves a linear layer of its own in torch
CLIP = 0.25  # below the gradients' norms, about 0.35, and above their halves
ROUNDING = 1e-5
ENGINES_HALF = 0.2
"""DeepSpeed rounds what trains and its gradients to bfloat16's 8 bits before each pass, which a plain process does not:
measured are up to 0.1, in single moments. A loss divided once too often, by 2, gives 0.5."""


def cell(engine: str, accumulate: int = 2, clip: float | None = CLIP, precision: str = "32-true", **more: Any):
    """Arguments of `rank_runs.run`; ZeRO-3 keeps no whole weights to average."""
    return {"engine": engine, "accumulate": accumulate, "clip": clip, "precision": precision, **more} | {
        "mean": engine != "ZeRO-3"
    }


def named(cell: dict[str, Any]) -> str:
    return " ".join(f"{key}={str(value).rpartition('/')[2]}" for key, value in cell.items() if key != "mean")


class Bench:
    """Runs cells in `folder`; those of one process once."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.inputs, self.calls = folder, write_inputs(folder / "inputs"), itertools.count()

    def plain(self, cell: dict[str, Any]) -> Path:
        """Where one process has left the run of a cell, without a break: it is fed what the two ranks are together."""
        together = {key: 2 * cell[key] for key in ("accumulate", "epoch") if key in cell}
        same = {**cell, "engine": "plain", "mean": True, **together}
        same.pop("resume", None)
        out = self.folder / named(same)
        if not out.exists():
            out.mkdir()
            run(self.inputs, out, **same)
        return out

    def ranks(self, cells: list[dict[str, Any]]) -> list[Path]:
        """Where two ranks, started once for all, have left the run of each cell."""
        here = self.folder / str(next(self.calls))
        outs = [here / named(cell) for cell in cells]
        for out in outs:
            out.mkdir(parents=True)
        runs, said = here / "runs.json", here / "said"
        runs.write_text(json.dumps([{"inputs": str(self.inputs), "out": str(o), **c} for o, c in zip(outs, cells)]))
        script = [sys.executable, str(Path(__file__).with_name("rank_runs.py")), str(runs)]
        env = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "PYTHONPATH": str(ROOT)}
        with open(said, "w") as file:
            started = [
                subprocess.Popen(script, env={**env, "LOCAL_RANK": str(rank)}, stdout=file, stderr=file)
                for rank in range(2)
            ]
            codes = [process.wait(LIMIT) for process in started]
        assert codes == [0, 0], said.read_text()[-4000:]
        return outs


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


def numbers(folder: Path) -> dict[str, Tensor]:
    """Everything a run of a cell leaves, flat; the part of a name before its first space is its kind."""
    saved = torch.load(folder / f"step={STEPS}.ckpt", weights_only=True)
    norms = json.loads((folder / "norms.json").read_text())
    flat = {f"norm {step}": torch.tensor(norm) for step, norm in norms.items()}
    flat |= {f"weight {name}": tensor for name, tensor in saved["state_dict"].items()}
    flat |= {f"mean {name}": tensor for name, tensor in saved.get("weight_mean", {"mean": {}})["mean"].items()}
    for number, moments in saved["optimizer_states"][0]["state"].items():
        flat |= {f"{kind} {number}": tensor for kind, tensor in moments.items()}
    updates = saved.get("weight_mean", {"updates": STEPS})["updates"]
    counts = [saved["global_step"], saved["lr_schedulers"][0]["last_epoch"], updates]
    return {**flat, "counts": torch.tensor(counts)}


def off(found: Path, wanted: Path) -> dict[str, float]:
    """By kind: the largest difference, as a part of its tensor's largest number, from what was wanted."""
    one, two = numbers(found), numbers(wanted)
    assert {name for name in two if name.startswith(("weight", "exp_avg"))} <= one.keys() <= two.keys()
    worst: dict[str, float] = {}
    for name, tensor in one.items():
        difference = float((tensor.double() - two[name].double()).abs().max() / two[name].double().abs().max())
        kind = name.split()[0]
        worst[kind] = max(worst.get(kind, 0.0), difference)
    return worst


def check(bench: Bench, cells: list[dict[str, Any]]) -> None:
    """The table of all cells is printed before any is judged."""
    wrong = []
    for cell, found in zip(cells, bench.ranks(cells)):
        worst = off(found, bench.plain(cell))
        bound = ENGINES_HALF if cell["engine"].startswith("ZeRO") and cell["precision"] != "32-true" else ROUNDING
        print(found.name, {kind: f"{value:.1e}" for kind, value in worst.items()})
        if worst["counts"] or worst["step"] or max(worst.values()) > bound:
            wrong.append((found.name, worst))
    assert not wrong


def test_an_accumulated_and_clipped_step_is_that_of_one_process(bench: Bench) -> None:
    check(bench, [cell(engine) for engine in ENGINES])


@pytest.mark.slow
def test_the_last_step_of_an_epoch_may_have_fewer_batches(bench: Bench) -> None:
    check(bench, [cell(engine, epoch=3) for engine in ("ddp", *ENGINES)])


@pytest.mark.slow
def test_a_resume_at_another_number_of_ranks_is_the_run_of_one_process(bench: Bench, tmp_path: Path) -> None:
    whole = bench.plain(cell("plain"))
    half = f"step={HALF}.ckpt"
    check(bench, [cell(engine, resume=str(whole / half)) for engine in ENGINES])
    for engine, found in zip(ENGINES, bench.ranks([cell(engine) for engine in ENGINES])):
        again = tmp_path / engine
        again.mkdir()
        run(bench.inputs, again, **{**cell(engine, 4), "engine": "plain"}, resume=found / half)
        worst = off(again, whole)
        print(f"{engine}, then one process", worst)
        assert max(worst.values()) <= ROUNDING


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_every_engine_accumulation_clipping_and_precision(bench: Bench, precision: str) -> None:
    cells = [cell(*one, precision) for one in itertools.product(ENGINES, (1, 2, 4), (None, CLIP))]
    check(bench, [cell("ddp", precision=precision), *cells, cell("ZeRO-2+", precision=precision)])
