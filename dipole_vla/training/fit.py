"""`dipole-vla fit`: a recipe in, an exported folder out; the same command starts, resumes and skips."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as L
import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger

from dipole_vla.progress import console, skipped, wrote
from dipole_vla.provenance import provenance
from dipole_vla.recipes import one_line, plain, recipe_of, take_imports
from dipole_vla.training.base import FineTuning
from dipole_vla.training.callbacks import StepProgress
from navsim_adapter.errors import InputError
from navsim_adapter.files import begin, finish, stamp, write_text

INPUTS = ("backbone", "scenes", "candidates", "critic")  # keys that name folders of earlier stages
CHECKPOINTS, LOGS = "checkpoints", "logs"


class AlreadyComplete(Exception):
    """The output folder holds the finished result of this very recipe."""


class FitCLI(LightningCLI):
    """LightningCLI with an output folder: opens it after parsing, before anything heavy is built."""

    def __init__(self, argv: Sequence[str]):
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
        self.recipe = plain(self.parser, self.config)
        self.out: Path = self.config.out
        self.made_by = _made_by(self.recipe)
        if not begin(self.out, self.made_by):
            raise AlreadyComplete(self.out)
        write_text(self.out / "recipe.yaml", yaml.safe_dump(self.recipe, sort_keys=False))
        if self.config.trainer.max_steps <= 0:
            raise InputError(
                f"trainer.max_steps: must be > 0, got {self.config.trainer.max_steps}; training is counted in steps"
            )


def fit(argv: Sequence[str]) -> None:
    """Train what the recipe names and export it to --out."""
    argv = take_imports(argv)
    recipe = recipe_of(argv)
    quiet_lightning()
    try:
        cli = _parse(argv, recipe)
    except AlreadyComplete as done:
        return skipped("fit", Path(str(done)))
    module, trainer = cli.model, cast(Any, cli.trainer)
    name = type(module).__name__.removesuffix("Module").lower()
    keeper = ModelCheckpoint(
        dirpath=cli.out / CHECKPOINTS,
        filename="{step:08d}",
        every_n_train_steps=cli.config.checkpoint_every,
        save_top_k=2,
        monitor="step",
        mode="max",
        enable_version_counter=False,
    )
    trainer.callbacks += [keeper, StepProgress(f"fit {name}")]
    trainer.loggers = trainer.loggers or [CSVLogger(cli.out, name=LOGS, version="")]
    checkpoint = newest_checkpoint(cli.out / CHECKPOINTS)
    if checkpoint:
        console.print(f"resuming from {checkpoint}")
    trainer.fit(module, cli.datamodule, ckpt_path=checkpoint, weights_only=True)
    if trainer.interrupted:
        raise InputError(f"{cli.out}: interrupted at step {trainer.global_step}; run the same command to go on")
    if trainer.is_global_zero:
        module.export(cli.out, provenance(cli.recipe))
        finish(cli.out, cli.made_by, exclude=(CHECKPOINTS, LOGS))
        wrote(f"fit {name}", cli.out)


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that can be read; a damaged one is named and skipped."""
    for path in sorted(folder.glob("*.ckpt"), reverse=True):
        try:
            torch.load(path, map_location="meta", weights_only=True, mmap=True)
        except Exception as problem:  # any damage: zip directory, pickle, storage
            console.print(f"[yellow]{path}: damaged ({type(problem).__name__}), using the one before[/yellow]")
            continue
        return path
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
    ):
        warnings.filterwarnings("ignore", message=message)


def _parse(argv: Sequence[str], recipe: str) -> FitCLI:
    parser = LightningArgumentParser(exit_on_error=False)
    with one_line(recipe, parser):
        return FitCLI(argv)


def _made_by(recipe: dict[str, Any]) -> dict[str, Any]:
    """What decides the result: model, data, seed, steps; folders of earlier stages by the stamp of their manifest."""
    sections: dict[str, Any] = {"command": "fit", "seed": recipe.get("seed_everything")}
    for section in ("model", "data"):
        arguments = dict(recipe[section].get("init_args", {}))
        for key in INPUTS:
            if arguments.get(key):
                arguments[key] = stamp(arguments[key])
        arguments.pop("sensors", None)
        sections[section] = {"class": recipe[section]["class_path"], **arguments}
    sections["trainer"] = {
        key: recipe["trainer"].get(key) for key in ("max_steps", "precision", "accumulate_grad_batches")
    }
    return sections
