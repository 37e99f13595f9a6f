"""Every rule that code or tests cite stands on the page that numbers the rules: "metric 6.2", "metric 10.1 (4)"."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("dipole_vla", "navsim_adapter", "tests", "benchmarks")
PAGE = (ROOT / "docs" / "metric.md").read_text()

_ITEMS = r"\([0-9a-z]\)"
_PLACE = rf"\d+(?:\.\d+)?(?:\s{_ITEMS}(?:(?:, | and | to |-){_ITEMS})*)?"
_CITED = re.compile(rf"\b[Mm]etric\s({_PLACE}(?:(?:, | and | or | to ){_PLACE})*)")


def places_on(page: str) -> set[str]:
    """Headings ("6", "6.2") and the items below them ("6.2 (3)", "4.4 (b)")."""
    found, section = set(), ""
    for line in page.splitlines():
        if heading := re.match(r"#+ (\d+(?:\.\d+)?) ", line):
            section = heading[1]
            found.add(section)
        elif item := re.match(r"(\d+)\. |- \(([a-z])\) ", line):
            found.add(f"{section} ({item[1] or item[2]})")
    return found


def cited_in(text: str) -> Iterator[str]:
    """Places cited in a source text; a citation may run over a line of a docstring or comment."""
    for citation in _CITED.finditer(re.sub(r"\s+(?:# )?", " ", text)):
        for place in re.findall(_PLACE, citation[1]):
            section, *items = re.findall(r"[\d.]+(?![)\d.])|(?<=\()[0-9a-z](?=\))", place)
            yield section
            yield from (f"{section} ({item})" for item in items)


def missing_from(page: str, text: str) -> set[str]:
    return set(cited_in(text)) - places_on(page)


SOURCES = sorted(
    path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py") if path.name != Path(__file__).name
)


def test_every_cited_rule_is_on_the_page_of_the_metric():
    missing = {
        str(path.relative_to(ROOT)): places for path in SOURCES if (places := missing_from(PAGE, path.read_text()))
    }
    assert not missing


def test_the_sources_do_cite_rules_and_items():
    cited = [place for path in SOURCES for place in cited_in(path.read_text())]
    assert len(cited) > 100
    assert {"3", "6.12", "6.2 (2)", "4.4 (b)", "10.1 (4)"} <= set(cited)


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("as rule metric 6.2 says", set()),
        ("metric 6.14", {"6.14"}),
        ("(metric 6.6, 6.99, 7.1)", {"6.99"}),
        ("Metric 11 and 3.4", {"11"}),
        ("metric 10.1 (4)", set()),
        ("metric 10.1 (8)", {"10.1 (8)"}),
        ("metric 4.4 (c) to (f)", {"4.4 (f)"}),
        ("one line, and the next (metric\n    # 6.77), end", {"6.77"}),
        ("the metric has 41 states", set()),
    ],
)
def test_a_made_up_number_is_seen(text, missing):
    assert missing_from(PAGE, text) == missing


def test_no_document_outside_the_repository_is_cited():
    outside = re.compile(r"\b[Ss]pec (?:sections? )?\d|shared/|\bdipole\.md|\benvironment\.md")
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    assert not [path for path in [*SOURCES, *pages] if outside.search(path.read_text())]


def equations_in(text: str) -> set[int]:
    """Numbers behind "Eq.", one or a range."""
    spans = re.findall(r"\bEq\. (\d+)(?:[-–](\d+))?", text)
    return {number for first, last in spans for number in range(int(first), int(last or first) + 1)}


def test_every_cited_equation_is_on_the_page_of_the_algorithm():
    page = (ROOT / "docs" / "algorithm.md").read_text()
    cited = {number for path in SOURCES for number in equations_in(path.read_text())}
    assert {7, 9, 10} <= cited <= equations_in(page)
    assert not equations_in("see Eq. 12-13") <= equations_in(page)
