"""ReCogDrive's published files -> `ReCogDrive`: the planner's Lightning `.ckpt`, and the language model's folder.

A `.ckpt` has no configuration; sizes are read off its shapes. Its tables of the schedule are checked against ours and
not kept. A file of the reinforcement-learning stage carries frozen copies of earlier policies beside the policy; they
are checked to be copies by name and shape, and left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from dipole_vla.backbones.imported import Imported
from dipole_vla.backbones.internvl.importer import find_folder, read_sizes, read_weights_of, to_ours
from dipole_vla.backbones.internvl.model import InternVLSizes
from dipole_vla.backbones.recogdrive.model import (
    BOUNDS,
    DDIM,
    ReCogDrive,
    ReCogDriveConfig,
    bounded_action,
    image_token_of,
)
from dipole_vla.backbones.recogdrive.planner import Planner, PlannerSizes, rotary_frequencies
from dipole_vla.backbones.source_files import load_tokenizer, read_weights, refuse_adapters
from dipole_vla.backbones.weights import assign_strict, check_names
from dipole_vla.paths import CosineTable
from dipole_vla.solvers import SolverSpec
from navsim_adapter.foundation.errors import InputError

_PREFIX = re.compile(r"^(?:module\.)?(?:agent\.)?")
_HEAD, _VLM = "action_head.", "backbone.model."
_COPIES = ("old_policy.", "ref_policy.")
_ETA, _ROTARY = "eta.eta_logit", "model.rotary_embedder.inv_freq"
# What the published code draws fresh at every step unless told to be deterministic.
_STD_FLOOR, _NOISE_CLIP = 1e-4, 1.0


def read(
    source: Path,
    prediction: str | None = None,
    kinematic: str = "waypoint",
    encoder: Path | None = None,
    tokenizer: Path | None = None,
    horizon: int | None = None,
    sampler: str = "deterministic",
) -> Imported:
    """See `commands.import_.convert` for the options."""
    if kinematic not in BOUNDS:
        raise InputError(f"--kinematic: must be {' or '.join(BOUNDS)} for this family, got {kinematic!r}")
    path = _checkpoint(source)
    planner, vlm, prefix = _sort(read_weights(path), str(path))
    sizes, tables = _sizes(planner, prefix, str(path)), _tables(planner)
    horizon = horizon or sizes.positions
    if not 1 <= horizon <= sizes.positions:
        raise InputError(f"--horizon: must be 1 to {sizes.positions}, the planner's positions, got {horizon}")
    kept = {name: tensor for name, tensor in planner.items() if name not in tables}
    with torch.device("meta"):
        wanted = Planner(sizes).state_dict()
    check_names(_named(kept, prefix), _named(wanted, prefix), str(path))
    kind = _prediction(prediction, tables, str(path))
    train_steps, solver = _check_tables(tables, kind, sampler, sizes.head_dim, prefix, str(path))
    notes = [] if kind == "velocity" else [_sampler_note(sampler)]
    tensors = {f"action_head.{name}": tensor for name, tensor in kept.items()}

    folder = find_folder(source, encoder)
    language = InternVLSizes() if folder is None else read_sizes(folder)
    place = tokenizer or folder
    words = load_tokenizer(place) if place is not None else None
    if words is not None:
        language = replace(language, image_token=image_token_of(words))
    config = ReCogDriveConfig(
        **{**asdict(language), **asdict(sizes)}, prediction=kind, train_steps=train_steps, has_vlm=folder is not None
    )
    if folder is not None:
        found = to_ours(vlm, language, str(path), "backbone.model.") if vlm else read_weights_of(folder, language)
        tensors |= {f"vlm.{name}": tensor for name, tensor in found.items()}
        notes.append("the language model's LM head is not used and was left out")
    elif vlm:
        raise InputError(f"{path}: holds a language model without its sizes; pass its published folder as --encoder")
    else:
        notes.append("the planner alone: give it last_hidden_state, or import again with --encoder FOLDER")
    if folder is not None and words is None:
        notes.append("no tokenizer found, so it cannot read scenes yet; import with --tokenizer FOLDER")
    with torch.device("meta"):
        model = ReCogDrive(config, bounded_action(horizon, kinematic), solver)
    assign_strict(model, tensors, str(path))
    model.load_assets(path.parent / "nowhere")  # no assets yet: this computes the buffers that no file holds
    model.tokenizer = words
    return Imported(model.eval(), notes=notes)


def _checkpoint(source: Path) -> Path:
    """The planner's file: the source, or the only .ckpt in it."""
    if source.is_file():
        return source
    refuse_adapters(source)
    found = sorted(source.glob("*.ckpt"))
    if len(found) != 1:
        raise InputError(f"{source}: holds {len(found)} .ckpt files; pass the planner's file itself")
    return found[0]


