"""(a) exp(beta G) against sigma(beta G) over beta: loss variance, effective sample, gradients, return."""

from __future__ import annotations

from typing import Any

import torch

from dipole_vla.objective import MAX_EXPONENTIAL_WEIGHT, RULES, Rule
from dipole_vla.report import charts
from dipole_vla.rl.experiments.bandit import Training, behaviour, draw, train
from dipole_vla.rl.experiments.page import Figure, Page, Table, signed
from dipole_vla.rl.heads import Head

BETAS = (0.5, 1.0, 3.0, 10.0, 30.0)
UNCLIPPED = Rule(lambda advantage, beta, shift=0.0: (beta * advantage + shift).exp())
FAMILIES: dict[str, tuple[Rule, str]] = {
    "exp, unclipped": (UNCLIPPED, "positive"),
    f"exp, clipped at {MAX_EXPONENTIAL_WEIGHT:g}": (RULES["exponential"], "positive"),
    "σ, positive": (RULES["dichotomous"], "positive"),
    "σ, negative": (RULES["dichotomous"], "negative"),
}
STYLES: tuple[tuple[str, str, Any], ...] = (
    (charts.ORANGE, "D", (0, (1, 1))),
    (charts.GREY, "s", (0, (4, 2))),
    (charts.BLUE, "o", "solid"),
    (charts.GREEN, "^", (0, (6, 2, 1, 2))),
    (charts.INK, "P", "solid"),
)


def run(seed: int = 0, updates: int = 4000) -> Page:
    data = draw(20_000, torch.Generator().manual_seed(seed))
    heads = [Head(rule, sign, beta) for rule, sign in FAMILIES.values() for beta in BETAS]  # type: ignore[arg-type]
    training = train(data, [Head(), *heads], updates, seed)
    rows = [_row(training, family, beta, 1 + number) for number, (family, beta) in enumerate(_names())]
    for row in rows:
        row.update(_returns(training, row["family"], row["beta"]))
    base = behaviour(training.policies, 0)
    last = {row["family"]: row for row in rows if row["beta"] == BETAS[-1]}
    unclipped, positive = last["exp, unclipped"], last["σ, positive"]
    answer = [
        f"At β = {BETAS[-1]:g} one unclipped exponential weight keeps an effective sample of {_weighing(unclipped)} "
        f"(99th percentile over median), the sigmoid {_weighing(positive)}.",
        f"Best mean gain over β: exp unclipped {_best(rows, 'exp, unclipped', 'gain')}, clipped "
        f"{_best(rows, list(FAMILIES)[1], 'gain')}, DIPOLE at ω = 1 {_best(rows, 'σ, positive', 'gain_omega_1')}; "
        f"imitation {signed(base.gain)}.",
    ]
    return Page(
        "exp(βG) against σ(βG)",
        "Does the bounded weight train stably where an exponential one does not, and what does it return?",
        answer,
        f"contextual bandit, {updates} updates, all {1 + len(heads)} networks on the same batches",
        [
            Figure(
                "Variance of the loss",
                _lines(rows, "loss_variance", "variance of the training loss", is_log=True, name="variance"),
                "Variance over the second half of the training, batch to batch. Missing marks: not finite. The two "
                "signs of σ lie on each other.",
            ),
            Figure(
                "Effective sample",
                _lines(rows, "effective", "effective sample fraction", is_log=True, name="effective"),
                "Share of a batch that carries the weights, (Σw)² / (n Σw²): 1 when all count alike.",
            ),
            Figure(
                "Return",
                _lines([*rows, *_guided(rows)], "gain", "mean gain G", is_log=False, name="gain"),
                "Mean true gain of the trained policy, without choice among candidates; DIPOLE is the pair of σ at "
                "ω = 1. The negative one is meant to be bad.",
            ),
        ],
        [_table(rows)],
        {"updates": updates, "behaviour_gain": base.gain, "rows": rows},
    )


