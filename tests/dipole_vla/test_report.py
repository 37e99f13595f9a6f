"""The report page: what it says, that it needs nothing but itself, and what it does with missing or damaged input."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pyarrow.parquet
import pytest
from report_evaluation import CHOSEN, write_evaluation

from dipole_vla.report import tables
from dipole_vla.report.inputs import load_evaluation
from dipole_vla.report.page import write_report
from dipole_vla.report.scenes import extreme_cards
from dipole_vla.report.tables import changes, headline, score_table
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.files import finish, read_json, verify, write_json


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with a finished evaluation; tests that change it copy it first."""
    root = tmp_path_factory.mktemp("made")
    write_evaluation(root)
    return root


@pytest.fixture(scope="module")
def page(made: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_report(made / "evaluation", tmp_path_factory.mktemp("page") / "report").read_text()


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    """An evaluation folder to damage (its inputs stay where they are)."""
    return shutil.copytree(made / "evaluation", tmp_path / "evaluation")


class _Addresses(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [str(value) for name, value in attrs if name in ("src", "href", "xlink:href", "action")]


def test_page_needs_nothing_but_itself(page: str) -> None:
    found = _Addresses()
    found.feed(page)
    assert found.addresses
    assert all(address.startswith(("data:image/", "#")) for address in found.addresses)
    assert not {"script", "link", "iframe", "object", "embed"} & set(found.tags)
    assert "@import" not in page
    assert "url(http" not in page


def test_every_reference_inside_the_charts_has_its_target_once(page: str) -> None:
    import re

    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', page)) | set(re.findall(r"url\(#([^)]+)\)", page)) <= set(ids)


def test_same_inputs_give_the_same_bytes(made: Path, page: str, tmp_path: Path) -> None:
    assert write_report(made / "evaluation", tmp_path / "again").read_text() == page


def test_headline_is_the_summary_of_the_chosen_row(made: Path, page: str) -> None:
    summary = read_json(made / "evaluation" / "summary.json")
    row = next(r for r in summary["rows"] if r["policy"] == "dipole" and {k: r[k] for k in CHOSEN} == CHOSEN)
    top = headline(load_evaluation(made / "evaluation"))
    assert top["gain"] == f"{100 * row['equal_n_gain']:+.1f}".replace("-", "−")
    assert top["score"] == f"{100 * row['score']:.1f}"
    assert (top["metric"], top["split"], top["scenes"], top["logs"]) == ("PDMS v1.1", "held-out", "16 scenes", "4 logs")
    assert "RL ran on the evaluated split" not in page


def test_headline_compares_at_equal_n_and_puts_the_critics_share_beside_it(made: Path, page: str) -> None:
    evaluation = load_evaluation(made / "evaluation")
    row, same = evaluation.summary_row(evaluation.chosen), evaluation.summary_row(evaluation.baseline)
    assert evaluation.baseline.candidates == CHOSEN["candidates"] != evaluation.reference.candidates
    top = headline(evaluation)
    assert row["gain"] != row["equal_n_gain"] or same["gain"] == 0
    assert top["gain"] == f"{100 * row['equal_n_gain']:+.1f}".replace("-", "−")
    assert top["reference"] == f"{100 * same['score']:.1f}"
    assert f"gains {100 * same['gain']:+.1f} points" in top["shares"]
    assert "reference at N\u00a0=\u00a04 with the same critic" in page


def test_fixed_broken_and_cards_compare_at_equal_n(tmp_path: Path) -> None:
    """The critic alone already saves every scene: nothing is left for the adapters."""
    folder = write_evaluation(tmp_path, scenes=8)
    rows = pyarrow.parquet.read_table(folder / "rows.parquet").to_pandas()
    chosen = rows[(rows.policy == "dipole") & (rows.omega == CHOSEN["omega"]) & (rows.candidates == 4)]
    for name in ("score", "no_at_fault_collisions", "drivable_area_compliance", "ego_progress"):
        known = chosen.set_index("token")[name]
        same = (rows.policy == "reference") & (rows.candidates == 4)
        rows.loc[same, name] = rows.loc[same, "token"].map(known)
    rows.to_parquet(folder / "rows.parquet")
    finish(folder, {"command": "evaluate"})
    evaluation = load_evaluation(folder)
    assert extreme_cards(evaluation, 4) == ([], [])
    assert all(change.fixed == change.broken == 0 for change in changes(evaluation))


def test_two_logs_are_too_few_to_tell(tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path, scenes=8)
    page = write_report(folder, tmp_path / "report", scenes=1).read_text()
    top = headline(load_evaluation(folder))
    assert (top["verdict"], top["sign"]) == ("too few logs to tell", 0)
    assert "beyond chance" not in page.split("<h2>1")[0]
    assert not any(
        cell.sign for row in score_table(load_evaluation(folder)) for cell in (row.fair, row.gain, *row.parts)
    )


@pytest.mark.parametrize(
    ("provenance", "said", "is_other"),
    [
        ({}, "unknown", False),
        ({"metric": "pdms-v1.1"}, "PDMS v1.1", False),
        ({"metric": "epdms-v2.2"}, "EPDMS v2.2", True),
    ],
)
def test_training_metric_stands_beside_that_of_the_evaluation(
    tmp_path: Path, provenance: dict, said: str, is_other: bool
) -> None:
    folder = write_evaluation(tmp_path, scenes=8, provenance=provenance)
    top = headline(load_evaluation(folder))
    assert (top["trained_on"], top["is_other_metric"]) == (said, is_other)
    line = f"Trained on {said}, evaluated by PDMS v1.1."
    assert (
        f'<p class="{"bad" if is_other else "soft"}">{line}' in write_report(folder, tmp_path / "report", 0).read_text()
    )


def test_rl_on_the_evaluated_split_is_said_in_red(tmp_path: Path) -> None:
    page = write_report(write_evaluation(tmp_path, scenes=8, leaks=True), tmp_path / "report", scenes=1).read_text()
    assert '<div class="alarm">RL ran on the evaluated split (held-out)' in page
    assert page.index('class="alarm"') < page.index("<h1>")


def test_choice_made_on_the_evaluated_scenes_is_called_optimistic(tmp_path: Path) -> None:
    top = headline(load_evaluation(write_evaluation(tmp_path, scenes=8, chosen_on="held-out")))
    assert "optimistic" in top["choice"]
    assert top["is_choice_biased"]


def test_choice_made_on_other_scenes_names_their_split(tmp_path: Path) -> None:
    evaluation = load_evaluation(write_evaluation(tmp_path, scenes=8, chosen_on="mini"))
    top = headline(evaluation)
    assert "other scenes (mini), before these" in top["choice"]
    assert not top["is_choice_biased"]
    evaluation.summary["chosen"]["on"] = evaluation.summary["split"]  # another part of the same split
    assert not headline(evaluation)["is_choice_biased"]


def test_score_table_marks_the_chosen_row_and_the_oracle(made: Path) -> None:
    rows = score_table(load_evaluation(made / "evaluation"))
    assert [(row.policy, row.omega, row.candidates) for row in rows if row.is_chosen] == [("dipole", "1", 4)]
    assert [row.policy for row in rows][:3] == ["human", "reference", "reference"]
    assert rows[-1].is_oracle
    assert "sees the future" in rows[-1].explanation
    reference = rows[1]
    assert reference.gain.text == "–"
    assert all(cell.note == "" for cell in reference.parts)


def test_fixed_and_broken_scenes_are_counted(made: Path) -> None:
    found = {change.short: change for change in changes(load_evaluation(made / "evaluation"))}
    assert (found["NC"].before, found["NC"].after, found["NC"].fixed, found["NC"].broken) == ("4", "0", 4, 0)
    assert (found["DAC"].before, found["DAC"].after, found["DAC"].fixed, found["DAC"].broken) == ("0", "4", 0, 4)
    assert found["NC"].sentence == "at-fault collisions 4 → 0: fixed 4, new 0"
    assert (found["EP"].fixed, found["EP"].broken) == (8, 4)  # kinds 0 and 2 up, kind 1 down, kind 3 the same


def test_worst_losses_come_before_best_gains_and_say_why(made: Path, page: str) -> None:
    losses, gains = extreme_cards(load_evaluation(made / "evaluation"), 2)
    assert page.index("Worst losses") < page.index("Best gains")
    assert [card.difference for card in losses] == ["−70.0", "−70.0"]
    assert all("The chosen plan leaves the drivable area at" in card.sentence for card in losses)
    assert all(card.difference == "+80.0" for card in gains)
    assert all("The reference hits a vehicle at 2.4 s" in card.sentence for card in gains)
    assert all(card.bird.startswith("data:image/png") and card.camera.startswith("data:image/jpeg") for card in gains)


def test_each_log_is_shown_before_any_is_shown_twice(made: Path) -> None:
    losses, _ = extreme_cards(load_evaluation(made / "evaluation"), 4)
    assert len({card.place.split(" · ")[0] for card in losses}) == 4


def test_text_from_the_evaluation_is_escaped(tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path, scenes=4, provenance={"policy": "<script>alert(1)</script>"})
    page = write_report(folder, tmp_path / "report", scenes=1).read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_folder_is_finished_and_a_second_run_leaves_it(made: Path, tmp_path: Path) -> None:
    path = write_report(made / "evaluation", tmp_path / "report", scenes=1)
    verify(tmp_path / "report")
    before = path.stat().st_mtime_ns
    write_report(made / "evaluation", tmp_path / "report", scenes=1)
    assert path.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        ("candidates", "weights and advantages cannot be shown"),
        ("sensors", "front cameras are left out"),
        ("cache", "bird&#39;s-eye pictures are left out"),
        ("scenes", "commands and cameras are left out"),
    ],
)
def test_missing_optional_input_is_said_in_one_line(
    made: Path, copy: Path, tmp_path: Path, lost: str, said: str
) -> None:
    summary = read_json(copy / "summary.json")
    summary["inputs"][lost] = str(tmp_path / "moved")
    write_json(copy / "summary.json", summary)
    finish(copy, {"command": "evaluate"})
    assert said in write_report(copy, tmp_path / "report", scenes=1).read_text()


