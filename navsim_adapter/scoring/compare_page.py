"""A comparison of score tables as one HTML page that needs nothing but itself; its looks are the report's."""

from __future__ import annotations

from html import escape

import numpy as np

from navsim_adapter.foundation.page import page, table
from navsim_adapter.scoring.compare import Comparison, closing_lines, means_of, signed, table_of
from navsim_adapter.scoring.foreign_table import basis_said
from navsim_adapter.scoring.means import SHORT

MOST = 200  # rows that are listed


def page_of(found: Comparison) -> str:
    """The page as text."""
    count, total = len(found.differing), len(found.pair.a)
    claim = f"{count} of {total} rows differ" if count else f"all {total} rows agree"
    parts = [
        f'<h1>Comparison of two score tables</h1><p class="claim">{claim}.</p>',
        f"<p>Mean score over the rows in both: {escape(means_of(found))}.</p>",
        *(f"<p>{escape(line)}</p>" for line in closing_lines(found)),
        "<h2>The tables</h2>",
        table(["", "file", "rows", "basis"], [_about(name, found) for name in "AB"], {2}),
    ]
    if found.findings:
        shown = [
            [row[key] for key in ("reason", "rows", "mean", "largest", "columns", "evidence")]
            for row in table_of(found)
        ]
        parts += [
            "<h2>Reasons</h2>",
            '<p class="soft">Change of the score from A to B, × 100. Each reason is decided by the evidence beside it; '
            "a row may have two.</p>",
            table(["reason", "rows", "mean", "largest", "columns", "evidence"], shown, {1, 2, 3}, first="r"),
        ]
    if count:
        parts += ["<h2>Rows</h2>", _rows(found)]
    return page(f"Two score tables: {claim}", parts)


def _about(name: str, found: Comparison) -> list[str]:
    table = found.a if name == "A" else found.b
    return [name, str(table.path), str(len(table)), basis_said(table)]


def _rows(found: Comparison) -> str:
    """The rows that differ, the largest change of the score first; what differs is marked, A above B."""
    pair = found.pair
    moved = np.nan_to_num(pair.b.figures["score"] - pair.a.figures["score"])
    order = sorted(found.differing.tolist(), key=lambda row: -abs(moved[row]))[:MOST]
    reasons: dict[int, list[str]] = {}
    for finding in found.findings:
        for row in finding.rows:
            reasons.setdefault(row, []).append(finding.reason)
    names = ["score", *pair.names]
    body = []
    for row in order:
        token, planner = pair.a.keys[row]
        tone = "good" if moved[row] > 0 else "bad" if moved[row] < 0 else ""
        cells = [f"<td>{escape(token)}<small>{escape(planner)}</small></td>"]
        cells.append(f"<td>{escape(', '.join(reasons.get(row, ())))}</td>")
        cells.append(f'<td class="n {tone}">{signed(float(moved[row]))}</td>')
        for name in names:
            mark = " off" if pair.apart[name][row] else ""
            values = [_figure(table.figures[name][row]) for table in (pair.a, pair.b)]
            text = values[0] if not mark else f"{values[0]}<small>{values[1]}</small>"
            cells.append(f'<td class="n{mark}">{text}</td>')
        body.append(f"<tr>{''.join(cells)}</tr>")
    head = ["<th>scene, planner</th><th>reason</th>", '<th class="n">change</th>']
    head += [f'<th class="n">{escape(SHORT.get(name, name))}</th>' for name in names]
    left = len(found.differing) - len(order)
    note = f'<p class="soft">and {left} more rows that differ less.</p>' if left else ""
    listed = f"<table><thead><tr>{''.join(head)}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    lead = '<p class="soft">What differs is marked: A above, B below in small print.</p>'
    return f'{lead}<div class="wide">{listed}</div>{note}'


def _figure(figure: float) -> str:
    return "-" if np.isnan(figure) else f"{figure:.4g}"
