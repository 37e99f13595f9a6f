"""The scenes worth looking at: worst losses and best gains, each with a picture, its numbers and a sentence why.

The sentence is put together from the scorer's verdicts (which sub-score moved) and the geometry of the two plans
(`encounters`: when, with whom, how far). Where geometry finds no event for a verdict, only the verdict is said.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dipole_vla.data.pictures import read_picture
from dipole_vla.evaluation.settings import Setting
from dipole_vla.report import encounters
from dipole_vla.report.encounters import Encounter
from dipole_vla.report.inputs import Evaluation
from dipole_vla.report.metrics import sub_score
from dipole_vla.report.tables import points, signed
from navsim_adapter.render import CHOSEN, HUMAN, REFERENCE, Moment, Plan, picture, seen_by
from navsim_adapter.sampling import SIMULATED, Sampling, resampled
from navsim_adapter.scene_cache import EPDMS, PDMS, SceneCache
from navsim_adapter.trajectories import DEFAULT_INTERVAL

CAMERA, CAMERA_WIDTH = "CAM_F0", 480
CANDIDATES_DRAWN = 32
PICTURE_SIZE, PICTURE_DPI = (2.9, 4.35), 180  # inches; shown at half its pixels, as tall as the text beside it
SAME = 1e-9
CHANGED = 0.02


@dataclass(frozen=True)
class Part:
    short: str
    title: str
    before: str
    after: str
    sign: int


@dataclass(frozen=True)
class Card:
    """One scene. bird, camera: data addresses of the pictures, or empty with `note` saying why."""

    token: str
    place: str
    before: str
    after: str
    difference: str
    sign: int
    sentence: str
    parts: list[Part]
    bird: str
    camera: str
    note: str


@dataclass(frozen=True)
class _Event:
    """A failure of one sub-score: how to find it along a plan, and how to say it with and without a time."""

    find: Callable[[SceneCache, np.ndarray], Encounter | None] | None
    with_time: str  # {who} {when} {what}
    without_time: str
    inverse: str


_EVENTS = {
    "no_at_fault_collisions": _Event(
        encounters.collision, "{who} hits {what} at {when}", "{who} causes a collision", "does not"
    ),
    "drivable_area_compliance": _Event(
        encounters.road_departure,
        "{who} leaves the drivable area at {when}",
        "{who} leaves the drivable area",
        "stays on it",
    ),
    "traffic_light_compliance": _Event(
        encounters.red_light, "{who} runs a red light at {when}", "{who} runs a red light", "does not"
    ),
    "driving_direction_compliance": _Event(None, "", "{who} drives against traffic or off its route", "does not"),
    "time_to_collision_within_bound": _Event(
        encounters.short_time_to_collision,
        "{who} is less than 1 s from hitting {what} at {when}",
        "{who} comes too close in time to a collision",
        "keeps its distance",
    ),
    "lane_keeping": _Event(None, "", "{who} strays from the middle of its lane", "keeps to it"),
}
_GATES = ("no_at_fault_collisions", "drivable_area_compliance")
_COMFORT = ("comfort", "history_comfort", "two_frame_extended_comfort")


def extreme_cards(evaluation: Evaluation, count: int) -> tuple[list[Card], list[Card]]:
    """Worst losses and best gains, the largest first, at most `count` each."""
    after, before = evaluation.paired(evaluation.chosen, evaluation.baseline)
    difference = (after["score"] - before["score"]).sort_values(kind="stable")
    losses = _one_per_log(difference.index[difference < -SAME], after["log_name"], count)
    gains = _one_per_log(difference.index[difference > SAME][::-1], after["log_name"], count)
    wanted = losses + gains
    if not wanted:
        return [], []
    rows = evaluation.with_poses("rows", wanted)
    plans = evaluation.with_poses("plans", wanted) if evaluation.plans is not None else None
    cards = {token: _card(evaluation, token, before.loc[token], after.loc[token], rows, plans) for token in wanted}
    return [cards[token] for token in losses], [cards[token] for token in gains]


def _one_per_log(tokens: pd.Index, logs: pd.Series, count: int) -> list[str]:
    """The first `count` tokens, each log's first before its others: neighbours in a log are often one event."""
    own = logs.loc[tokens].to_numpy()
    rank = pd.Series(own).groupby(own).cumcount().to_numpy()
    return [str(tokens[i]) for i in np.argsort(rank, kind="stable")[:count]]


