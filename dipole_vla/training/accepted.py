"""What a recipe may ask of Lightning. A key, callback or strategy that a run would not obey, or that would make it
another run than its record and its checkpoints say, is refused by its kind before anything is built.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from typing import Any, get_args, get_type_hints

import lightning.pytorch as L
from lightning.pytorch import callbacks as C
from lightning.pytorch import strategies as S
from lightning.pytorch.strategies import StrategyRegistry
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher

from dipole_vla.forming import Advantage
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.option_checks import check_range

_END = "a run ends at trainer.max_steps; for a short one give --trainer.max_steps N and another --out"
_VALIDATION = "a training looks at no validation data; leave it out, `dipole-vla evaluate` judges the result"
_NO_EPOCHS = "the data has no epochs; leave it out"
KEYS: dict[str, tuple[tuple[Any, ...], str]] = {  # the values that ask for nothing, and what to do about all others
    **{key: (values, _END) for key, values in {
        "fast_dev_run": (False,), "limit_train_batches": (None,), "overfit_batches": (0.0,), "max_epochs": (None, -1),
        "min_epochs": (None,), "min_steps": (None,),
    }.items()},
    **{key: (values, _VALIDATION) for key, values in {
        "limit_val_batches": (None, 0), "limit_test_batches": (None, 0), "limit_predict_batches": (None, 0),
        "val_check_interval": (None,), "check_val_every_n_epoch": (None, 1), "num_sanity_val_steps": (None, 0),
    }.items()},
    "reload_dataloaders_every_n_epochs": ((0,), _NO_EPOCHS),
    "use_distributed_sampler": ((False,), "the data deals itself out to the ranks; leave it out"),
    "enable_checkpointing": ((False,), "checkpoints are taken every `checkpoint_every` steps; leave it out"),
    "model_registry": ((None,), "the result is the --out folder; leave it out"),
}  # fmt: skip

LOOKING = (C.DeviceStatsMonitor, C.LearningRateMonitor, C.ModelSummary, C.ProgressBar, C.ThroughputMonitor)
"""Lightning's callbacks that only look; the others train, average or stop, on a state of their own."""

INSTEAD: dict[type, str] = {
    C.WeightAveraging: "model.ema_decay averages what trains",
    C.StochasticWeightAveraging: "model.ema_decay averages what trains",
    C.GradientAccumulationScheduler: "trainer.accumulate_grad_batches is one number for the whole run",
    C.LearningRateFinder: "model.lr is the rate",
    C.BatchSizeFinder: "data.batch_size is the size, `dipole-vla plan` counts what fits",
    C.EarlyStopping: _END,
    C.Timer: "trainer.max_time ends a start in time",
    C.Checkpoint: "checkpoints are taken every `checkpoint_every` steps",
    C.BaseFinetuning: "model.scope and model.encoder_lr_scale say what trains",
    C.SpikeDetection: "trainer.gradient_clip_val bounds a step, and a loss that is not finite ends the run",
    C.BasePredictionWriter: "`dipole-vla drive` writes plans",
}

FOREIGN = (S.DeepSpeedStrategy, S.FSDPStrategy, S.ModelParallelStrategy, S.XLAStrategy, S.SingleDeviceXLAStrategy)
OURS = (
    "use ddp, dipole_vla.training.sharded.ShardedBackbone (FSDP2) or dipole_vla.training.deepspeed.PairDeepSpeed"
    " (ZeRO 1, 2, 3)"
)
PRECISIONS = {None: "32-true", "32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed", "64": "64-true"}


def check_keys(config: Any) -> None:
    """Refuse what the parsed recipe names and no run obeys; nothing is built, nothing is read."""
    trainer = config.trainer
    for key in ("max_steps", "accumulate_grad_batches"):
        check_range(f"trainer.{key}", trainer[key], 1)
    check_range("checkpoint_every", config.checkpoint_every, 1)
    _check_seeds(config)
    for section in ("model", "data"):
        _check_nulls(section, config[section])
    Advantage.of(as_plain(config.get("data.init_args.advantage")))
    for key, (meaningless, instead) in KEYS.items():
        if trainer[key] not in meaningless:
            raise InputError(f"trainer.{key}: {trainer[key]} is not supported, {instead}")
    for named in listed(trainer.callbacks):
        _check_callback(class_of(named))
    kind = class_of(trainer.strategy)
    if kind is not None and issubclass(kind, FOREIGN) and not _has_our_checkpoints(kind):
        named = _name(trainer.strategy)
        raise InputError(f"trainer.strategy: {named} is not supported, its checkpoints would be others; {OURS}")
    if isinstance(trainer.strategy, str) and "." in trainer.strategy and trainer.strategy not in StrategyRegistry:
        written = f"{{class_path: {trainer.strategy}}}"
        raise InputError(f"trainer.strategy: {trainer.strategy} is a class, not a name; write it as {written}")


