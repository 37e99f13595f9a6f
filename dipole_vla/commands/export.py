"""`dipole-vla export`: write a policy for others to load, after checking that what was written does the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from dipole_vla.backbones.weights import write_json
from dipole_vla.data.pictures import began, pictures_entry
from dipole_vla.data.tables import SceneTable
from dipole_vla.export.distil import Distillation, distil
from dipole_vla.export.peft import write_peft
from dipole_vla.export.program import FILES, check_packages, write_loop
from dipole_vla.export.torchscript import write_torchscript
from dipole_vla.policy import AdapterPair, GuidedPolicy, load_policy
from dipole_vla.progress import console, skipped, wrote
from dipole_vla.provenance import provenance
from dipole_vla.scoring import Scorer, identity
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.files import finish, is_made, making, stamp
from navsim_adapter.foundation.option_checks import check_range
from navsim_adapter.foundation.statistics import TOO_FEW
from navsim_adapter.foundation.words import counted

REPORT = "export.json"
LOOPS = (*FILES, "torchscript")
Format = Literal["peft", "distilled", "program", "onnx", "torchscript"]


def export(
    policy: Path,
    out: Path | None = None,
    format: Format = "peft",
    omega: float | None = None,
    candidates: int = 1,
    solver_steps: int | None = None,
    scenes: Path | None = None,
    sensors: Path | None = None,
    scorer: Scorer | None = None,
    highest: float = 4.0,
    rank: int | None = None,
    steps: int = 400,
    batch_size: int = 8,
    lr: float = 1e-3,
    held_out: float = 0.25,
    seed: int = 0,
    device: str = "auto",
    backbone: Path | None = None,
    recipe: dict[str, Any] | None = None,
) -> None:
    """Write POLICY as plain PEFT adapters, as one distilled network, or as a sampling loop that leaves this program.

    Args:
        policy: policy folder written by `dipole-vla fit`.
        out: folder to write.
        format: peft = positive/ and negative/, each loadable by PEFT alone; distilled = a policy folder whose guidance
            takes one pass, for any omega; program, onnx = an encoder and a sampling loop that takes omega, by
            torch.export or as ONNX; torchscript = one file, pictures and noise in, plans out.
        omega: greed; of the loop (torchscript), to report at (distilled) or to suggest (program, onnx); null is the
            policy's own.
        candidates: plans per scene of the loop.
        solver_steps: of the loop; null is the backbone's own.
        scenes: scenes to distil on, as written by `navsim-adapter convert`; no score is read.
        sensors: root of the camera paths; default is the one recorded in `scenes`.
        scorer: with `cache` of the scenes, scores guided and distilled plans of the held-out ones.
        highest: omega is drawn from 0 to this.
        rank: of the distilled correction; null is twice the adapters'.
        steps: of distillation.
        batch_size: scenes per step of distillation.
        lr: of distillation.
        held_out: share of the scenes that distillation does not see and that are reported on.
        seed: noise, omegas, order of the scenes.
        device: auto, cpu, cuda.
        backbone: of a policy folder, where its backbone is no longer at the place that the policy names.
        recipe: filled by the command line with the resolved recipe.
    """
    if out is None:
        raise InputError("--out: is required; give the folder to write")
    check_range("--candidates", candidates, 1)
    check_range("--solver_steps", solver_steps, 1)
    check_range("--omega", omega)
    training = Distillation(highest, rank, steps, batch_size, lr, held_out, seed)
    made_by: dict[str, Any] = {"command": "export", "format": format, "policy": stamp(policy), "omega": omega}
    if format == "distilled":
        made_by |= _distilled_of(training, scenes, sensors, scorer, out)
    elif format in LOOPS:
        made_by |= {"candidates": candidates, "solver_steps": solver_steps, "seed": seed}

    if is_made(out, made_by):
        return skipped("export", out)
    check_packages(format)
    console.print(f"export {format}: loading {policy}", markup=False, soft_wrap=True)
    actor = _loaded(policy, backbone, "cpu" if format == "onnx" else device, format, omega)
    with making(out, made_by) as is_open:
        if not is_open:
            return skipped("export", out)
        if format == "distilled":
            assert scenes is not None
            assert isinstance(actor.pair, AdapterPair)
            found = distil(actor, actor.pair, out, training, scenes, sensors, scorer)
            _save_distilled(actor, policy, backbone, out, recipe or {})
        else:
            found = _write(actor, out, format, candidates, solver_steps, seed)
        about = {"format": format, "policy": str(policy), **found}
        write_json(out / REPORT, {**about, "provenance": provenance(recipe or {})})
        for line in _lines(about):
            console.print(line, soft_wrap=True, markup=False)
        finish(out, made_by)
    wrote(f"export {format}", out)


def _loaded(policy: Path, backbone: Path | None, device: str, format: str, omega: float | None) -> GuidedPolicy:
    """The policy to export, of a kind that the format can hold, its omega as asked for."""
    actor = load_policy(policy, backbone, device)
    if actor.pair is None or (format not in FILES and not isinstance(actor.pair, AdapterPair)):
        raise InputError(f"{policy}: has no pair of LoRA adapters to export")
    if omega is not None:
        actor.guidance = replace(actor.guidance, omega=omega)
    return actor


def _write(
    actor: GuidedPolicy, out: Path, format: Format, candidates: int, solver_steps: int | None, seed: int
) -> dict[str, Any]:
    """The files of every format that takes no training; returns what was measured on them."""
    if format == "program" or format == "onnx":
        return write_loop(actor, out, format, candidates, solver_steps, seed)
    if format == "torchscript":
        return write_torchscript(actor, out, candidates, solver_steps, seed)
    return write_peft(actor, out)


def _distilled_of(
    training: Distillation, scenes: Path | None, sensors: Path | None, scorer: Scorer | None, out: Path
) -> dict[str, Any]:
    """What decides a distilled network, beside the policy."""
    if scenes is None:
        raise InputError("--scenes: is required to distil; give a folder written by `navsim-adapter convert`")
    pictures = pictures_entry(SceneTable(scenes, sensors).pictures, began(out), out)
    scored_by = identity(scorer) if scorer is not None else None
    return {"scenes": stamp(scenes), **training.__dict__, **pictures, "scorer": scored_by}


def _save_distilled(
    actor: GuidedPolicy, policy: Path, backbone: Path | None, out: Path, recipe: dict[str, Any]
) -> None:
    """The whole policy folder again, with the distilled network beside the pair."""
    from dipole_vla.backbones.weights import read_json
    from dipole_vla.policy.folder import POLICY

    where = backbone or (policy / read_json(policy / POLICY)["backbone"]).resolve()
    made = {**actor.provenance, "distilled_from": str(policy), "export": provenance(recipe)}
    actor.save_pretrained(out, backbone=where, provenance=made)


def _lines(about: dict[str, Any]) -> list[str]:
    """The report's numbers for the terminal."""
    lines = []
    for row in about.get("fidelity", []):
        lines.append(
            f"omega {row['omega']:g}: guidance moves plans by {row['moved_m']:.3f} m; off the guided plans are "
            f"distilled {row['distilled_m']:.3f} m, adapters merged by arithmetic {row['arithmetic_m']:.3f} m"
        )
        lines.append(
            f"    loss against the guided prediction: distilled {row['distilled_loss']:.3g}, "
            f"by arithmetic {row['arithmetic_loss']:.3g}, positive policy alone {row['positive_loss']:.3g}"
        )
    if "score" in about:
        score = about["score"]
        found = score["difference_ci95"]
        interval = TOO_FEW if found is None else f"{found[0]:+z.2f}, {found[1]:+z.2f}"
        lines.append(
            f"{score['metric']} at omega {score['omega']:g}, {counted(score['scenes'], 'held-out scene')}: "
            f"guided {score['guided']:.2f}, distilled {score['distilled']:.2f}, "
            f"difference {score['difference']:+z.2f} [{interval}]"
        )
    if "difference_m" in about:
        lines.append(f"reloaded and compared with the policy: largest difference {about['difference_m']:.2e} m")
    return lines