def _card(
    evaluation: Evaluation,
    token: str,
    before: pd.Series,
    after: pd.Series,
    rows: pd.DataFrame,
    plans: pd.DataFrame | None,
) -> Card:
    interval = evaluation.interval
    reference, chosen = (_poses(rows, token, key, interval) for key in (evaluation.baseline, evaluation.chosen))
    scene = evaluation.scenes.get(token, {})
    cache = _scene_cache(evaluation, token)
    sentence, moments = explain(cache, before, after, reference, chosen, evaluation.sub_scores)
    bird = ""
    if cache is not None:
        candidates, scores = _candidates(plans, token, evaluation.chosen, interval)
        human = cache.human_future if cache.human_future is not None else scene.get("future")
        drawn = [] if human is None else [Plan("human", _array(human), HUMAN)]
        drawn += [Plan("reference", reference, REFERENCE), Plan("chosen", chosen, CHOSEN)]
        bird = _address(
            "png", picture(cache, drawn, candidates, scores, moments, PICTURE_SIZE, PICTURE_DPI, legend=False)
        )
    camera, note = _camera(evaluation, scene)
    notes = [] if cache is not None else ["no cache of this scene: no bird's-eye picture"]
    notes += [note] if note else []
    difference = after["score"] - before["score"]
    return Card(
        token=token,
        place=_place(before, scene, cache),
        before=points(before["score"]),
        after=points(after["score"]),
        difference=signed(difference),
        sign=int(np.sign(difference)),
        sentence=sentence,
        parts=[_part(name, before[name], after[name]) for name in evaluation.sub_scores],
        bird=bird,
        camera=camera,
        note="; ".join(notes),
    )


def _scene_cache(evaluation: Evaluation, token: str) -> SceneCache | None:
    if token not in evaluation.caches:
        return None
    return seen_by(evaluation.caches[token], EPDMS if evaluation.summary["metric"].startswith("epdms") else PDMS)


def explain(
    cache: SceneCache | None,
    before: pd.Series,
    after: pd.Series,
    reference: np.ndarray,
    chosen: np.ndarray,
    sub_scores: list[str],
) -> tuple[str, list[Moment]]:
    """Why the score moved, in one or two sentences, and the moment to draw.

    before, after: sub-scores of the reference and of the chosen plan. reference, chosen: their poses (T, 3).
    """
    sentences: list[str] = []
    moments: list[Moment] = []
    moved = [name for name in sub_scores if abs(_gap(before, after, name)) > SAME]
    for name in sorted((name for name in moved if name in _EVENTS), key=list(_EVENTS).index):
        is_fixed = _gap(before, after, name) > 0
        failing, other = (reference, chosen) if is_fixed else (chosen, reference)
        who, whom = ("The reference", "the chosen plan") if is_fixed else ("The chosen plan", "the reference")
        event = _EVENTS[name]
        found = event.find(cache, failing) if cache is not None and event.find is not None else None
        what, contrast = _contrast(cache, found, event, other, whom)
        if found is None:
            text = event.without_time.format(who=who)
        else:
            text = event.with_time.format(who=who, when=f"{found.seconds:.1f} s", what=what)
        sentences.append(f"{text}; {contrast}.")
        if found is not None and not moments:
            style = REFERENCE if is_fixed else CHOSEN
            moments.append(Moment(found.pose, found.step, f"{found.seconds:.1f} s", style, found.object_index))
        if name in _GATES:
            break  # the score is zero from here on: what follows changes nothing
    is_gate_moved = any(name in moved for name in _GATES)  # then progress fell or rose with the gate
    if not is_gate_moved and len(sentences) < 2:
        sentences += _graded_sentences(cache, before, after, reference, chosen, moved)[: 2 - len(sentences)]
    return " ".join(sentences) or "The sub-scores are equal; only the score moved.", moments


def _contrast(
    cache: SceneCache | None, found: Encounter | None, event: _Event, other: np.ndarray, whom: str
) -> tuple[str, str]:
    """What was met, and what the better plan does about it."""
    if cache is None or found is None or found.object_index is None:
        return "", f"{whom} {event.inverse}"
    what = encounters.object_words(cache, found.object_index)
    gap = encounters.clearance(cache, other, found.object_index)
    if not np.isfinite(gap) or gap < 0.05:
        return what, f"{whom} {event.inverse}"
    return what, f"{whom} keeps {gap:.1f} m clear of it"


