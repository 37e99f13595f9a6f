"""`dipole-vla import`: a published checkpoint, in its family's own layout, becomes a checkpoint folder of ours.

    OUT           config.json, model.safetensors, tokenizer/
    OUT/policy    only where the source has a pair of adapters: the guided policy on that backbone

How a family's files are read is in its own module, named in `IMPORTERS`. Nothing is imported partly.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from dipole_vla.backbones.chosen import choose_cameras, choose_interval
from dipole_vla.backbones.imported import Imported, PublishedPair
from dipole_vla.backbones.weights import check_names, read_json
from dipole_vla.guidance import SIGNS
from dipole_vla.policy import Guidance, GuidedPolicy
from dipole_vla.policy.adapters import AdapterPair
from dipole_vla.progress import console, skipped, wrote
from navsim_adapter.foundation.errors import InputError, did_you_mean
from navsim_adapter.foundation.files import finish, is_made, making

IMPORTERS: dict[str, str] = {
    "alpamayo": "dipole_vla.backbones.alpamayo.importer",
    "dp_vla": "dipole_vla.backbones.dp_vla.importer",
    "pi0": "dipole_vla.backbones.pi0.importer",
    "pi05": "dipole_vla.backbones.pi05.importer",
    "recogdrive": "dipole_vla.backbones.recogdrive.importer",
    "simwam": "dipole_vla.backbones.simwam.importer",
    "smolvla": "dipole_vla.backbones.smolvla.importer",
    "xvla": "dipole_vla.backbones.xvla.importer",
}
"""Family -> module with `read(source, **options) -> Imported`."""


def convert(
    source: Path,
    family: str | None = None,
    out: Path | None = None,
    prediction: Literal["noise", "sample", "velocity"] | None = None,
    kinematic: Literal["waypoint", "diff", "velocity"] | None = None,
    encoder: Path | None = None,
    tokenizer: Path | None = None,
    base: Path | None = None,
    heads: int | None = None,
    action_mode: str | None = None,
    horizon: int | None = None,
    interval: float | None = None,
    cameras: list[str] | None = None,
    domain: int | None = None,
    sampler: Literal["deterministic", "published"] | None = None,
    reasoning: int | None = None,
    rl_split: str | None = None,
    seed: int | None = None,
    sizes: dict[str, Any] | None = None,
) -> None:
    """Turn a published checkpoint into a checkpoint folder of this program.

    Args:
        source: published folder or file.
        family: alpamayo, dp_vla, pi0, pi05, recogdrive, simwam, smolvla or xvla.
        out: folder to write.
        prediction: what the network predicts. dp_vla's files do not say: default noise for waypoints, else sample.
        kinematic: what the numbers mean. dp_vla: waypoint or diff, where no config.json says so. recogdrive: waypoint
            (published), or velocity for a planner trained on delta targets, which its file does not say.
        encoder: dp_vla: a Florence-2 folder for the encoder's sizes, tokenizer and, if the source has none, weights;
            for the last also a full DP-VLA folder. recogdrive: the folder of the language model. alpamayo: a folder of
            its Qwen3-VL for sizes and tokenizer. simwam: the folder of Wan2.2's VAE and the prompt's embedding, if
            not the source's. smolvla: a SmolVLM2 folder, for sizes other than the published ones and its tokenizer.
        tokenizer: folder of the tokenizer, where the source has none.
        base: dp_vla: imported backbone folder, for a source that holds adapters only.
        heads: dp_vla: attention heads of the action head, where no config.json says so. simwam: of both experts,
            default 24.
        action_mode: xvla: auto turns a checkpoint for robot arms into one to be trained for driving.
        horizon: pi0, pi05, recogdrive, smolvla, xvla: poses in a plan, instead of the checkpoint's own number.
        interval: seconds between the poses of a plan, where the checkpoint does not say; default 0.5.
        cameras: whose pictures are the model's views, in this order, e.g. [CAM_F0]; default the family's.
        domain: xvla: which of the checkpoint's domains to start from, instead of the one its files name.
        sampler: recogdrive: deterministic (default), or published, which draws fresh noise at every step.
        reasoning: alpamayo: most tokens of reasoning that are written before a plan; default 0, none.
        rl_split: split that the imported adapters were trained on; evaluation refuses it.
        seed: of weights that the source does not have (a new action head).
        sizes: pi05, smolvla: fields of the configuration that its files do not say, or say otherwise. simwam:
            image_size.
    """
    if family is None or out is None:
        raise InputError(f"--{'family' if family is None else 'out'}: is required; see dipole-vla import --help")
    options = {
        "prediction": prediction,
        "kinematic": kinematic,
        "encoder": encoder,
        "tokenizer": tokenizer,
        "base": base,
        "heads": heads,
        "action_mode": action_mode,
        "horizon": horizon,
        "domain": domain,
        "sampler": sampler,
        "reasoning": reasoning,
        "seed": seed,
        "sizes": sizes,
    }
    import_checkpoint(family, source, out, rl_split, interval, cameras, **options)


def import_checkpoint(
    family: str,
    source: Path,
    out: Path,
    rl_split: str | None = None,
    interval: float | None = None,
    cameras: Sequence[str] | None = None,
    **options: Any,
) -> None:
    """Read `source` by its family's rules and write OUT; see `convert` for the options, of which None means unset."""
    source, out = Path(source), Path(out)
    if family not in IMPORTERS:
        hint = did_you_mean(family, list(IMPORTERS))
        raise InputError(f"family: {family!r} cannot be imported{hint}; known are {', '.join(IMPORTERS)}")
    if not source.exists():
        raise InputError(f"{source}: no such file or folder; pass the published checkpoint")
    if (source / "config.json").is_file() and "family" in read_json(source / "config.json"):
        raise InputError(f"{source}: is already a checkpoint of this program; use it as it is")
    read = importlib.import_module(IMPORTERS[family]).read
    given = {name: value for name, value in options.items() if value is not None}
    for name in given:
        if name not in inspect.signature(read).parameters:
            raise InputError(f"--{name}: means nothing to family {family}; leave it out")
    made_by: dict[str, Any] = {
        "command": "import",
        "family": family,
        "source": str(source.resolve()),
        "source_files": _listing(source),
        "rl_split": rl_split,
        "options": {name: str(value) for name, value in given.items()},
    }
    meant = {"interval": interval, "cameras": cameras and list(cameras)}
    made_by |= {name: value for name, value in meant.items() if value is not None}  # not so in folders of before
    if is_made(out, made_by):
        return skipped("import", out)
    console.print(f"import: reading {source}", markup=False, soft_wrap=True)
    imported: Imported = read(source, **given)  # before OUT is begun: a refused source must leave nothing there
    if interval is not None:
        choose_interval(imported.backbone, interval)
    if cameras is not None:
        choose_cameras(imported.backbone, cameras)
    with making(out, made_by) as is_open:
        if not is_open:
            return skipped("import", out)
        _save(imported, source, out, rl_split)
        finish(out, made_by)
    total = sum(parameter.numel() for parameter in imported.backbone.parameters())
    console.print(f"{family}: {total / 1e6:.2f} M parameters, every key of the source accounted for")
    for note in imported.notes:
        console.print(f"note: {note}", markup=False)
    wrote("import", out)