def test_evaluation_without_plans_has_no_candidates(copy: Path, tmp_path: Path) -> None:
    (copy / "plans.parquet").unlink()
    finish(copy, {"command": "evaluate"})
    assert "no plans.parquet" in write_report(copy, tmp_path / "report", scenes=1).read_text()


def test_missing_camera_file_is_noted_on_its_card(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "sensors").mkdir()
    summary = read_json(copy / "summary.json")
    summary["inputs"]["sensors"] = str(tmp_path / "sensors")
    write_json(copy / "summary.json", summary)
    finish(copy, {"command": "evaluate"})
    assert "front camera file front.jpg is missing" in write_report(copy, tmp_path / "report", scenes=1).read_text()


def _cut(folder: Path) -> None:
    content = (folder / "rows.parquet").read_bytes()
    (folder / "rows.parquet").write_bytes(content[: len(content) // 2])


def _drop_key(folder: Path) -> None:
    summary = read_json(folder / "summary.json")
    del summary["chosen"]
    write_json(folder / "summary.json", summary)


def _garble(folder: Path) -> None:
    (folder / "summary.json").write_text("{")


def _drop_column(folder: Path) -> None:
    table = pyarrow.parquet.read_table(folder / "rows.parquet")
    pyarrow.parquet.write_table(table.drop_columns("score"), folder / "rows.parquet")


def _spoil_number(folder: Path) -> None:
    table = pyarrow.parquet.read_table(folder / "rows.parquet").to_pandas()
    table.loc[3, "comfort"] = float("nan")
    table.to_parquet(folder / "rows.parquet")


def _drop_reference(folder: Path) -> None:
    table = pyarrow.parquet.read_table(folder / "rows.parquet").to_pandas()
    table[table["policy"] != "reference"].to_parquet(folder / "rows.parquet")


def _drop_scene(folder: Path) -> None:
    table = pyarrow.parquet.read_table(folder / "rows.parquet").to_pandas()
    line = table.index[(table["policy"] == "reference") & (table["candidates"] == 1)][0]
    table.drop(index=line).to_parquet(folder / "rows.parquet")


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (_cut, "rows.parquet"),
        (_drop_key, "summary.json: chosen"),
        (_garble, "summary.json"),
        (_drop_column, "rows.parquet: column score"),
        (_spoil_number, "comfort is not a number"),
        (_drop_reference, "no rows for reference"),
        (_drop_scene, "scored for only one of"),
    ],
)
def test_damaged_evaluation_is_one_line_and_writes_nothing(copy: Path, tmp_path: Path, damage, named: str) -> None:
    damage(copy)
    finish(copy, {"command": "evaluate"})
    with pytest.raises(InputError, match=named) as caught:
        write_report(copy, tmp_path / "report")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "report").exists()


