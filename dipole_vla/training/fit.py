"""`dipole-vla fit`: a recipe in, an exported folder out; the same command starts, resumes and skips.

It is also the command of every rank of a large run, whoever starts it: Lightning itself, torchrun, accelerate, srun.
Rank 0 alone opens, holds and fills the output folder.
"""

from __future__ import annotations

import errno
import math
import re
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as L
import yaml
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from dipole_vla.data.pictures import began, pictures_entry
from dipole_vla.data.tables import SceneTable
from dipole_vla.preemption import Preempted, requeue
from dipole_vla.progress import console, skipped, wrote
from dipole_vla.provenance import provenance
from dipole_vla.recipes import one_line, plain, recipe_of, take_imports
from dipole_vla.training.base import FineTuning
from dipole_vla.training.callbacks import Curves, FiniteGradients, StepProgress
from dipole_vla.training.checkpoints import Checkpoints, SyncedFiles, newest_checkpoint
from navsim_adapter.errors import InputError
from navsim_adapter.files import RECIPE, finish, is_complete, making, stamp, write_text
from navsim_adapter.option_checks import check_range, local_path

INPUTS = ("backbone", "scenes", "candidates", "critic", "start")  # keys that name folders of earlier stages
NO_NUMBER = ("sensors", "contexts", "workers", "keep_in_memory", "checkpointing")  # beyond rounding; may change midway
# (the root of the pictures: what lies under it may not, see `_pictures`)
TRAINER = ("max_steps", "precision", "accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm")
CHECKPOINTS, LOGS = "checkpoints", "logs"
OTHER_ENDS: dict[str, tuple[Any, ...]] = {  # the trainer's other counts of a run's end, and when they mean nothing
    "fast_dev_run": (False,),
    "limit_train_batches": (None,),
    "overfit_batches": (0.0,),
    "max_epochs": (None, -1),
    "min_epochs": (None,),
    "min_steps": (None,),
}


class AlreadyComplete(Exception):
    """The output folder holds the finished result of this very recipe."""


