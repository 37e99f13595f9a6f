"""`navsim-adapter compare` on pairs of tables made for it, each with one known reason, and on three with another."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from navsim_adapter.cli import main
from navsim_adapter.metric.aggregate import epdms, pdms
from navsim_adapter.scoring.compare import compare
from navsim_adapter.scoring.foreign_table import read_scores, sickness
from navsim_adapter.scoring.scorer import BEFORE_FIX, SUB_SCORES, columns_of
from navsim_adapter.scoring.table import ScoreTable, write_table
from tests.navsim_adapter.score_world import run, score, write_world
from tests.shared import SHARED, needs_shared

Figures = dict[str, np.ndarray]
SUBS = {metric: tuple(own) for metric, own in SUB_SCORES.items()}
DATA = Path(__file__).resolve().parents[1] / "data" / "navsim"


def wanted_score(figures: Mapping[str, np.ndarray], row: int, prefix: str = "") -> float:
    """The score of a row of sub-scores, by the formula of its metric."""
    is_epdms = "history_comfort" in figures
    names = SUBS["epdms"] if is_epdms else SUBS["pdms"][:5]
    own = [figures[prefix + name if prefix + name in figures else name][row] for name in names]
    return epdms(*own) if is_epdms else pdms(*own)


class Table:
    """Keys and figures of a table, to be changed and written as anybody's."""

    def __init__(self, keys: list[tuple[str, str]], figures: Figures):
        self.keys, self.figures = keys, {name: values.copy() for name, values in figures.items()}

    def copy(self) -> Table:
        return Table(list(self.keys), self.figures)

    def settle(self) -> Table:
        """The scores follow from the sub-scores."""
        self.figures["score"] = np.array([wanted_score(self.figures, row) for row in range(len(self.keys))])
        return self

    def take(self, rows: list[int]) -> Table:
        return Table([self.keys[row] for row in rows], {name: own[rows] for name, own in self.figures.items()})

    def write(self, path: Path, *, official: str | None = None) -> Path:
        """Our rows; or, of one planner, the devkit's layout with its closing average."""
        if official is None:
            labels = {"token": [token for token, _ in self.keys], "name": [name for _, name in self.keys]}
            write_table(path, ScoreTable(labels, tuple(self.figures), np.column_stack([*self.figures.values()])))
            return path
        family = "epdms" if "history_comfort" in self.figures else "pdms"
        names = (*SUBS[family], "score")
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["", "token", "valid", *names])
            rows = [row for row, (_, name) in enumerate(self.keys) if name == official]
            for place, row in enumerate(rows):
                cells = [self.figures[name][row] for name in names]
                writer.writerow([place, self.keys[row][0], True, *("" if np.isnan(cell) else cell for cell in cells)])
            means = [
                "" if np.isnan(own).all() else np.nanmean(own) for own in (self.figures[name][rows] for name in names)
            ]
            label = "average_all_frames" if family == "epdms" else "average"
            writer.writerow([len(rows), label, True, *means])
        return path


def of(metric: str) -> Table:
    """The official figures of the committed set, those before the filter beside them."""
    table = read_scores(DATA / f"scores_{'v2' if metric == 'epdms' else 'v1'}.csv")
    names = [name for name in columns_of(metric) if name != "score_unfiltered"]
    own = Table(list(table.keys), {name: table.figures[name] for name in names})
    if metric == "epdms":
        raw = [wanted_score(own.figures, row, "unfiltered_") for row in range(len(own.keys))]
        own.figures["score_unfiltered"] = np.array(raw)
    return own


@pytest.fixture(scope="module")
def after() -> Table:
    return of("epdms")


@pytest.fixture(scope="module")
def old() -> Table:
    return of("pdms")


def plain(table: Table) -> Table:
    """Only the devkit's columns: sub-scores and score."""
    names = [*SUBS["epdms" if "history_comfort" in table.figures else "pdms"], "score"]
    return Table(table.keys, {name: table.figures[name] for name in names})


def before_fix(table: Table) -> Table:
    other = table.copy()
    other.figures["score"] = np.array(
        [wanted_score(table.figures, row, "unfiltered_") for row in range(len(table.keys))]
    )
    return other


