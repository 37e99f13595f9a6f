"""`dipole-vla fit`: a recipe in, an exported folder out; the same command starts, resumes and skips.

It is also the command of every rank of a large run, started by any of: Lightning itself, torchrun, accelerate, srun.
Rank 0 alone opens, holds and fills the output folder.
"""

from __future__ import annotations

import errno
import math
import re
import warnings
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as L
import yaml
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins.environments import ClusterEnvironment
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from dipole_vla.commands.early import ELSEWHERE
from dipole_vla.commands.recipe import frames_of, one_line, plain, recipe_of, said_by_a_library, take_imports
from dipole_vla.data.module import DrivingData
from dipole_vla.data.pictures import began, pictures_entry
from dipole_vla.data.tables import SceneTable
from dipole_vla.forming import AS_RECORDED
from dipole_vla.preemption import Preempted, requeue
from dipole_vla.progress import console, skipped, wrote
from dipole_vla.provenance import provenance
from dipole_vla.training import ranks
from dipole_vla.training.accepted import check_built, check_keys, class_of, listed, recorded_callbacks, shown
from dipole_vla.training.base import FineTuning, check_candidates
from dipole_vla.training.callbacks import Curves, FiniteGradients, StepProgress
from dipole_vla.training.checkpoints import Checkpoints, SyncedFiles, newest_checkpoint
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.files import RECIPE, finish, is_complete, making, stamp, write_text
from navsim_adapter.foundation.option_checks import local_path

INPUTS = ("backbone", "scenes", "candidates", "critic", "start")  # keys that name folders of earlier stages
# Beyond rounding; these may change midway (the root of the pictures: what lies under it may not, see `_pictures`).
NO_EFFECT_ON_RESULT = ("sensors", "contexts", "workers", "keep_in_memory", "checkpointing")
SINCE = {"start": None, "shift": 0.0, "advantage": asdict(AS_RECORDED)}  # what was done before there was a choice
TRAINER = ("max_steps", "precision", "accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm")
CHECKPOINTS, LOGS = "checkpoints", "logs"


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
            auto_configure_optimizers=False,  # the modules have their own
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
        for key in ("optimizer", "lr_scheduler"):  # null in the recipe.yaml of earlier runs
            parser.add_argument(f"--{key}", type=Any, default=None, help=f"not used; {ELSEWHERE[key]}")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        super().parse_arguments(parser, args)
        for key, instead in ELSEWHERE.items():
            if self.config.get(key) is not None:
                raise InputError(f"{key}: is not supported, {instead}")
        check_keys(self.config)
        kind = class_of(self.config.model)
        if isinstance(kind, type) and issubclass(kind, FineTuning):
            check_candidates(kind, class_of(self.config.data), self.config.get("data.init_args.candidates"))

    def before_instantiate_classes(self) -> None:
        self.recipe = plain(self.parser, self.config)
        self.out: Path = local_path("--out", self.config.out)
        self.made_by = _made_by(self.recipe)
        self.made_by["data"] |= _pictures(self.recipe, self.out)
        if rank_zero_only.rank:  # type: ignore[attr-defined]
            with suppress(Exception):  # what is wrong with these keys is said when the trainer is built
                console.quiet = self._processes() > 1
        if is_complete(self.out, self.made_by):
            raise AlreadyComplete(self.out)

    def instantiate_classes(self) -> None:
        """Build everything, look at the data, then open the folder: a recipe with a wrong value has not begun one."""
        super().instantiate_classes()
        check_built(self.trainer, self.config.trainer)
        ranks.believe(self.trainer)
        if not self.trainer.is_global_zero:
            return
        self._look()
        if not self.held.enter_context(making(self.out, self.made_by, passing=(RECIPE, LOGS))):
            raise AlreadyComplete(self.out)
        write_text(self.out / RECIPE, yaml.safe_dump(self.recipe, sort_keys=False))

    def instantiate_trainer(self, **options: Any) -> L.Trainer:
        built = self.config_init.trainer
        try:
            plugins = listed(built.plugins)
            if self._processes() == 1 and not any(isinstance(plugin, ClusterEnvironment) for plugin in plugins):
                options["plugins"] = [*plugins, ranks.OneProcess()]
            return super().instantiate_trainer(**shown(listed(built.callbacks)), **options)
        except Exception as problem:
            if not said_by_a_library(problem):
                raise
            why = " ".join(str(problem).split())[:200]
            raise InputError(f"trainer: {why}; correct accelerator, devices or what else it names") from problem

    def _processes(self) -> int:
        trainer = self.config.trainer
        return ranks.processes(trainer.accelerator, trainer.devices, trainer.num_nodes)

    def _look(self) -> None:
        """Let the module open its data and look at it, as it will again when the trainer asks.

        Contexts that ranks make together, or in this very folder, have to wait.
        """
        trainer, module, data = cast(Any, self.trainer), self.model, self.datamodule
        trainer.strategy.connect(module)
        module.trainer = trainer
        contexts = data.contexts if isinstance(data, DrivingData) else None
        waits = contexts and (trainer.world_size > 1 or contexts.resolve().is_relative_to(self.out.resolve()))
        module.meet(data, may_open=not waits)