def _save(imported: Imported, source: Path, out: Path, rl_split: str | None) -> None:
    if imported.base is None:
        imported.backbone.save_pretrained(out)
    if imported.pair is not None:
        provenance = {"imported_from": source.name, "rl_split": rl_split}
        folder = out / "policy" if imported.base is None else out
        _save_policy(imported, imported.pair, folder, imported.base or out, provenance)
        console.print(f"guided policy (rank {imported.pair.rank}): {folder}", markup=False)


def _save_policy(
    imported: Imported, published: PublishedPair, folder: Path, base: Path, provenance: dict[str, Any]
) -> None:
    pair = AdapterPair(imported.backbone, "head", published.rank, published.alpha)
    for role in SIGNS:
        check_names(published.states[role], pair.state(role), f"{published.where}: {role}")
    with torch.no_grad():
        for role in SIGNS:
            for name, parameter in pair.state(role).items():
                parameter.copy_(published.states[role][name])
    policy = GuidedPolicy(imported.backbone, pair, guidance=Guidance(omega=published.omega), provenance=provenance)
    policy.save_pretrained(folder, base)


def _listing(source: Path) -> dict[str, int]:
    """Names and sizes of the source's files: what tells two sources apart without hashing gigabytes."""
    if source.is_file():
        return {source.name: source.stat().st_size}
    return {str(path.relative_to(source)): path.stat().st_size for path in sorted(source.rglob("*")) if path.is_file()}
