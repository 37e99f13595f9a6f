"""HTML pages that need nothing but themselves; their looks are the report's."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

STYLE = """
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
img { max-width: 100%; }
@media print { body { max-width: none; padding: 0; font-size: 12px; } tr { break-inside: avoid; } }
"""


def page(title: str, parts: Sequence[str]) -> str:
    """A whole page. title: text.  parts: HTML, from the heading on."""
    head = [
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>",
    ]
    return "\n".join([*head, *parts, "</body></html>\n"])


def table(head: Sequence[str], rows: Sequence[Sequence[str]], right: set[int], first: str = "") -> str:
    """HTML of a table of texts. right: places of the columns of figures.  first: class of the first column's cells."""

    def cells(row: Sequence[str], tag: str) -> str:
        kinds = ["n" if place in right else first if place == 0 and tag == "td" else "" for place in range(len(row))]
        return "".join(f'<{tag} class="{kind}">{escape(cell)}</{tag}>' for kind, cell in zip(kinds, row))

    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{cells(head, "th")}</tr></thead><tbody>{body}</tbody></table></div>'
