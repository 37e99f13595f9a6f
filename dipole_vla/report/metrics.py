"""Words for the sub-scores: the short name of the NAVSIM tables, what full marks mean, and what a failure is called."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SubScore:
    """short: column head. title: what full marks mean. failure: what is counted when it falls short (plural)."""

    short: str
    title: str
    failure: str
    is_graded: bool = False  # a degree of achievement rather than a test passed or failed


SUB_SCORES = {
    "no_at_fault_collisions": SubScore("NC", "no at-fault collision", "at-fault collisions"),
    "drivable_area_compliance": SubScore("DAC", "stays on the drivable area", "drivable area left"),
    "driving_direction_compliance": SubScore("DDC", "drives with its route", "against traffic or off the route"),
    "traffic_light_compliance": SubScore("TLC", "stops at red lights", "red lights run"),
    "ego_progress": SubScore("EP", "progress along the route", "progress lost", is_graded=True),
    "time_to_collision_within_bound": SubScore("TTC", "time to collision within bound", "time to collision too short"),
    "lane_keeping": SubScore("LK", "keeps to its lane", "lane not kept"),
    "comfort": SubScore("C", "within the comfort limits", "uncomfortable"),
    "history_comfort": SubScore("HC", "comfortable after the recent past", "uncomfortable after the recent past"),
    "two_frame_extended_comfort": SubScore("EC", "consistent with its last plan", "inconsistent with the last plan"),
}


def sub_score(name: str) -> SubScore:
    """The words of a sub-score; a metric this list does not know yet gets its own name."""
    words = name.replace("_", " ")
    return SUB_SCORES.get(name) or SubScore(words, words, f"{words} below full marks")


def metric_title(metric: str) -> str:
    """``pdms-v1.1`` -> ``PDMS v1.1``."""
    name, _, version = metric.partition("-")
    return f"{name.upper()} {version}".strip()
