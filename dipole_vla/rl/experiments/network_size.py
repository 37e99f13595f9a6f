"""(f) A small MLP against a VLA: how the two weights' losses and gradients behave as the network grows.

The VLA is a real one of this package, made small (random frozen DP-VLA with two LoRA adapters) and shown random scenes
with plans of known gain; the MLP is the bandit's. Both are trained with the same rules at the same beta.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dipole_vla.backbones.dp_vla.model import DPVLA, DPVLAConfig
from dipole_vla.objective import RULES, Rule, dichotomous_loss
from dipole_vla.policy import AdapterPair
from dipole_vla.report import charts
from dipole_vla.rl.experiments.bandit import draw, train
from dipole_vla.rl.experiments.page import Figure, Page, Table
from dipole_vla.rl.heads import Head

BETA, SCENES, GROUP = 3.0, 16, 8
SIGMOID, EXPONENTIAL = "σ (DIPOLE)", "exp, clipped"
WEIGHTS = {SIGMOID: "dichotomous", EXPONENTIAL: "exponential"}
STYLES = ((charts.BLUE, "solid"), (charts.ORANGE, (0, (4, 2))))


def run(seed: int = 0, updates: int = 300) -> Page:
    curves: dict[str, dict[str, Any]] = {}
    for shown, name in WEIGHTS.items():
        curves[f"MLP, {shown}"] = _mlp(RULES[name], seed, updates)
        curves[f"VLA, {shown}"] = _vla(name, seed, updates)
    rows = [{"network": label, **_facts(curve)} for label, curve in curves.items()]
    tail = {row["network"]: row["tail"] for row in rows}
    answer = [
        "The exponential weight's gradient tail (99th percentile over median) over that of the sigmoid: "
        + ", ".join(f"{tail[f'{n}, {EXPONENTIAL}'] / tail[f'{n}, {SIGMOID}']:.2f} in the {n}" for n in ("MLP", "VLA"))
        + "."
    ] + [
        f"{row['network']} ({row['parameters']:,} trained parameters): gradient norm over the root of their number, "
        f"median {row['median']:.2g}, 99th percentile {row['tail']:.2f} times that; loss from {row['first']:.3g} to "
        f"{row['last']:.3g}."
        for row in rows
    ]
    return Page(
        "A small MLP against a VLA",
        "Does what a small network shows about stability carry over to a VLA with adapters?",
        answer,
        f"β = {BETA:g}, {updates} updates; bandit and random scenes with plans of known gain",
        [
            Figure(
                "Gradient norm, per parameter",
                _plot(curves, "norm", "gradient norm / root of parameters"),
                "Norm over all trained parameters over the root of their number, update by update, the first policy "
                "only. An exponential weight is larger than a sigmoid's to begin with: compare the spread of a curve, "
                "not its height.",
            ),
            Figure(
                "Loss, relative to its start",
                _plot(curves, "loss", "loss / mean of the first ten"),
                "The weights differ in scale, so each curve is divided by the mean of its first ten updates.",
            ),
        ],
        [
            Table(
                "All numbers",
                (
                    "network",
                    "trained parameters",
                    "median norm / √n",
                    "p99 / median",
                    "loss, first ten",
                    "loss, last tenth",
                    "variation of loss",
                ),
                [
                    (
                        row["network"],
                        f"{row['parameters']:,}",
                        f"{row['median']:.2g}",
                        f"{row['tail']:.2f}",
                        f"{row['first']:.3g}",
                        f"{row['last']:.3g}",
                        f"{row['variation']:.2f}",
                    )
                    for row in rows
                ],
                "Variation: standard deviation over mean of the loss in the second half.",
            )
        ],
        {"updates": updates, "rows": rows},
    )


def _mlp(rule: Rule, seed: int, updates: int) -> dict[str, Any]:
    """Positive head of the bandit under the rule."""
    data = draw(20_000, torch.Generator().manual_seed(seed))
    training = train(data, [Head(rule, scale=BETA)], updates, seed, batch_size=SCENES * GROUP)
    count = sum(p.numel() for p in training.policies.parameters())
    return {"norm": training.gradient_norm[:, 0] / count**0.5, "loss": training.loss[:, 0], "parameters": count}


def _vla(rule: str, seed: int, updates: int) -> dict[str, Any]:
    """Positive adapter of a small DP-VLA: plans of eight poses, each a mode of its scene, gains known."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = DPVLA.tiny(DPVLAConfig.tiny(width=32, depth=2, text_layers=1, text_hidden=32, image_size=32)).eval()
        with torch.no_grad():  # fresh heads start with closed gates, through which no adapter has a gradient
            for parameter in backbone.parameters():
                if not parameter.any():
                    parameter.normal_(0, 0.1)
    backbone.freeze()
    pair = AdapterPair(backbone, scope="head", rank=8, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    positive = list(pair.parameters("positive"))
    optimizer = torch.optim.AdamW(pair.parameters(), lr=1e-3)
    norms, losses = [], []
    for _ in range(updates):
        x0, gain = _plans(backbone.action.horizon, backbone.action.dim, generator)
        contexts = pair.encode(_scenes(generator))
        noise = torch.randn(x0.shape, generator=generator)
        t = backbone.schedule.sample_t(len(x0), generator=generator)
        loss, scalars = dichotomous_loss(
            pair.denoiser(contexts, GROUP),
            backbone.schedule,
            backbone.prediction,
            x0,
            gain,
            noise,
            t,
            beta=BETA,
            rule=rule,
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norms.append(torch.stack([p.grad.norm() for p in positive if p.grad is not None]).norm())
        losses.append(scalars["loss_positive"])
        optimizer.step()
    count = sum(p.numel() for p in positive)
    return {"norm": torch.stack(norms) / count**0.5, "loss": torch.stack(losses), "parameters": count}


def _plans(horizon: int, dim: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(scenes * group, horizon, dim) plans bending one of eight ways, and their gains with noise."""
    side = torch.randint(8, (SCENES * GROUP,), generator=generator) / 3.5 - 1
    along = torch.linspace(0.1, 1, horizon)
    plans = torch.zeros(len(side), horizon, dim)
    plans[..., 0], plans[..., 1] = along, side[:, None] * along**2
    plans = plans + 0.05 * torch.randn(plans.shape, generator=generator)
    return plans, 1.4 * side + 0.3 * torch.randn(len(side), generator=generator)


def _scenes(generator: torch.Generator) -> dict[str, Tensor]:
    return {
        "pixels": torch.randint(0, 256, (SCENES, 3, 3, 32, 32), generator=generator, dtype=torch.uint8),
        "input_ids": torch.randint(4, 200, (SCENES, 40), generator=generator),
        "proprio": torch.randn(SCENES, 12, generator=generator),
    }


def _facts(curve: dict[str, Any]) -> dict[str, Any]:
    norm, loss = curve["norm"].double(), curve["loss"].double()
    half = len(loss) // 2
    return {
        "parameters": curve["parameters"],
        "median": float(norm[half:].median()),
        "tail": float(norm[half:].quantile(0.99) / norm[half:].median()),
        "first": float(loss[:10].mean()),
        "last": float(loss[-max(1, len(loss) // 10) :].mean()),
        "variation": float(loss[half:].std() / loss[half:].mean()),
    }


def _plot(curves: dict[str, dict[str, Any]], key: str, label: str) -> str:
    from matplotlib.ticker import LogLocator, NullFormatter

    with charts.inline_figure(10.5, 3.6, key) as (figure, svg):
        panels = figure.subplots(1, 2, sharey=True)
        for place, (axes, network) in enumerate(zip(panels, ("MLP", "VLA"))):
            mine = {name: curve for name, curve in curves.items() if name.startswith(network)}
            for (name, curve), (color, dash) in zip(mine.items(), STYLES):
                values = curve[key].double()
                if key == "loss":
                    values = values / values[:10].mean()
                axes.plot(values.tolist(), color=color, linestyle=dash, linewidth=1, label=name.split(", ", 1)[1])
            axes.set_yscale("log")
            if key == "loss":  # about a decade: plain numbers read better than powers
                axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axes.yaxis.set_major_formatter("{x:g}")
                axes.yaxis.set_minor_formatter(NullFormatter())
            axes.set_title(network, fontsize=10)
            axes.set_xlabel("update")
            axes.set_ylabel(label if place == 0 else "")
            axes.legend(frameon=False, fontsize=9)
        return svg(f"{label} of the MLP and of the VLA")