class FitCLI(LightningCLI):
    """LightningCLI with an output folder.

    held: keeps the folder's lock.
    """

    def __init__(self, argv: Sequence[str], held: ExitStack):
        self.held = held
        super().__init__(
            FineTuning,
            L.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            run=False,
            save_config_callback=None,
            seed_everything_default=0,
            trainer_defaults={
                "logger": False,  # a recipe may name one; else CSV beside the result
                "enable_checkpointing": False,  # `fit` adds its own
                "enable_progress_bar": False,
                "enable_model_summary": False,
                "use_distributed_sampler": False,
            },
            parser_kwargs={"exit_on_error": False},
            args=list(argv),
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--out", type=Path, required=True, help="folder of this run and of its result")
        parser.add_argument("--checkpoint_every", type=int, default=500, help="steps between checkpoints")

    def before_instantiate_classes(self) -> None:
        strategy = self.config.trainer.strategy
        named = str(getattr(strategy, "class_path", strategy))
        if re.search(r"fsdp|ModelParallel|^deepspeed|DeepSpeedStrategy$", named, re.IGNORECASE):  # Lightning's own
            raise InputError(
                f"trainer.strategy: {named} is not supported, its checkpoints would be others; use "
                "dipole_vla.training.sharded.ShardedBackbone (FSDP2) or dipole_vla.training.deepspeed.PairDeepSpeed"
            )
        self.recipe = plain(self.parser, self.config)
        self.out: Path = local_path("--out", self.config.out)
        self.made_by = _made_by(self.recipe)
        self.made_by["data"] |= _pictures(self.recipe, self.out)
        trainer = self.config.trainer
        for key in ("max_steps", "accumulate_grad_batches"):
            check_range(f"trainer.{key}", trainer[key], 1)
        check_range("checkpoint_every", self.config.checkpoint_every, 1)
        for key, meaningless in OTHER_ENDS.items():
            value = self.config.trainer[key]
            if value not in meaningless:
                raise InputError(
                    f"trainer.{key}: {value} is not supported, a run ends at trainer.max_steps; for a short one give "
                    "--trainer.max_steps N and another --out"
                )
        if is_complete(self.out, self.made_by):
            raise AlreadyComplete(self.out)

    def instantiate_classes(self) -> None:
        """Build everything, then open the folder: a recipe with a wrong value has not begun one."""
        super().instantiate_classes()
        if _rank():
            return
        if not self.held.enter_context(making(self.out, self.made_by, passing=(RECIPE, LOGS))):
            raise AlreadyComplete(self.out)
        write_text(self.out / RECIPE, yaml.safe_dump(self.recipe, sort_keys=False))

    def instantiate_trainer(self, **options: Any) -> L.Trainer:
        try:
            return super().instantiate_trainer(**options)
        except (MisconfigurationException, ValueError) as problem:
            why = " ".join(str(problem).split())[:200]
            raise InputError(f"trainer: {why}; correct accelerator, devices or what else it names") from problem


def fit(argv: Sequence[str], checkpoint: Path | None = None) -> None:
    """Train what the recipe names and export it to --out.

    checkpoint: to start from; None is the newest of --out, if there is one.
    """
    argv = take_imports(argv)
    recipe = recipe_of(argv, "fit")
    quiet_lightning()
    console.quiet = _rank() != 0
    with ExitStack() as held:
        try:
            cli = _parse(argv, recipe, held)
        except AlreadyComplete as done:
            return skipped("fit", Path(str(done)))
        _train(cli, checkpoint or newest_checkpoint(cli.out / CHECKPOINTS))


def _train(cli: FitCLI, checkpoint: Path | None) -> None:
    module, trainer = cli.model, cast(Any, cli.trainer)
    name = type(module).__name__.removesuffix("Module").lower()
    if checkpoint:
        console.print(f"resuming from {checkpoint}")
    keeper = Checkpoints(cli.out / CHECKPOINTS, cli.config.checkpoint_every)
    trainer.callbacks += [StepProgress(f"fit {name}"), FiniteGradients(), keeper]
    trainer.loggers = trainer.loggers or [Curves(cli.out / LOGS, until=_step_of(checkpoint))]
    trainer.strategy.checkpoint_io = SyncedFiles()
    try:
        trainer.fit(module, cli.datamodule, ckpt_path=checkpoint, weights_only=True)
    except Exception as problem:
        told = _told(problem, cli.out)
        if told is None:
            raise
        raise told from problem
    if trainer.interrupted:
        raise InputError(f"{cli.out}: interrupted at step {trainer.global_step}; run the same command to go on")
    if keeper.notice and trainer.global_step < trainer.max_steps:
        what_next = requeue() if trainer.is_global_zero else "rank 0 asks for the next run"
        raise Preempted(f"{cli.out}: {keeper.notice} came, step {trainer.global_step} is saved; {what_next}")
    if trainer.global_step < trainer.max_steps:
        why = "trainer.max_time is over" if cli.config.trainer.max_time else "a callback ended the run"
        step = f"step {trainer.global_step} of {trainer.max_steps}"
        raise Preempted(f"{cli.out}: {why}, {step} is saved; run the same command to go on")
    if trainer.is_global_zero:
        module.export(cli.out, provenance(cli.recipe))
        finish(cli.out, cli.made_by, exclude=(CHECKPOINTS, LOGS))
        wrote(f"fit {name}", cli.out)


def _rank() -> int:
    """As the environment gives it, before any process group is there."""
    return rank_zero_only.rank  # type: ignore[attr-defined]


def _step_of(checkpoint: Path | None) -> int:
    return int(checkpoint.stem.partition("=")[2]) if checkpoint else 0


def _told(problem: Exception, out: Path) -> InputError | None:
    """What the user should read of a failure that is not the program's; None for all others."""
    text = str(problem)
    worker = re.search(r"DataLoader worker \(pid(?:\(s\))? ?([\d, ]+)\)(.*)", text)
    if worker:
        return InputError(
            f"{out}: loader worker {worker[1]} died ({' '.join(worker[2].split())[:80]}); the last checkpoint is "
            "intact; run the same command to go on, with fewer data.workers if memory was short"
        )
    gone = r"onnection (closed|reset)|roken pipe|imed out|NCCL error"
    if isinstance(problem, RuntimeError) and re.search(gone, text):
        return InputError(
            f"{out}: another rank is gone ({' '.join(text.split())[:120]}); the last checkpoint is intact; run the "
            "same command to go on"
        )
    if isinstance(problem, OSError) and problem.errno in (errno.ENOSPC, errno.EDQUOT):
        return InputError(
            f"{problem.filename or out}: no space left; the last checkpoint is intact; make room and run the same "
            "command again"
        )
    return None


def quiet_lightning() -> None:
    """Keep tips and known-benign warnings of the training stack off the terminal."""
    import logging

    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        "LightningCLI's args parameter",
        ".*num_workers",
        ".*LeafSpec",
        ".*isinstance.treespec",
        ".*module.s. in eval mode",
        ".*resuming from a checkpoint that ended before the epoch ended",  # our streams have no epochs
        ".*Experiment logs directory .* exists",  # `Curves` keeps what is there
        ".*all_gather_into_tensor",
        ".*No device id is provided",
        ".*srun. command is available",  # a login node, or a test
    ):
        warnings.filterwarnings("ignore", message=message)


def _parse(argv: Sequence[str], recipe: str, held: ExitStack) -> FitCLI:
    parser = LightningArgumentParser(exit_on_error=False)
    with one_line(recipe, parser, argv):
        return FitCLI(argv, held)


def _pictures(recipe: dict[str, Any], out: Path) -> dict[str, Any]:
    """Which pictures the scenes have, wherever they lie now."""
    arguments = recipe["data"].get("init_args", {})
    if "sensors" not in arguments:  # data of another kind
        return {}
    before = began(out)
    table = SceneTable(arguments["scenes"], arguments["sensors"])
    return pictures_entry(table.pictures, before and before.get("data", {}), out)


def _made_by(recipe: dict[str, Any]) -> dict[str, Any]:
    """What decides the result: model, data, seed, steps; folders of earlier stages by the stamp of their manifest."""
    sections: dict[str, Any] = {"command": "fit", "seed": recipe.get("seed_everything")}
    for section in ("model", "data"):
        arguments = dict(recipe[section].get("init_args", {}))
        for key in INPUTS:
            if arguments.get(key):
                arguments[key] = stamp(arguments[key])
        for key in NO_NUMBER:
            arguments.pop(key, None)
        if arguments.get("start") is None:  # as in a run from before there was a choice
            arguments.pop("start", None)
        sections[section] = {"class": recipe[section]["class_path"], **arguments}
    sections["trainer"] = {key: recipe["trainer"].get(key) for key in TRAINER}
    for section in ("model", "data", "trainer"):
        for key, value in sections[section].items():
            if isinstance(value, float) and not math.isfinite(value):
                raise InputError(f"{section}.{key}: must be a finite number, got {value}")
    return sections
