"""Why two score tables differ: each reason is decided by evidence that fits in a line.

Row by row the sub-scores say where two runs part (metric 6), and the formula says whether the score follows from them
(metric 7.1). Reasons are sought in a fixed order; what fits none is "unknown".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np

from navsim_adapter.foundation.words import counted
from navsim_adapter.scoring.foreign_table import HUMAN, ForeignTable, score_of, sickness
from navsim_adapter.scoring.scorer import BEFORE_FIX, UNFILTERED

REASONS = (
    "missing rows",
    "poisoned cache",
    "basis",
    "another trajectory sampling",
    "traffic",
    "human filter",
    "two-frame pairing",
    "carried state",
    "unknown",
)
TOLERANCE = 1e-6
NC, DAC, DDC, TLC = (
    "no_at_fault_collisions",
    "drivable_area_compliance",
    "driving_direction_compliance",
    "traffic_light_compliance",
)
EP, TTC, LK, EC = "ego_progress", "time_to_collision_within_bound", "lane_keeping", "two_frame_extended_comfort"
FILTERED = (NC, DAC, DDC, TLC, TTC, LK)  # what the human filter can overwrite (metric 6.13)
_OF_TRAFFIC = (NC, TTC, EP)  # what other road users decide; roads, lights and comfort do not ask them
_NEAR = 0.03  # progress; plans of one policy at another sampling are this near, half of them


@dataclass(frozen=True)
class Finding:
    """rows: places in the two matched tables, or none for rows that only one has.  count: how many rows."""

    reason: str
    rows: tuple[int, ...]
    count: int
    columns: tuple[str, ...]
    evidence: str


@dataclass(frozen=True)
class Pair:
    """Two tables of one metric with the same rows in the same order."""

    a: ForeignTable
    b: ForeignTable

    @property
    def names(self) -> list[str]:
        return [name for name in self.a.sub_scores if name in self.b.figures]

    @cached_property
    def apart(self) -> dict[str, np.ndarray]:
        """Sub-score or "score" -> (M,) bool."""
        return {name: _apart(self.a.figures[name], self.b.figures[name]) for name in (*self.names, "score")}

    @cached_property
    def parted(self) -> np.ndarray:
        """(M,) bool: some sub-score differs."""
        return np.any([self.apart[name] for name in self.names], axis=0)

    @cached_property
    def tokens(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for row, (token, _) in enumerate(self.a.keys):
            found.setdefault(token, []).append(row)
        return found

    def columns(self, rows: Sequence[int]) -> tuple[str, ...]:
        return tuple(name for name, apart in self.apart.items() if apart[list(rows)].any())


def explain(pair: Pair) -> list[Finding]:
    """Every row that differs, by reason, in the order of `REASONS`; a row may have two."""
    differing = np.flatnonzero(pair.parted | pair.apart["score"])
    if not len(differing):
        return []
    sick = [f"{name}: {why}" for name, table in (("A", pair.a), ("B", pair.b)) if (why := sickness(table, fewest=2))]
    if len(sick) == 1 or (sick and sickness(pair.a) and sickness(pair.b)):
        return [_finding(pair, "poisoned cache", differing, "; ".join(sick))]
    found = [*_of_scores(pair), *_of_sub_scores(pair)]
    known = {row for finding in found for row in finding.rows}
    found = [_with_hidden(pair, finding, known) for finding in found]
    known = {row for finding in found for row in finding.rows}
    rest = [row for row in differing.tolist() if row not in known]
    if rest:
        found.append(_finding(pair, "unknown", rest, _what_is_odd(pair, rest)))
    return sorted(found, key=lambda finding: REASONS.index(finding.reason))


def _with_hidden(pair: Pair, finding: Finding, known: set[int]) -> Finding:
    """The same reason for rows where it shows in the score alone, made of what the filter hides in the columns."""
    if finding.reason not in ("traffic", "another trajectory sampling"):
        return finding
    rows = [row for row in np.flatnonzero(pair.apart["score"] & ~pair.parted).tolist() if row not in known]
    if not rows or not all(_off(table).any() and _is_old(table, rows) for table in (pair.a, pair.b)):
        return finding
    text = (
        f"{finding.evidence}; in {counted(len(rows), 'row')} it is under the human filter, whose columns "
        "the scores are not of"
    )
    return _finding(pair, finding.reason, sorted({*finding.rows, *rows}), text)


def _finding(pair: Pair, reason: str, rows: Sequence[int] | np.ndarray, evidence: str) -> Finding:
    rows = tuple(int(row) for row in rows)
    return Finding(reason, rows, len(rows), pair.columns(rows), evidence)


def _apart(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (np.abs(a - b) > TOLERANCE) | (np.isnan(a) != np.isnan(b))


# -- scores whose sub-scores agree -------------------------------------------------------------------------------------


def _of_scores(pair: Pair) -> Iterator[Finding]:
    """The basis: the same sub-scores, and one table's score is made of those before the human filter."""
    rows = np.flatnonzero(pair.apart["score"])
    off = {name: rows[_off(table)[rows]] for name, table in (("A", pair.a), ("B", pair.b))}
    said = [table.facts.get("metric") for table in (pair.a, pair.b)]
    for (name, old), (other, new) in ((("A", pair.a), ("B", pair.b)), (("B", pair.b), ("A", pair.a))):
        if not len(off[name]) or _off(new).any():
            continue
        if pair.a.family == "epdms" and all(_is_before(old, new, *scene) for scene in _by_token(pair, off[name])):
            recorded = " (its JSON says so)" if BEFORE_FIX in said else ""
            evidence = (
                f"{name}'s score is that of the sub-scores before the human filter{recorded}, {other}'s follows from "
                f"the columns; {int((~pair.parted[off[name]]).sum())} of these rows agree in every sub-score"
            )
            yield _finding(pair, "basis", off[name], evidence)