def test_file_changed_after_the_evaluation_is_refused(copy: Path, tmp_path: Path) -> None:
    content = json.loads((copy / "summary.json").read_text())
    content["rows"][0]["score"] = 0.9
    write_json(copy / "summary.json", content)
    with pytest.raises(InputError, match=r"summary\.json|evaluation: not finished or damaged"):
        write_report(copy, tmp_path / "report")


def test_unfinished_and_absent_evaluations_are_refused(copy: Path, tmp_path: Path) -> None:
    (copy / "manifest.json").unlink()
    with pytest.raises(InputError, match="not finished"):
        write_report(copy, tmp_path / "report")
    with pytest.raises(InputError, match="no such"):
        write_report(tmp_path / "nowhere", tmp_path / "report")


def test_report_never_writes_into_the_evaluation_or_a_used_folder(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="evaluation folder itself"):
        write_report(copy, copy)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="holds files of something else"):
        write_report(copy, tmp_path / "used")
    assert [path.name for path in (tmp_path / "used").iterdir()] == ["thesis.txt"]


def test_an_evaluation_of_before_start_noise_was_swept_is_reported_as_it_was(copy: Path, tmp_path: Path) -> None:
    for name in ("rows", "plans"):
        table = pyarrow.parquet.read_table(copy / f"{name}.parquet")
        old = [column for column in table.column_names if column not in ("start_scale", "guidance")]
        pyarrow.parquet.write_table(table.select(old), copy / f"{name}.parquet")
    summary = read_json(copy / "summary.json")
    new = (
        "start_scale",
        "guidance",
        "standard_error",
        "fairest_gain",
        "fairest_gain_ci95",
        "critic_gain",
        "human_gain",
    )
    summary["rows"] = [{key: value for key, value in row.items() if key not in new} for row in summary["rows"]]
    summary["chosen"] = {**CHOSEN, "on": "validation", "on_these_scenes": False}
    for key in ("start_scale", "samples", "best_of"):
        summary.pop(key, None)
    write_json(copy / "summary.json", summary)
    finish(copy, {"command": "evaluate"})
    page = write_report(copy, tmp_path / "report", 1).read_text()
    assert "reference at N\u00a0=\u00a04 with the same critic" in page
    assert "start noise" not in page.split("<h2>2")[0]