def _graded_sentences(
    cache: SceneCache | None,
    before: pd.Series,
    after: pd.Series,
    reference: np.ndarray,
    chosen: np.ndarray,
    moved: list[str],
) -> list[str]:
    """Progress and comfort: differences of degree, said with metres and m/s²."""
    sentences = []
    if abs(_gap(before, after, "ego_progress")) > CHANGED:
        ahead = encounters.length(chosen) - encounters.length(reference)
        word = "farther" if ahead > 0 else "less far"
        step = f"progress {points(before['ego_progress'], 0)} → {points(after['ego_progress'], 0)}"
        if abs(ahead) < 0.5 or (ahead > 0) != (_gap(before, after, "ego_progress") > 0):
            sentences.append(f"Progress along the route changes: {step}.")
        else:
            sentences.append(f"The chosen plan drives {abs(ahead):.0f} m {word} in 4 s ({step}).")
    for name in (name for name in _COMFORT if name in moved):
        is_fixed = _gap(before, after, name) > 0
        poses, who = (reference, "The reference") if is_fixed else (chosen, "The chosen plan")
        detail = ""
        if cache is not None:
            peaks = encounters.peak_accelerations(poses, float(cache.ego_state[3]))
            worst = max(peaks, key=lambda kind: peaks[kind])
            detail = f" (peak {worst} about {peaks[worst]:.1f} m/s²)"
        sentences.append(f"{who} exceeds the comfort limits{detail}.")
    return sentences


def _gap(before: pd.Series, after: pd.Series, name: str) -> float:
    gap = float(after.get(name, np.nan)) - float(before.get(name, np.nan))
    return 0.0 if np.isnan(gap) else gap


def _poses(rows: pd.DataFrame, token: str, setting: Setting, interval: float) -> np.ndarray:
    return _halves(_array(rows[(rows["token"] == token) & setting.of_rows(rows)]["poses"].iloc[0]), interval)


def _halves(poses: np.ndarray, interval: float) -> np.ndarray:
    """Poses at every half second that is scored, as pictures and sentences have them, whatever the policy's own."""
    horizon = int(len(poses) * interval / DEFAULT_INTERVAL + 1e-6)
    if not horizon:
        return poses
    return resampled(poses, interval, Sampling(horizon, DEFAULT_INTERVAL).within(SIMULATED.reach))


def _candidates(
    plans: pd.DataFrame | None, token: str, setting: Setting, interval: float
) -> tuple[np.ndarray | None, np.ndarray | None]:
    if plans is None:
        return None, None
    own = plans[(plans["token"] == token) & setting.of_plans(plans)].sort_values("index").head(CANDIDATES_DRAWN)
    if own.empty:
        return None, None
    drawn = np.stack([_halves(_array(poses), interval) for poses in own["poses"]])
    return drawn, own["score"].to_numpy(dtype=np.float64)


def _array(poses: Any) -> np.ndarray:
    """Nested lists, as Arrow gives them, to (T, 3)."""
    return np.array([np.asarray(pose, dtype=np.float64) for pose in poses])


def _part(name: str, before: float, after: float) -> Part:
    words = sub_score(name)
    if pd.isna(before) or pd.isna(after):
        return Part(words.short, words.title, "–", "–", 0)
    moved = after - before
    sign = int(np.sign(moved)) if abs(moved) > 0.005 else 0
    return Part(words.short, words.title, points(before, 0), points(after, 0), sign)


def _place(line: pd.Series, scene: Mapping[str, Any], cache: SceneCache | None) -> str:
    facts = [str(line["log_name"])]
    town = scene.get("map") or (cache.map_name if cache is not None else None)
    if town:
        facts.append(str(town))
    if cache is not None:
        facts.append(f"{float(np.hypot(cache.ego_state[3], cache.ego_state[4])):.1f} m/s")
    if scene.get("command"):
        facts.append(f"command {scene['command']}")
    return " · ".join(facts)


def _camera(evaluation: Evaluation, scene: Mapping[str, Any]) -> tuple[str, str]:
    """Front camera as a data address, or why there is none. A file that is there but damaged is an error."""
    relative = (scene.get("cameras") or {}).get(CAMERA)
    if evaluation.sensors is None or not scene:
        return "", ""  # said once for the whole report
    if not relative:
        return "", "the scene has no front camera"
    path = evaluation.sensors / relative
    if not path.is_file():
        return "", f"front camera file {relative} is missing"
    return _address("jpeg", _shrunk(path)), ""


def _shrunk(path: Path) -> bytes:
    image = read_picture(path)
    image.thumbnail((CAMERA_WIDTH, CAMERA_WIDTH))
    stream = io.BytesIO()
    image.save(stream, format="JPEG", quality=82)
    return stream.getvalue()


def _address(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