def filter_off(table: Table) -> Table:
    other = table.copy()
    for name in SUBS["epdms"][:8]:
        other.figures[name] = table.figures[f"unfiltered_{name}"]
    return other.settle()


def reference_moved(table: Table, share: float = 0.3) -> Table:
    """Another PDM-Closed in some scenes: progress changes by one factor for all that are not at the cap."""
    other = table.copy()
    tokens = list(dict.fromkeys(token for token, _ in table.keys))
    for token in tokens[: max(int(share * len(tokens)), 1)]:
        own = [row for row, key in enumerate(table.keys) if key[0] == token]
        progress = other.figures["ego_progress"]
        progress[own] = np.where(progress[own] < 1, progress[own] * 0.8, 1.0)
    return other.settle()


def unpaired(table: Table) -> Table:
    other = table.copy()
    other.figures["two_frame_extended_comfort"][:] = np.nan
    return other.settle()


def paired_otherwise(table: Table) -> Table:
    other = table.copy()
    comfort = other.figures["two_frame_extended_comfort"]
    rows = np.flatnonzero(~np.isnan(comfort))[::3]
    comfort[rows] = 1 - comfort[rows]
    return other.settle()


def other_traffic(table: Table) -> Table:
    """Another traffic: contacts come and go, and progress is measured against another reference."""
    other, random = table.copy(), np.random.default_rng(1)
    rows = random.choice(len(table.keys), len(table.keys) // 4, replace=False)
    for name in ("no_at_fault_collisions", "time_to_collision_within_bound"):
        own = rows[random.random(len(rows)) < 0.7]
        other.figures[name][own] = 1 - np.round(other.figures[name][own])
    other.figures["ego_progress"][rows] *= random.uniform(0.6, 1.0, len(rows))
    return other.settle()


def poisoned(table: Table) -> Table:
    """A run whose every roll-out is kilometres off: what the filter can hide is 1, comfort is gone."""
    other = table.copy()
    for name in ("drivable_area_compliance", "driving_direction_compliance", "lane_keeping"):
        other.figures[name][:] = 1.0
    other.figures["history_comfort"][:] = 0.0
    return other.settle()


def poisoned_pdms(table: Table) -> Table:
    other = table.copy()
    for name in ("drivable_area_compliance", "comfort"):
        other.figures[name][:] = 0.0
    return other.settle()


def without_filter_poisoned(table: Table) -> Table:
    other = table.copy()
    for name in ("drivable_area_compliance", "history_comfort"):
        other.figures[name][:] = 0.0
    return other.settle()


def resampled(table: Table) -> Table:
    """Nearly the same plans: progress moves by a centimetre here and there, a verdict flips now and then."""
    other, random = table.copy(), np.random.default_rng(2)
    progress = other.figures["ego_progress"]
    free = (progress > 0) & (progress < 1)
    progress[free] = np.clip(progress[free] + random.normal(0, 2e-3, free.sum()), 1e-3, 1 - 1e-6)
    for name in ("history_comfort" if "history_comfort" in other.figures else "comfort", "drivable_area_compliance"):
        rows = random.choice(len(progress), 3, replace=False)
        other.figures[name][rows] = 1 - other.figures[name][rows]
    return other.settle()


def fewer_rows(table: Table) -> Table:
    return table.take(list(range(0, len(table.keys), 2)))


def other_weights(table: Table) -> Table:
    other = table.copy()
    other.figures["score"] = table.figures["score"] * 14 / 16
    return other


def other_thresholds(table: Table) -> Table:
    """Another limit of comfort: verdicts flip that nothing else explains."""
    other = table.copy()
    name = "history_comfort" if "history_comfort" in other.figures else "comfort"
    other.figures[name][::4] = 1 - other.figures[name][::4]
    return other.settle()


def other_roads(table: Table) -> Table:
    """Another map: the drivable area is left and kept elsewhere."""
    other, random = table.copy(), np.random.default_rng(4)
    other.figures["drivable_area_compliance"] = (random.random(len(table.keys)) < 0.5).astype(float)
    return other.settle()


def other_progress(table: Table) -> Table:
    """Progress that no one reference explains."""
    other, random = table.copy(), np.random.default_rng(5)
    other.figures["ego_progress"] *= random.uniform(0.5, 1.0, len(table.keys))
    return other.settle()


def zeroed(table: Table) -> Table:
    """Scores set to 0 here and there."""
    other = table.copy()
    other.figures["score"][::7] = 0.0
    return other


def other_planner(table: Table) -> Table:
    other, random = table.copy(), np.random.default_rng(3)
    for name in SUBS["epdms"][:8]:
        own = other.figures[name]
        other.figures[name] = own[random.permutation(len(own))]
    return other.settle()


PAIRS: dict[str, tuple[str, Callable[[Table], Table], str]] = {
    "the devkit before its fix": ("basis", lambda t: plain(before_fix(t)), "epdms"),
    "a table that also says what was before": ("basis", before_fix, "epdms"),
    "the filter off": ("human filter", lambda t: plain(filter_off(t)), "epdms"),
    "another reference": ("carried state", lambda t: plain(reference_moved(t)), "epdms"),
    "another reference in PDMS": ("carried state", reference_moved, "pdms"),
    "no pairs of frames": ("two-frame pairing", lambda t: plain(unpaired(t)), "epdms"),
    "other pairs of frames": ("two-frame pairing", paired_otherwise, "epdms"),
    "other road users": ("traffic", lambda t: plain(other_traffic(t)), "epdms"),
    "a failed fit": ("poisoned cache", lambda t: plain(poisoned(t)), "epdms"),
    "a failed fit, filter off": ("poisoned cache", lambda t: plain(without_filter_poisoned(t)), "epdms"),
    "a failed fit in PDMS": ("poisoned cache", poisoned_pdms, "pdms"),
    "another sampling": ("another trajectory sampling", lambda t: plain(resampled(t)), "epdms"),
    "another sampling in PDMS": ("another trajectory sampling", resampled, "pdms"),
    "half the rows": ("missing rows", fewer_rows, "epdms"),
    "other weights": ("unknown", lambda t: plain(other_weights(t)), "epdms"),
    "other weights in PDMS": ("unknown", other_weights, "pdms"),
    "another limit of comfort": ("unknown", lambda t: plain(other_thresholds(t)), "epdms"),
    "scores set to zero": ("unknown", lambda t: plain(zeroed(t)), "epdms"),
    "another map": ("unknown", lambda t: plain(other_roads(t)), "epdms"),
    "another progress": ("unknown", lambda t: plain(other_progress(t)), "epdms"),
    "another planner": ("unknown", lambda t: plain(other_planner(t)), "epdms"),
}


@pytest.mark.parametrize("case", PAIRS)
@pytest.mark.parametrize("is_turned", [False, True])
def test_the_reason_of_a_pair(after: Table, old: Table, tmp_path: Path, case: str, is_turned: bool) -> None:
    reason, change, metric = PAIRS[case]
    table = after if metric == "epdms" else old
    paths = [table.write(tmp_path / "a.csv"), change(table).write(tmp_path / "b.csv")]
    found = compare(*(paths[::-1] if is_turned else paths))
    assert {finding.reason for finding in found.findings} == {reason}, [f.evidence for f in found.findings]
    assert {row for finding in found.findings for row in finding.rows} == set(found.differing.tolist())


def test_the_devkit_s_table_is_compared_with_ours(
    after: Table, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One planner of many, no names, a closing average; two reasons at once."""
    name = after.keys[0][1]
    ours = after.write(tmp_path / "a.csv")
    theirs = before_fix(unpaired(after)).write(tmp_path / "b.csv", official=name)
    assert main(["compare", str(ours), str(theirs)]) == 2
    assert "--planner" in capsys.readouterr().err
    page = tmp_path / "page.html"
    assert main(["compare", str(ours), str(theirs), "--planner", name, "--out", str(page)]) == 0
    assert "two-frame pairing" in (said := capsys.readouterr().out)
    assert f"page: {page}" in said
    assert {"basis", "two-frame pairing"} <= {line.split("  ")[0] for line in said.splitlines()}
    assert "two-frame pairing" in page.read_text()
    assert read_scores(theirs).closing["average_all_frames"]["score"] > 0


def test_equal_tables_are_equal(after: Table, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours, same = after.write(tmp_path / "a.csv"), plain(after).write(tmp_path / "b.csv")
    assert main(["compare", str(ours), str(same)]) == 0
    assert "no row differs" in capsys.readouterr().out
    other = after.take([row for row, key in enumerate(after.keys) if key[0] == after.keys[0][0]])
    elsewhere = after.take([row for row, key in enumerate(after.keys) if key[0] != after.keys[0][0]])
    one, two = other.write(tmp_path / "c.csv"), elsewhere.write(tmp_path / "d.csv")
    assert main(["compare", str(one), str(two)]) == 2
    assert "no row is in both" in capsys.readouterr().err


def test_sound_tables_are_not_sick(
    after: Table, old: Table, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place, table in enumerate((after, old, plain(after), before_fix(after), filter_off(after))):
        assert sickness(read_scores(table.write(tmp_path / f"{place}.csv"))) is None
    assert main(["inspect", str(tmp_path / "0.csv"), "--verify"]) == 0
    assert "planners" in capsys.readouterr().out
    sick = poisoned(after).write(tmp_path / "sick.csv")
    assert main(["inspect", str(sick), "--verify"]) == 2
    assert "score the trajectories anew" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text", ["", "token,score\n", "a,b\n1,2\n", "token,name,no_at_fault_collisions,score\nt,a,1\n", "\0"]
)
def test_what_is_no_score_table_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    (tmp_path / "a.csv").write_text(text)
    assert main(["compare", str(tmp_path / "a.csv"), str(tmp_path / "a.csv")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_what_is_not_there_is_said_so(after: Table, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known = str(after.write(tmp_path / "a.csv"))
    for absent in (tmp_path / "absent.csv", tmp_path):
        assert main(["compare", known, str(absent)]) == 2
        assert f"{absent}: no such file" in capsys.readouterr().err


def test_a_table_that_a_spreadsheet_saved_is_the_same(after: Table, tmp_path: Path) -> None:
    known = after.write(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_text("\ufeff" + known.read_text() + "\n\n", encoding="utf-8")
    assert not compare(known, tmp_path / "b.csv").findings


def test_runs_of_the_scorer_say_what_they_were(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Traffic, sampling and basis stand in the JSON beside each table, in either layout."""
    data = write_world(tmp_path)
    basis, idm = ("--metric", BEFORE_FIX), ("--metric", "epdms", "--traffic", "idm")
    for name, options in (("log", ("--metric", "epdms")), ("old", basis), ("idm", idm)):
        assert score(data, tmp_path / f"{name}.csv", *options) == 0
    assert f"({BEFORE_FIX}, log-replay)" in capsys.readouterr().out
    assert run("score", "--data", data, "--split", "mini", "--trajectories", data / "t.npz", "--format", "official",
               "--metric", "epdms", "--out", tmp_path / "o.csv") == 0  # fmt: skip
    for other, planner in (("log", None), ("o_slow", "slow")):
        found = compare(tmp_path / "log.csv", tmp_path / f"{other}.csv", planner)
        assert found.findings == []
    assert compare(tmp_path / "o_slow.csv", tmp_path / "log.csv", "slow").a.facts["traffic"] == "log-replay"


@needs_shared
@pytest.mark.parametrize(
    ("a", "b", "reasons"),
    [
        ("navsim_dev/scores_v2", "navsim_dev/scores_v2_before_fix", {"basis"}),
        ("navsim_dev/scores_v1", "navsim_dev/scores_v2", {"basis"}),
        ("navsim_quirks/scores_v2", "navsim_quirks/scores_v2_reactive", {"missing rows", "traffic"}),
        ("navsim_carried/scores_v1", "navsim_carried/scores_v1_carried", {"carried state"}),
        ("navsim_carried/scores_v2", "navsim_carried/scores_v2_carried", {"carried state"}),
        (
            "navsim_carried/two_stage/scores_two_stage",
            "navsim_carried/two_stage/scores_two_stage_carried",
            {"carried state"},
        ),
    ],
)
def test_official_tables(a: str, b: str, reasons: set[str]) -> None:
    assert SHARED is not None
    found = compare(SHARED / f"{a}.csv", SHARED / f"{b}.csv")
    assert {finding.reason for finding in found.findings} == reasons