def fit(argv: Sequence[str], checkpoint: Path | None = None) -> None:
    """Train what the recipe names and export it to --out.

    checkpoint: to start from; None is the newest of --out, if there is one.
    """
    argv = take_imports(argv)
    recipe = recipe_of(argv, "fit")
    quiet_lightning()
    console.quiet = False
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
    opened = _entries(cli.out)
    try:
        trainer.fit(module, cli.datamodule, ckpt_path=checkpoint, weights_only=True)
    except Exception as problem:
        told = as_input_error(problem, cli.out)
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
        others = {entry for entry, files in _entries(cli.out).items() if files != opened.get(entry)}
        module.export(cli.out, provenance(cli.recipe))
        finish(cli.out, cli.made_by, exclude=(CHECKPOINTS, LOGS, *others))
        wrote(f"fit {name}", cli.out)


def _entries(folder: Path) -> dict[str, set[tuple[str, int, int]]]:
    """Top-level names in a folder with the files below them, their sizes and times: what changes while a run trains
    is a logger's or a profiler's, who may write on after the end, and no part of the result."""
    files = {path: path.lstat() for path in folder.rglob("*") if path.is_file()}
    found: dict[str, set[tuple[str, int, int]]] = {}
    for path, facts in files.items():
        inner = path.relative_to(folder)
        found.setdefault(inner.parts[0], set()).add((str(inner), facts.st_size, facts.st_mtime_ns))
    return found


def _step_of(checkpoint: Path | None) -> int:
    return int(checkpoint.stem.partition("=")[2]) if checkpoint else 0


def as_input_error(problem: Exception, out: Path) -> InputError | None:
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
    is_setting_up = not any(name.startswith("lightning.pytorch.loops") for name in frames_of(problem))
    is_memory = isinstance(problem, MemoryError) or "memory" in text  # the command line knows a remedy
    is_asked = isinstance(problem, MisconfigurationException) or (is_setting_up and not is_memory)
    if is_asked and said_by_a_library(problem):
        return InputError(f"trainer: {' '.join(text.split())[:300]}; correct the key of the recipe that it names")
    return None


def quiet_lightning() -> None:
    """Keep tips and known-benign warnings of the training stack off the terminal."""
    import logging

    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch.profilers").setLevel(logging.INFO)  # the report that was asked for
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
        ".*AMP with fp16 is not supported",  # `check_built` refuses what would run instead
        ".*srun. command is available",  # a login node, or a test
    ):
        warnings.filterwarnings("ignore", message=message)


def _parse(argv: Sequence[str], recipe: str, held: ExitStack) -> FitCLI:
    parser = LightningArgumentParser(exit_on_error=False)
    with one_line(recipe, parser, argv, ELSEWHERE):
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
        for key in NO_EFFECT_ON_RESULT:
            arguments.pop(key, None)
        for key, value in SINCE.items():
            if arguments.get(key) == value:
                arguments.pop(key, None)
        sections[section] = {"class": recipe[section]["class_path"], **arguments}
    sections["trainer"] = {key: recipe["trainer"].get(key) for key in TRAINER}
    callbacks = recorded_callbacks(recipe["trainer"].get("callbacks"))
    if callbacks:
        sections["trainer"]["callbacks"] = callbacks
    for section in ("model", "data", "trainer"):
        for key, value in sections[section].items():
            if isinstance(value, float) and not math.isfinite(value):
                raise InputError(f"{section}.{key}: must be a finite number, got {value}")
    return sections