def check_built(trainer: L.Trainer, asked: Any) -> None:
    """Refuse a trainer that would not do as asked: what only the built one knows.

    asked: `trainer` of the parsed recipe.
    """
    if isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
        raise InputError(
            f"trainer.strategy: {_name(asked.strategy)} is not supported, its ranks are forked or spawned and what "
            f"they have learnt ends with them; {OURS}, in a script"
        )
    precision = None if asked.precision is None else str(asked.precision)
    wanted = PRECISIONS.get(precision, precision)
    if trainer.precision != wanted:
        raise InputError(
            f"trainer.precision: {wanted} was asked, {trainer.precision} would run here; ask for "
            f"trainer.precision {trainer.precision}, or for another accelerator"
        )


def shown(callbacks: list[Any]) -> dict[str, bool]:
    """The trainer's keys without which it refuses the progress bars and summaries among these callbacks."""
    kinds = {"enable_progress_bar": C.ProgressBar, "enable_model_summary": C.ModelSummary}
    return {key: True for key, kind in kinds.items() if any(isinstance(callback, kind) for callback in callbacks)}


def recorded_callbacks(callbacks: Any) -> list[Any]:
    """Those of the resolved recipe that may train, with their arguments: whatever is not known to look only."""
    return [named for named in listed(callbacks) if not _only_looks(class_of(named))]


def class_of(named: Any) -> type | None:
    """The class that a parsed value names: by its path, which the parser has imported, or as a registered strategy."""
    path = named.get("class_path", "") if isinstance(named, Mapping) else getattr(named, "class_path", named)
    if path in StrategyRegistry:
        return StrategyRegistry[path]["strategy"]
    module, _, name = str(path).rpartition(".")
    found = getattr(sys.modules.get(module, S), name, None)
    return found if isinstance(found, type) else None


def _name(named: Any) -> str:
    return str(getattr(named, "class_path", named))


def _check_callback(kind: type | None) -> None:
    if kind is None or _only_looks(kind):
        return
    for refused, instead in INSTEAD.items():
        if issubclass(kind, refused):
            raise InputError(f"trainer.callbacks: {kind.__name__} is not supported, {instead}")
    if _is_lightnings(kind):
        known = ", ".join(looking.__name__ for looking in LOOKING)
        raise InputError(
            f"trainer.callbacks: {kind.__name__} is not supported, of Lightning's callbacks only those that look are: "
            f"{known}; write one of your own, --allow-import trusts it"
        )


def _only_looks(kind: type | None) -> bool:
    """A class of the user's says so by `only_looks = True`."""
    if kind is None or issubclass(kind, tuple(INSTEAD)):
        return False
    return issubclass(kind, LOOKING) if _is_lightnings(kind) else bool(getattr(kind, "only_looks", False))


def _is_lightnings(kind: type) -> bool:
    return kind.__module__.partition(".")[0] == "lightning"


def _has_our_checkpoints(kind: type) -> bool:
    from dipole_vla.training.deepspeed import PairDeepSpeed

    return issubclass(kind, PairDeepSpeed)


def _check_nulls(section: str, named: Any) -> None:
    """The parser lets null through for any argument of a class."""
    kind = class_of(named)
    if kind is None or named.get("init_args") is None:
        return
    construct: Any = kind.__init__  # type: ignore[misc]  # of a class, not of an instance
    hints, parameters = get_type_hints(construct), inspect.signature(kind).parameters
    for name, value in vars(named.init_args).items():
        hint = hints.get(name, Any)
        if value is None and name in parameters and hint is not Any and type(None) not in get_args(hint):
            default = parameters[name].default
            raise InputError(f"{section}.{name}: null is no value; leave the key out for the default ({default})")


def _check_seeds(config: Any) -> None:
    seeds = {"seed_everything": config.seed_everything, "data.seed": config.get("data.init_args.seed")}
    for key, seed in seeds.items():
        if isinstance(seed, bool):
            raise InputError(f"{key}: {seed} is no number; a run that can be resumed and repeated needs one, as in 0")
        check_range(key, seed, 0, 2**32 - 1)


def as_plain(named: Any) -> Any:
    """Sections within a parsed value as plain data."""
    return named.as_dict() if hasattr(named, "as_dict") else named


def listed(named: Any) -> list[Any]:
    """A key that holds nothing, one thing or a list."""
    if named is None:
        return []
    return named if isinstance(named, list) else [named]
