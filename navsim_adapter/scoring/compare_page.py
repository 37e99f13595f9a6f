"""A comparison of score tables as one HTML page that needs nothing but itself; its looks are the report's."""

from __future__ import annotations

from html import escape

import numpy as np

from navsim_adapter.scoring.compare import Comparison, closing_lines, means_of, signed, table_of
from navsim_adapter.scoring.foreign_table import basis_said
from navsim_adapter.scoring.means import SHORT

MOST = 200  # rows that are listed
_STYLE = """
:root { color-scheme: light dark; --ink: #1b2027; --soft: #5b6470; --line: #d9dce1; --paper: #ffffff; --mark: #fff5d6;
  --good: #14713f; --bad: #b42318; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7ec; --soft: #a0a8b4; --line: #363c45; --paper: #15181d;
  --mark: #3a3318; --good: #57c98b; --bad: #ff8a7a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 28px 32px 60px; max-width: 1180px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 15px; font-weight: 600; margin: 0 0 14px; color: var(--soft); }
h2 { font-size: 20px; margin: 44px 0 6px; padding-top: 14px; border-top: 1px solid var(--line); }
p { margin: 6px 0 12px; max-width: 82ch; } .soft { color: var(--soft); } .claim { font-size: 19px; font-weight: 600; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13.5px; width: 100%; }
th { text-align: left; font-weight: 600; color: var(--soft); border-bottom: 1px solid var(--ink); padding: 6px 8px; }
td { border-bottom: 1px solid var(--line); padding: 6px 8px; vertical-align: top; overflow-wrap: anywhere; }
th.n, td.n { text-align: right; white-space: nowrap; } td.r { white-space: nowrap; font-weight: 600; }
td.off { background: var(--mark); } td small { display: block; color: var(--soft); }
.good { color: var(--good); } .bad { color: var(--bad); }
@media print { body { max-width: none; padding: 0; font-size: 12px; } tr { break-inside: avoid; } }
"""


def page_of(found: Comparison) -> str:
    """The page as text."""
    count, total = len(found.differing), len(found.pair.a)
    claim = f"{count} of {total} rows differ" if count else f"all {total} rows agree"
    parts = [
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>Two score tables: {claim}</title><style>{_STYLE}</style></head><body>",
        f'<h1>Comparison of two score tables</h1><p class="claim">{claim}.</p>',
        f"<p>Mean score over the rows in both: {escape(means_of(found))}.</p>",
        *(f"<p>{escape(line)}</p>" for line in closing_lines(found)),
        "<h2>The tables</h2>",
        _table(["", "file", "rows", "basis"], [_about(name, found) for name in "AB"], {2}),
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
            _table(["reason", "rows", "mean", "largest", "columns", "evidence"], shown, {1, 2, 3}, first="r"),
        ]
    if count:
        parts += ["<h2>Rows</h2>", _rows(found)]
    return "\n".join([*parts, "</body></html>\n"])


def _about(name: str, found: Comparison) -> list[str]:
    table = found.a if name == "A" else found.b
    return [name, str(table.path), str(len(table)), basis_said(table)]


def _table(head: list[str], rows: list[list[str]], right: set[int], first: str = "") -> str:
    def cells(row: list[str], tag: str) -> str:
        kinds = ["n" if place in right else first if place == 0 and tag == "td" else "" for place in range(len(row))]
        return "".join(f'<{tag} class="{kind}">{escape(cell)}</{tag}>' for kind, cell in zip(kinds, row))

    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{cells(head, "th")}</tr></thead><tbody>{body}</tbody></table></div>'


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
    table = f"<table><thead><tr>{''.join(head)}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    lead = '<p class="soft">What differs is marked: A above, B below in small print.</p>'
    return f'{lead}<div class="wide">{table}</div>{note}'


def _figure(figure: float) -> str:
    return "-" if np.isnan(figure) else f"{figure:.4g}"
