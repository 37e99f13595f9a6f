"""The report of an evaluation: one static HTML page that needs nothing but itself.

Styles are inline, charts are SVG, pictures are base64; there is no script and no address outside the page. Same
evaluation, same bytes: the only times in it are those the evaluation recorded.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from dipole_vla.provenance import versions
from dipole_vla.report import charts, tables
from dipole_vla.report.closed_loop import figures, lead, read_closed_loop, survival
from dipole_vla.report.inputs import Evaluation, load_evaluation
from dipole_vla.report.metrics import metric_title, sub_score
from dipole_vla.report.scenes import extreme_cards
from dipole_vla.report.signatures import Weights, check_all, read_weights
from navsim_adapter.closed_loop.summary import said
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.files import finish, is_made, making, stamp, write_text
from navsim_adapter.foundation.option_checks import check_range
from navsim_adapter.foundation.words import counted

PAGE = "index.html"
FACTS = ("policy", "policy_fingerprint", "backbone", "beta", "shift", "routing", "commit")


def write_report(evaluation: Path, out: Path, scenes: int = 4, closed_loop: Path | None = None) -> Path:
    """Write the page of an evaluation folder and return its path; does nothing where it is already complete.

    evaluation: folder written by `dipole-vla evaluate`. out: folder for index.html and its manifest.
    scenes: how many worst losses and how many best gains to show. closed_loop: folder of `navsim-adapter closed-loop
    --beside`, or nothing.
    Raises InputError when the evaluation is missing, unfinished or damaged; absent cameras, cache or candidates are
    said on the page.
    """
    check_range("--scenes", scenes, 0)
    evaluation, out = Path(evaluation), Path(out)
    if out.resolve() == evaluation.resolve():
        raise InputError(f"{out}: is the evaluation folder itself; choose another folder for the report")
    made_by = {
        "command": "report",
        "evaluation": stamp(evaluation),
        "scenes": scenes,
        "version": versions()["dipole-vla"],
    }
    if closed_loop:
        made_by["closed_loop"] = stamp(closed_loop)
    if is_made(out, made_by):
        return out / PAGE
    content = render_page(load_evaluation(evaluation), scenes, closed_loop)
    with making(out, made_by) as is_open:
        if is_open:
            write_text(out / PAGE, content)
            finish(out, made_by)
    return out / PAGE


def render_page(evaluation: Evaluation, scenes: int = 4, closed_loop: Path | None = None) -> str:
    """The whole page as text."""
    environment = Environment(
        loader=PackageLoader("dipole_vla.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = environment.loader.get_source(environment, "style.css")[0]  # type: ignore[union-attr]
    environment.filters["unbroken"] = _unbroken
    return environment.get_template("page.html.j2").render(
        style=Markup(style), closed_loop=_drives(evaluation, closed_loop), **_content(evaluation, scenes)
    )


def _unbroken(sentence: str) -> str:
    """Keep numbers and their units, and ω = 1, on one line."""
    sentence = sentence.replace("ω = ", "ω\u00a0=\u00a0").replace("N = ", "N\u00a0=\u00a0")
    return re.sub(r"(?<=\d) (?=(?:m|s|m/s²?|points?)\b)", "\u00a0", sentence)


def _content(evaluation: Evaluation, scenes: int) -> dict[str, Any]:
    after, before = evaluation.paired(evaluation.chosen, evaluation.baseline)
    differences, summary = (after["score"] - before["score"]).to_numpy(), evaluation.summary
    weights = read_weights(evaluation)
    losses, gains = extreme_cards(evaluation, scenes)
    signatures = sorted(check_all(evaluation), key=lambda signature: signature.verdict != "look")
    return {
        "headline": tables.headline(evaluation),
        "several_starts": evaluation.several_starts,
        "best_of": summary.get("best_of", "groups"),
        "samples": summary.get("samples"),
        "variants": summary.get("variants"),
        "fewest": evaluation.reference.candidates,
        "own_start": f"{evaluation.reference.start_scale:g}",
        "columns": [(sub_score(name).short, sub_score(name).title) for name in evaluation.sub_scores],
        "table": tables.score_table(evaluation),
        "filter_sentence": tables.filter_sentence(evaluation),
        "curve": Markup(charts.omega_curve(evaluation)),
        "curve_sentence": tables.curve_sentence(evaluation),
        "changes": tables.changes(evaluation),
        "paired": Markup(charts.paired_differences(differences)),
        "paired_sentence": tables.scene_counts(differences),
        "weights": _weights(weights),
        "signatures": signatures,
        "signature_sentence": _signature_sentence([signature.verdict for signature in signatures]),
        "losses": losses,
        "gains": gains,
        "has_cameras": any(card.camera for card in losses + gains),
        "has_birds": any(card.bird for card in losses + gains),
        "missing": defaultdict(str, evaluation.missing),
        "made": _made(evaluation),
        "versions": dict(evaluation.provenance.get("versions") or {}),
        "recipe": _yaml(evaluation.provenance.get("recipe")),
        "candidate_facts": _yaml(evaluation.candidates_meta),
    }


def _drives(evaluation: Evaluation, folder: Path | None) -> dict[str, Any] | None:
    if folder is None:
        return None
    content = read_closed_loop(folder)
    return {
        "lead": lead(content),
        "drivers": (content["other"]["driver"], content["driver"]),
        "figures": figures(content),
        "score": said(content["other"]["gain"]["score"], "+"),
        "survival": survival(evaluation.gain(evaluation.chosen, evaluation.baseline)[1], content),
        "page": str(folder / PAGE),
    }


def _weights(weights: Weights | None) -> dict[str, Any] | None:
    if weights is None:
        return None
    count = len(weights.advantage)
    facts = (
        f"{counted(count, 'candidate', ',')}, rule {weights.rule}, β = {weights.beta:g}, mean weight "
        f"{weights.positive.mean():.3f}."
    )
    alike = f" {counted(weights.left_out, 'scene', ',')} whose candidates all score alike are left out, as in training."
    shares = weights.effective_fraction.items()
    sizes = ", ".join(f"{share * count:,.0f} ({share:.0%}) for the {role} policy" for role, share in shares)
    return {
        "advantage": Markup(charts.advantage_histogram(weights)),
        "weight": Markup(charts.weight_histogram(weights)),
        "sentence": f"{facts}{alike if weights.left_out else ''} Effective sample size: {sizes}.",
    }


def _signature_sentence(verdicts: list[str]) -> str:
    look, ok, unmeasured = (verdicts.count(word) for word in ("look", "ok", "not measured"))
    return f"{look} to look at, {ok} in order, {unmeasured} not measurable from this evaluation."


def _made(evaluation: Evaluation) -> list[tuple[str, str]]:
    """Facts for the closing table, in reading order; what was not recorded says so."""
    summary, facts = evaluation.summary, evaluation.provenance
    how = facts.get("advantage") or evaluation.candidates_meta.get("advantage")
    made = [
        ("metric", metric_title(summary["metric"])),
        ("metric of the training", tables.training_metric(evaluation)),
        ("evaluated split", f"{summary['split']} ({counted(summary['scenes'], 'scene')})"),
        ("RL ran on split", str(summary.get("rl_split") or "not recorded")),
        ("ω and N chosen on", str(summary["chosen"]["on"])),
        ("how G was formed", str(how or "not recorded")),
    ]
    made += [(name.replace("_", " "), str(facts.get(name) or "not recorded")) for name in FACTS]
    if facts.get("recipe_hash"):
        made.append(("recipe hash", str(facts["recipe_hash"])))
    if facts.get("time"):
        made.append(("evaluated at", str(facts["time"])))
    made += [(f"{name} folder", str(path)) for name, path in (summary.get("inputs") or {}).items() if path]
    return made


def _yaml(content: Any) -> str:
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100) if content else ""