def test_the_page_names_start_noise_where_there_is_more_than_one(copy: Path, tmp_path: Path) -> None:
    summary = read_json(copy / "summary.json")
    summary["rows"] += [{**row, "start_scale": 0.0} for row in summary["rows"] if row["policy"] == "reference"]
    summary["chosen"]["references"]["4"] = {"policy": "reference", "candidates": 4, "start_scale": 0.0}
    write_json(copy / "summary.json", summary)
    rows = pyarrow.parquet.read_table(copy / "rows.parquet").to_pandas()
    more = rows[rows.policy == "reference"].assign(start_scale=0.0)
    pd.concat([rows, more], ignore_index=True).to_parquet(copy / "rows.parquet")
    finish(copy, {"command": "evaluate"})
    page = write_report(copy, tmp_path / "report", 0).read_text()
    assert "against 70.0 for the reference at start noise 0, N\u00a0=\u00a04" in re.sub(
        r"against [\d.]+ for", "against 70.0 for", page
    )
    assert "against fairest reference" in page
    assert "(the fairest on" in page
    assert not re.search(r"on validation,[,.<]", page)  # a label within a sentence


def test_what_the_human_filter_hides_is_said() -> None:
    after = {"score_unfiltered": 0.6, "overwritten": {"lane_keeping": 0.25, "no_at_fault_collisions": 0.0}}
    rows = {"chosen": after, "baseline": {"score_unfiltered": 0.5}}
    evaluation = SimpleNamespace(chosen="chosen", baseline="baseline", summary_row=rows.__getitem__)
    said = tables.filter_sentence(evaluation)  # type: ignore[arg-type]
    assert "60.0 against 50.0" in said
    assert "LK in 25.0% of scenes" in said
    assert "NC" not in said
    rows["chosen"] = {"score": 1.0}
    assert tables.filter_sentence(evaluation) == ""  # type: ignore[arg-type]
