"""What came out, as one HTML page that needs nothing but itself: figures, films, all drives."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from navsim_adapter.closed_loop.summary import FIGURES, Rows, said
from navsim_adapter.foundation.page import page, table

NAMES = {
    "score": "score",
    "at_fault_collision": "at-fault collision",
    "off_road": "off the road",
    "wrong_way": "wrong way",
    "red_light": "red light",
    "progress": "progress, of the human's",
    "progress_pdm_closed": "progress, of PDM-Closed's",
    "comfort": "comfort",
}
_COLUMNS = ("log", "seed", "layout", "situation", "seconds", *FIGURES, "held")


def page_of(content: Mapping[str, Any], rows: Rows, films: Sequence[tuple[str, Path]]) -> str:
    """content: of `summary.json`.  films: (caption, file)."""
    figures = content["figures"]
    lead = (
        f"{content['drives']} drives of {content['steps'] / 10:g} s in {content['logs']} logs, a plan every "
        f"{content['replan'] / 10:g} s; the others {'react' if content['traffic'] == 'idm' else 'replay the log'}."
    )
    parts = [
        f"<h1>Closed loop: {escape(content['driver'])}</h1>",
        f'<p class="claim">Score {said(figures["score"])}</p>',
        f"<p>{lead}</p>",
        '<p class="soft">Score: 0 after an at-fault collision or off the road, else progress relative to the human, at '
        "most 1. Shares of drives or means, × 100, with 95 % intervals over whole logs.</p>",
        _figures(content),
    ]
    if films:
        parts += ["<h2>Films</h2>", *(_film(caption, file) for caption, file in films)]
    parts += ["<h2>Drives</h2>", _drives(rows)]
    return page(f"Closed loop: {content['driver']}", parts)


def _figures(content: Mapping[str, Any]) -> str:
    head, rows = ["", content["driver"]], [[NAMES[name], said(content["figures"][name])] for name in FIGURES]
    if other := content.get("other"):
        head += [other["driver"], "difference, drive by drive"]
        for row, name in zip(rows, FIGURES):
            row += [said(other["figures"][name]), said(other["gain"][name], "+")]
    return table(head, rows, set(range(1, len(head))))


def _film(caption: str, file: Path) -> str:
    data = base64.b64encode(file.read_bytes()).decode()
    return f'<p>{escape(caption)}</p><img alt="{escape(caption)}" src="data:image/webp;base64,{data}">'


def _drives(rows: Rows) -> str:
    worst = sorted(rows, key=lambda row: (row["score"], row["log"], row["seed"]))
    shown = [[_cell(row[name]) for name in _COLUMNS] for row in worst]
    return table([NAMES.get(name, name) for name in _COLUMNS], shown, set(range(4, len(_COLUMNS))))


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else ""
    return f"{value:.2f}" if isinstance(value, float) else str(value)