def _named(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """As the file names them, so that a message does too."""
    return {prefix + name: tensor for name, tensor in tensors.items()}


def _sort(file: Mapping[str, Tensor], where: str) -> tuple[dict[str, Tensor], dict[str, Tensor], str]:
    """(planner tensors under published names, language model tensors, prefix of the planner's names in the file)."""
    planner: dict[str, Tensor] = {}
    vlm: dict[str, Tensor] = {}
    prefix = ""
    for raw, tensor in file.items():
        name = _PREFIX.sub("", raw)
        if name.startswith(_VLM):
            place, key = vlm, name
        else:
            place, key = planner, name.removeprefix(_HEAD)
            prefix = prefix or raw.removesuffix(key)
        if key in place:
            raise InputError(f"{where}: {raw} is there twice under different prefixes; keep one of them")
        place[key] = tensor
    copies = [name for name in planner if name.startswith(_COPIES)]
    for name in copies:
        own, copy = name.partition(".")[2], planner.pop(name)
        if own not in planner or planner[own].shape != copy.shape:
            raise InputError(f"{where}: unexpected key {prefix}{name}: the policy has no {own} of this shape")
    return planner, vlm, prefix


def _sizes(planner: Mapping[str, Tensor], prefix: str, where: str) -> PlannerSizes:
    def shape(name: str) -> torch.Size:
        if name not in planner:
            raise InputError(f"{where}: missing key {prefix}{name}; this file is not a ReCogDrive planner")
        return planner[name].shape

    block = "model.transformer_blocks.0.attn."
    width, feature_width = shape("feature_encoder.weight")
    head_dim = shape(block + "q_norm.weight")[0]
    depth = 1 + max(int(m[1]) for name in planner if (m := re.match(r"model\.transformer_blocks\.(\d+)\.", name)))
    return PlannerSizes(
        heads=width // head_dim,
        head_dim=head_dim,
        depth=depth,
        output_width=shape("model.final_layer.linear.weight")[0],
        hidden=shape("his_traj_encoder.fc1.weight")[0],
        feature_width=feature_width,
        positions=shape("position_embedding.weight")[0],
        action_dim=shape("action_encoder.fc1.weight")[1],
        history_dim=shape("his_traj_encoder.fc1.weight")[1],
        status_dim=shape("ego_status_encoder.fc1.weight")[1],
        is_biased=block + "to_q.bias" in planner,
    )


# --- the schedule's tables -------------------------------------------------------------------------------------


def _tables(planner: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n: t for n, t in planner.items() if n in (_ETA, _ROTARY) or n.startswith(("ddpm_", "ddim_"))}


def _prediction(given: str | None, tables: Mapping[str, Tensor], where: str) -> str:
    """Noise where the file has a noise schedule; the flow variant has none."""
    found = "noise" if any(name.startswith("ddpm_") for name in tables) else "velocity"
    if given not in (None, found):
        raise InputError(f"{where}: its tables are those of a model that predicts {found}; leave out --prediction")
    return found


def _check_tables(
    tables: Mapping[str, Tensor], prediction: str, sampler: str, head_dim: int, prefix: str, where: str
) -> tuple[int, SolverSpec | None]:
    """(times of the schedule, solver) of a file whose tables are exactly those we compute ourselves."""
    if sampler not in ("deterministic", "published"):
        raise InputError(f"--sampler: must be deterministic or published, got {sampler!r}")
    wanted = {_ROTARY: rotary_frequencies(head_dim)}
    if prediction == "velocity":
        _compare(tables, wanted, prefix, where)
        return ReCogDriveConfig.train_steps, None
    steps = tables["ddpm_betas"].numel() if "ddpm_betas" in tables else ReCogDriveConfig.train_steps
    if "ddim_t" not in tables:
        raise InputError(
            f"{where}: missing key {prefix}ddim_t; only the ddim and flow variants can be imported, not ddpm"
        )
    solver = replace(DDIM, steps=tables["ddim_t"].numel())
    if steps % solver.steps:
        raise InputError(f"{where}: ddim_t has {solver.steps} steps, which do not divide {steps} times; not supported")
    wanted |= _ddpm_tables(steps) | _ddim_tables(steps, solver.steps)
    check_names(_named(tables, prefix), _named({**wanted, _ETA: torch.empty(1)}, prefix), where)
    _compare({name: t for name, t in tables.items() if name != _ETA}, wanted, prefix, where)
    if sampler == "published":  # the file keeps eta as the atanh of its place in [0.1, 1]; +inf is 1
        value = 0.1 + 0.45 * (float(torch.tanh(tables[_ETA].float())) + 1)
        solver = replace(solver, eta=value, std_floor=_STD_FLOOR, noise_clip=_NOISE_CLIP)
    return steps, solver


def _compare(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], prefix: str, where: str) -> None:
    check_names(_named(found, prefix), _named(wanted, prefix), where)
    for name, table in wanted.items():
        if not torch.allclose(found[name].double(), table.double(), rtol=1e-4, atol=1e-6):
            raise InputError(f"{where}: {prefix}{name} is not the published table; this schedule is not supported")