def _off(table: ForeignTable) -> np.ndarray:
    """(M,) bool: the score does not follow from the table's own sub-scores."""
    return _apart(table.figures["score"], table.formula)


def _by_token(pair: Pair, rows: np.ndarray) -> Iterator[tuple[list[int], set[int]]]:
    """Rows of each scene in which one of `rows` is, and those of them."""
    wanted = set(rows.tolist())
    for own in pair.tokens.values():
        if wanted & set(own):
            yield own, wanted & set(own)


def _is_before(old: ForeignTable, new: ForeignTable, own: Sequence[int], off: set[int]) -> bool:
    """Whether the scores of one scene's rows are those before one human filter: some set of sub-scores in which the
    human has 0, hence everybody 1 now, that all of them had 0 or a half or 1 in before, the human himself 0."""
    for table in (old, new):
        if all(UNFILTERED + name in table.figures for name in FILTERED):
            return all(abs(_unfiltered(old, table, row) - old.figures["score"][row]) <= TOLERANCE for row in off)
    hidden = [name for name in FILTERED if all(old.figures[name][row] == 1 for row in own)]
    return any(all(_fits(old, row, names) for row in own) for names in _subsets(hidden) if names)


def _unfiltered(old: ForeignTable, table: ForeignTable, row: int) -> float:
    """The score of a row of `old` with the sub-scores before the filter, which `table` knows."""
    own = {name: float(old.figures[name][row]) for name in old.sub_scores}
    return score_of("epdms", own | {name: float(table.figures[UNFILTERED + name][row]) for name in FILTERED})


