"""The page of an experiment: a question, the answer as it came out, figures, the numbers behind them.

One static file in the style of the evaluation report; the numbers are in `numbers.json` beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


@dataclass(frozen=True)
class Figure:
    """title: what it shows; svg: inline; caption: what to see."""

    title: str
    svg: str
    caption: str

    @property
    def markup(self) -> dict[str, Any]:
        return {"title": self.title, "svg": Markup(self.svg), "caption": self.caption}


@dataclass(frozen=True)
class Table:
    """rows: cells as shown."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""


@dataclass(frozen=True)
class Page:
    """What an experiment returns. numbers: JSON-ready, everything measured."""

    title: str
    question: str
    answer: Sequence[str]
    world: str
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    numbers: dict[str, Any] = field(default_factory=dict)


def signed(value: float, digits: int = 2) -> str:
    return f"{value:+z.{digits}f}".replace("-", "−")


def percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.1f} %"


def unbroken(text: str) -> str:
    """No line ends between a name and its value, or a number and its unit."""
    return text.replace(" = ", "\u00a0=\u00a0").replace(" %", "\u00a0%")


def render(name: str, page: Page, made: Sequence[tuple[str, str]]) -> str:
    environment = Environment(
        loader=ChoiceLoader([PackageLoader("dipole_vla.rl.experiments"), PackageLoader("dipole_vla.report")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["unbroken"] = unbroken
    assert environment.loader is not None
    style = Markup(environment.loader.get_source(environment, "style.css")[0])
    shown = {
        "title": page.title,
        "question": page.question,
        "answer": list(page.answer),
        "world": page.world,
        "figures": [figure.markup for figure in page.figures],
        "tables": page.tables,
    }
    return environment.get_template("experiment.html.j2").render(name=name, page=shown, style=style, made=made)