def _guided(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The pair at omega 1 as a family of its own, for the figure of returns."""
    return [
        {"family": "DIPOLE, ω = 1", "beta": row["beta"], "gain": row["gain_omega_1"]}
        for row in rows
        if row["family"] == "σ, positive"
    ]


def _weighing(row: dict[str, Any]) -> str:
    """Effective sample and gradient tail of a row, in words."""
    tail = "gradients that overflow" if row["tail"] is None else f"a gradient tail of {row['tail']:.3g}"
    return f"{_percent(row['effective'])} of the batch and {tail}"


def _names() -> list[tuple[str, float]]:
    return [(family, beta) for family in FAMILIES for beta in BETAS]


def _row(training: Training, family: str, beta: float, head: int) -> dict[str, Any]:
    loss = training.settled(training.loss)[:, head].double()
    norm = training.settled(training.gradient_norm)[:, head].double()
    return {
        "family": family,
        "beta": beta,
        "head": head,
        "loss_mean": _finite(loss.mean()),
        "loss_variance": _finite(loss.var()),
        "tail": _finite(norm.quantile(0.99) / norm.median()) if torch.isfinite(norm).all() else None,
        "effective": _finite(training.settled(training.effective)[:, head].mean()),
    }


def _returns(training: Training, family: str, beta: float) -> dict[str, float | None]:
    """Gain of the head alone; for the positive head also guided away from its negative at omega 1."""
    names = _names()
    head = 1 + names.index((family, beta))
    alone = behaviour(training.policies, head)
    found = {"gain": _finite(alone.gain), "off_support": _finite(alone.off_support)}
    if family == "σ, positive":
        guided = behaviour(training.policies, head, 1 + names.index(("σ, negative", beta)), 1.0)
        found |= {"gain_omega_1": _finite(guided.gain), "off_support_omega_1": _finite(guided.off_support)}
    return found


def _lines(rows: list[dict[str, Any]], key: str, label: str, is_log: bool, name: str) -> str:
    with charts.inline_figure(9, 4.0, name) as (figure, svg):
        axes = figure.add_subplot()
        for family, (color, marker, dash) in zip(dict.fromkeys(row["family"] for row in rows), STYLES):
            mine = [row for row in rows if row["family"] == family and row[key] is not None]
            axes.plot(
                [row["beta"] for row in mine],
                [row[key] for row in mine],
                color=color,
                marker=marker,
                linestyle=dash,
                label=family,
            )
        axes.set_xscale("log")
        axes.set_xticks(BETAS, [f"{beta:g}" for beta in BETAS])
        if is_log:
            axes.set_yscale("log")
        axes.set_xlabel("inverse temperature β")
        axes.set_ylabel(label)
        axes.grid(axis="y", linewidth=0.4, alpha=0.35)
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
        return svg(f"{label} against beta")


def _table(rows: list[dict[str, Any]]) -> Table:
    columns = (
        "weight",
        "β",
        "mean loss",
        "variance",
        "gradient p99 / median",
        "effective sample",
        "mean gain",
        "off the data",
        "gain at ω = 1",
    )
    cells = [
        (
            row["family"],
            f"{row['beta']:g}",
            _number(row["loss_mean"]),
            _number(row["loss_variance"]),
            _number(row["tail"]),
            _percent(row["effective"]),
            _gain(row["gain"]),
            _percent(row["off_support"]),
            _gain(row["gain_omega_1"]) if "gain_omega_1" in row else "–",
        )
        for row in rows
    ]
    return Table("All numbers", columns, cells, "“not finite”: the training overflowed.")


def _best(rows: list[dict[str, Any]], family: str, key: str) -> str:
    mine = [(row[key], row["beta"]) for row in rows if row["family"] == family and row.get(key) is not None]
    return f"{signed(max(mine)[0])} (β = {max(mine)[1]:g})" if mine else "not finite"


def _finite(value: Any) -> float | None:
    value = float(value)
    return value if abs(value) < float("inf") else None


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3g}"


def _gain(value: float | None) -> str:
    return "not finite" if value is None else signed(value, 3)


def _percent(value: float | None) -> str:
    return "not finite" if value is None else f"{100 * value:.3g} %"