def _subsets(names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    for chosen in product((False, True), repeat=len(names)):
        yield tuple(name for name, is_in in zip(names, chosen) if is_in)


def _fits(table: ForeignTable, row: int, names: Sequence[str]) -> bool:
    own = {name: float(table.figures[name][row]) for name in table.sub_scores}
    score, is_human = table.figures["score"][row], table.keys[row][1] == HUMAN
    choices = [(0.0,) if is_human else (0.0, 0.5, 1.0) if name in (NC, DDC) else (0.0, 1.0) for name in names]
    return any(
        abs(score_of("epdms", {**own, **dict(zip(names, values))}) - score) <= TOLERANCE for values in product(*choices)
    )


# -- sub-scores --------------------------------------------------------------------------------------------------------


def _of_sub_scores(pair: Pair) -> Iterator[Finding]:
    """Reasons for rows whose sub-scores differ; rows whose score follows from them in neither way stay unknown."""
    rows = np.flatnonzero(pair.parted)
    if not len(rows):
        return
    recorded = _recorded(pair, rows)
    if recorded:
        yield recorded
        return
    left = set(rows.tolist())
    for find in (_human_filter, _traffic, _pairing, _carried, _sampling):
        finding = find(pair, np.array(sorted(left), int)) if left else None
        if finding:
            yield finding
            left -= set(finding.rows)


def _recorded(pair: Pair, rows: np.ndarray) -> Finding | None:
    """What the JSONs beside both tables say of the runs."""
    a, b = pair.a.facts, pair.b.facts
    for key, reason in (("trajectories_sampling", "another trajectory sampling"), ("traffic", "traffic")):
        if key in a and key in b and a[key] != b[key]:
            return _finding(pair, reason, rows, f"the JSON beside A says {a[key]}, that beside B {b[key]}")
    return None


def _human_filter(pair: Pair, rows: np.ndarray) -> Finding | None:
    """On in one table, off in the other: there 1 for everybody in a scene, here what each one earned."""
    if pair.a.family != "epdms":
        return None
    for name, on, off in (("A", pair.a, pair.b), ("B", pair.b, pair.a)):
        cells = [(row, column) for column in FILTERED for row in rows.tolist() if pair.apart[column][row]]
        others = [column for column in pair.names if column not in FILTERED and pair.apart[column][rows].any()]
        scenes = {(pair.a.keys[row][0], column) for row, column in cells}
        if not cells or (EP in others and {column for _, column in cells} <= {NC, TTC}):
            continue
        if all(
            on.figures[column][own].min() == 1.0 and _human_fails(off, own, column)
            for token, column in scenes
            for own in [pair.tokens[token]]
        ):
            mine = sorted({row for row, _ in cells})
            if not (pair.apart[EP][mine].any() or _odd_scores(pair, mine)):
                human = ", the human among them" if HUMAN in pair.a.planners else ""
                text = (
                    f"in {counted(len(scenes), 'scene')} and sub-scores {name} has 1 for every planner and "
                    "the other table less "
                    f"for some{human}; progress and comfort agree"
                )
                return _finding(pair, "human filter", mine, text)
    return None


def _human_fails(off: ForeignTable, own: Sequence[int], column: str) -> bool:
    """Whether the human has 0 there, where the table has the human."""
    human = [row for row in own if off.keys[row][1] == HUMAN]
    return all(off.figures[column][row] == 0 for row in human)


def _traffic(pair: Pair, rows: np.ndarray) -> Finding | None:
    """Only what other road users decide differs, contacts among it."""
    mine = [row for row in rows.tolist() if all(name in _OF_TRAFFIC for name in pair.names if pair.apart[name][row])]
    if not any(pair.apart[name][mine].any() for name in (NC, TTC)) or _odd_scores(pair, mine):
        return None
    if any(pair.apart[name][rows].any() for name in pair.names if name not in (*_OF_TRAFFIC, EC)):
        return None
    text = "only collisions, time to collision and progress differ; roads, lights, lanes and comfort agree in every row"
    return _finding(pair, "traffic", mine, text)


def _pairing(pair: Pair, rows: np.ndarray) -> Finding | None:
    """Only two-frame comfort and the score that follows."""
    if EC not in pair.names or any(pair.apart[name][rows].any() for name in pair.names if name not in (EC, EP)):
        return None
    mine = [row for row in rows.tolist() if pair.apart[EC][row] and not pair.apart[EP][row]]
    if not mine or _odd_scores(pair, mine) or pair.apart[EP][rows].mean() > 0.5:
        return None
    absent = [int(np.isnan(table.figures[EC][mine]).sum()) for table in (pair.a, pair.b)]
    gaps = f"{absent[0]} of these rows have none in A, {absent[1]} in B"
    text = f"only two-frame comfort differs, and the score by it; {gaps}"
    return _finding(pair, "two-frame pairing", mine, text)


def _carried(pair: Pair, rows: np.ndarray) -> Finding | None:
    """Only progress, in every planner of a scene by one factor: another reference (metric 6.6, 10.3)."""
    mine = [row for row in rows.tolist() if pair.apart[EP][row]]
    if not mine or any(pair.apart[name][mine].any() for name in pair.names if name != EP) or _odd_scores(pair, mine):
        return None
    scenes = {pair.a.keys[row][0] for row in mine}
    memories = [table.facts.get("reference_memory") for table in (pair.a, pair.b)]
    if memories[0] != memories[1]:
        said = " and ".join(f"{name}'s {memory or 'has none'}" for name, memory in zip("AB", memories))
        return _finding(pair, "carried state", mine, f"only progress differs, and of the caches' memories {said}")
    if not all(_is_one_factor(pair, pair.tokens[token]) for token in scenes):
        return None
    if len(scenes) == len(pair.tokens) > 1:  # the first scene of a builder has nothing to remember
        return None
    is_alone = all(len(pair.tokens[token]) == 1 for token in scenes)
    if is_alone and (len(scenes) > len(pair.tokens) / 2 or _drift(pair, rows)):  # nothing to compare within a scene
        return None
    text = (
        f"only progress differs, in {len(scenes)} of {counted(len(pair.tokens), 'scene')}"
        f"{'' if is_alone else ', by one factor for all planners of a scene'}: another PDM-Closed to measure against"
    )
    return _finding(pair, "carried state", mine, text)


def _is_one_factor(pair: Pair, own: Sequence[int]) -> bool:
    """EP is min(1, raw / reference) for everybody, so another reference moves all of a scene alike."""
    a, b = pair.a.figures[EP][list(own)], pair.b.figures[EP][list(own)]
    free = (a > 1e-3) & (b > 1e-3) & (a < 1) & (b < 1)
    if free.any():
        factors = a[free] / b[free]
        if np.ptp(factors) > 1e-4 * factors.max():
            return False
        factor = factors[0]
    else:
        factor = np.inf if (a > b).any() else 0.0
    is_known = ~np.isnan(a) & ~np.isnan(b)
    capped = (a == 1) & (b < 1) & (b > 0) & is_known
    lowered = (b == 1) & (a < 1) & (a > 0) & is_known
    is_capped = (b[capped] * factor >= 1 - 1e-4).all() and (a[lowered] / max(factor, 1e-300) >= 1 - 1e-4).all()
    return bool(is_capped) and not (capped.any() and lowered.any())


def _sampling(pair: Pair, rows: np.ndarray) -> Finding | None:
    """Progress moves a little both ways nearly everywhere it can, and few verdicts change."""
    drift = None if _odd_scores(pair, rows) else _drift(pair, rows)
    return _finding(pair, "another trajectory sampling", rows, drift) if drift else None


def _drift(pair: Pair, rows: np.ndarray) -> str | None:
    """How progress drifts, where it does so as between nearly the same plans."""
    a, b = pair.a.figures[EP], pair.b.figures[EP]
    free = (a > 0) & (a < 1) & (b > 0) & (b < 1)
    moved = a[free] - b[free]
    if free.sum() < 5:
        return None
    share = (np.abs(moved) > TOLERANCE).mean()
    ups = (moved > TOLERANCE).sum() / max((np.abs(moved) > TOLERANCE).sum(), 1)
    flips = np.mean([pair.apart[name][rows].mean() for name in pair.names if name != EP])
    if share < 0.5 or np.median(np.abs(moved)) > _NEAR or not 0.05 <= ups <= 0.95 or flips > 0.2:
        return None
    return (
        f"progress moves in {share:.0%} of the rows where it can, both ways, by {np.median(np.abs(moved)):.1g} in the "
        f"median; {flips:.0%} of the other verdicts change: nearly the same plans"
    )


def _odd_scores(pair: Pair, rows: Sequence[int] | np.ndarray) -> bool:
    """Whether scores follow from the sub-scores in neither table's way: then the sub-scores do not explain them."""
    return any(_off(table)[list(rows)].mean() > 0.5 and not _is_old(table, rows) for table in (pair.a, pair.b))


def _is_old(table: ForeignTable, rows: Sequence[int] | np.ndarray) -> bool:
    """Whether scores that do not follow from the columns are lower, as before the filter's fix."""
    own = list(rows)
    return table.family == "epdms" and bool((table.figures["score"][own] <= table.formula[own] + TOLERANCE).all())


def _what_is_odd(pair: Pair, rows: Sequence[int]) -> str:
    off = [name for name, table in (("A", pair.a), ("B", pair.b)) if _off(table)[list(rows)].any()]
    if off:
        return f"scores of {' and '.join(off)} follow from the sub-scores by neither basis"
    hashes = [table.facts.get("trajectories_sha256") for table in (pair.a, pair.b)]
    if None not in hashes and hashes[0] != hashes[1]:
        return "the trajectories are others, says the JSON beside each"
    return "no rule fits the columns that differ"