def _ddpm_tables(steps: int) -> dict[str, Tensor]:
    """The tables a file holds of the cosine schedule, in float64."""
    bar = CosineTable(steps).alpha_bar
    before = torch.cat([torch.ones(1, dtype=bar.dtype), bar[:-1]])
    alphas = bar / before
    betas = 1 - alphas
    variance = betas * (1 - before) / (1 - bar)
    return {
        "ddpm_betas": betas,
        "ddpm_alphas": alphas,
        "ddpm_alphas_cumprod": bar,
        "ddpm_alphas_cumprod_prev": before,
        "ddpm_sqrt_alphas_cumprod": bar.sqrt(),
        "ddpm_sqrt_one_minus_alphas_cumprod": (1 - bar).sqrt(),
        "ddpm_sqrt_recip_alphas_cumprod": (1 / bar).sqrt(),
        "ddpm_sqrt_recipm1_alphas_cumprod": (1 / bar - 1).sqrt(),
        "ddpm_var": variance,
        "ddpm_logvar_clipped": variance.clamp(min=1e-20).log(),
        "ddpm_mu_coef1": betas * before.sqrt() / (1 - bar),
        "ddpm_mu_coef2": (1 - before) * alphas.sqrt() / (1 - bar),
    }


def _ddim_tables(steps: int, inference: int) -> dict[str, Tensor]:
    bar = CosineTable(steps).alpha_bar
    times = torch.arange(inference) * (steps // inference)
    chosen, before = bar[times], torch.cat([torch.ones(1, dtype=bar.dtype), bar[times[:-1]]])
    flipped = {
        "ddim_t": times,
        "ddim_alphas": chosen,
        "ddim_alphas_sqrt": chosen.sqrt(),
        "ddim_alphas_prev": before,
        "ddim_sqrt_one_minus_alphas": (1 - chosen).sqrt(),
        "ddim_sigmas": torch.zeros(inference),
    }
    return {"ddim_t_schedule": times, **{name: table.flip(0) for name, table in flipped.items()}}


def _sampler_note(sampler: str) -> str:
    if sampler == "published":
        return "samples with fresh noise at every step (eta 1), as the published code does by default"
    return "samples without fresh noise (eta 0), so that policies compare on equal noise; --sampler published adds it"
