"""`fit` does what the recipe says, or refuses in one line before the first step, with nothing begun."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as L
import pytest
import torch
import yaml
from lightning.pytorch.utilities import rank_zero_only

sys.path.insert(0, str(Path(__file__).parent / "dipole_vla"))  # `small_data` lies with the tests of the package

from safetensors.torch import load_file
from small_data import write_inputs, write_manifest

from dipole_vla.cli import main
from dipole_vla.commands.recipe import said_by_a_library
from dipole_vla.policy import load_policy
from dipole_vla.training import DipoleModule, ranks
from dipole_vla.training.accepted import INSTEAD, KEYS, LOOKING
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.files import only_writer, verify, verify_listed
from tests.dipole_vla.checkpoints import same_state

OWN = "tests.dipole_vla.rank_callbacks"
ROOT = Path(__file__).resolve().parents[1]
SLURM = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "4", "SLURM_NODEID": "0"}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture
def fit(inputs: Path, tmp_path: Path):
    """The command line of a recipe of four steps into tmp_path/out, and what is typed beside it."""
    recipe = {
        "out": str(tmp_path / "out"),
        "checkpoint_every": 2,
        "model": {
            "class_path": "dipole_vla.training.DipoleModule",
            "init_args": {"backbone": str(inputs / "backbone"), "rank": 2},
        },
        "data": {
            "class_path": "dipole_vla.data.module.DrivingData",
            "init_args": {
                "scenes": str(inputs / "scenes"), "candidates": str(inputs / "candidates"), "batch_size": 4,
            },
        },
        "trainer": {"accelerator": "cpu", "devices": 1, "max_steps": 4, "log_every_n_steps": 1},
    }  # fmt: skip
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return lambda *words: ["fit", "--config", str(path), *map(str, words)]


def refused(line: list[str], capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main(line) == 2
    *waits, said = capsys.readouterr().err.strip().splitlines()
    assert all(wait.startswith("plan: ") for wait in waits), waits
    for word in words:
        assert word in said, said
    return said


def callbacks(*named: str | dict) -> list[str]:
    return ["--trainer.callbacks", json.dumps([{"class_path": n} if isinstance(n, str) else n for n in named])]


def imitation(inputs: Path) -> list[str]:
    words = {"class_path": "dipole_vla.training.ImitationModule", "init_args": {"backbone": str(inputs / "backbone")}}
    return ["--model", json.dumps(words)]


REFUSED = [
    # what only the export would miss
    (["--data.candidates", "null"], "data.candidates: a pair learns from scored candidates"),
    (["--data", '{"class_path": "lightning.pytorch.demos.boring_classes.BoringDataModule"}'], "data: BoringDataModule"),
    # Lightning's own optimiser keys
    (["--optimizer", "SGD", "--optimizer.lr", "0.01"], "model.warmup_steps"),
    (["--lr_scheduler", "StepLR", "--lr_scheduler.step_size", "1"], "model.weight_decay"),
    (["--ckpt_path", "x"], "newest checkpoint"),
    # callbacks that train, average or stop
    (["--trainer.callbacks", "EMAWeightAveraging"], "EMAWeightAveraging is not supported, model.ema_decay"),
    (["--trainer.callbacks", "StochasticWeightAveraging", "--trainer.callbacks.swa_lrs", "0.01"], "model.ema_decay"),
    (["--trainer.callbacks", "EarlyStopping", "--trainer.callbacks.monitor", "loss"], "trainer.max_steps"),
    (["--trainer.callbacks", "Timer", "--trainer.callbacks.duration", "00:01:00:00"], "trainer.max_time"),
    (["--trainer.callbacks", "ModelCheckpoint"], "`checkpoint_every`"),
    (["--trainer.callbacks", "BatchSizeFinder"], "data.batch_size"),
    (callbacks("LearningRateMonitor", "LearningRateFinder"), "LearningRateFinder is not supported, model.lr"),
    (callbacks({"class_path": "GradientAccumulationScheduler", "init_args": {"scheduling": {"0": 2}}}),
     "trainer.accumulate_grad_batches"),
    (callbacks({"class_path": "ModelPruning", "init_args": {"pruning_fn": "l1_unstructured"}}), "only those that look"),
    # keys that do nothing
    (["--trainer.val_check_interval", "10"], "trainer.val_check_interval"),
    (["--trainer.limit_val_batches", "5"], "trainer.limit_val_batches"),
    (["--trainer.check_val_every_n_epoch", "2"], "trainer.check_val_every_n_epoch"),
    (["--trainer.num_sanity_val_steps", "2"], "trainer.num_sanity_val_steps"),
    (["--trainer.enable_checkpointing", "true"], "checkpoint_every"),
    (["--trainer.use_distributed_sampler", "true"], "trainer.use_distributed_sampler"),
    (["--trainer.reload_dataloaders_every_n_epochs", "1"], "trainer.reload_dataloaders_every_n_epochs"),
    # strategies whose ranks or checkpoints are others
    (["--trainer.strategy", "ddp_fork", "--trainer.devices", "2"], "PairDeepSpeed"),
    (["--trainer.strategy", "ddp_spawn", "--trainer.devices", "2"], "PairDeepSpeed"),
    (["--trainer.strategy", "ddp_notebook_find_unused_parameters_true"], "forked or spawned"),
    (["--trainer.strategy", '{"class_path": "DDPStrategy", "init_args": {"start_method": "fork"}}'], "PairDeepSpeed"),
    (["--trainer.strategy", "deepspeed_stage_2"], "PairDeepSpeed"),
    (["--trainer.strategy", '{"class_path": "DeepSpeedStrategy", "init_args": {"stage": 3}}'], "PairDeepSpeed"),
    (["--trainer.strategy", "fsdp_cpu_offload"], "PairDeepSpeed"),
    (["--trainer.strategy", "xla"], "PairDeepSpeed"),
    # precisions
    (["--trainer.precision", "bf16-true", "--model.pair", "separate"], "trainer.precision: bf16-true keeps no float32"),
    (["--trainer.precision", "16-mixed"], "bf16-mixed would run here"),
    # what the trainer, the logger or the seeding would refuse
    (["--trainer.devices", "-1"], "trainer: "),
    (["--trainer.precision", "transformer-engine"], "transformer_engine"),
    (["--trainer.profiler", "foo"], "trainer: "),
    (["--trainer.strategy", "foo"], "invalid strategy name"),
    (["--seed_everything", "-1"], "seed_everything: must be 0 to 4294967295"),
    (["--seed_everything", str(2**40)], "seed_everything: must be 0 to 4294967295"),
    (["--seed_everything", "true"], "seed_everything: True is no number"),
    (["--model.seed", "-1"], "model.seed: must be 0"),
    (["--data.seed", "-1"], "data.seed: must be 0"),
    # null, which the parser lets through for any argument of a class
    (["--model.beta", "null"], "model.beta: null"),
    (["--model.scope", "null"], "model.scope: null"),
    (["--model.pair", "null"], "model.pair: null"),
    (["--data.workers", "null"], "data.workers: null"),
    # folders beside --out
    (["--data.contexts", "s3://bucket/contexts"], "data.contexts: 's3:/bucket/contexts'"),
    (["--data.contexts", "~/contexts"], "data.contexts: '~/contexts'"),
    # what a constructor says, though other types were tried after its own
    (["--trainer.strategy", "dipole_vla.training.sharded.ShardedBackbone"], "write it as {class_path: "),
    (["--trainer.strategy", '{"class_path": "dipole_vla.training.deepspeed.PairDeepSpeed",'
      ' "init_args": {"config": "nowhere.json"}}'], "nowhere.json"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "told"), REFUSED, ids=[" ".join(words)[:60] for words, _ in REFUSED])
def test_what_a_run_would_not_obey_is_refused_before_it_begins(fit, tmp_path, capsys, words, told) -> None:
    refused(fit(*words), capsys, told)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("words", [["--data.candidates", "null"], ["--trainer.callbacks", "EMAWeightAveraging"]])
def test_plan_refuses_what_fit_does(fit, capsys, words) -> None:
    refused(["plan", *fit(*words)[1:]], capsys, words[0].lstrip("-"))


def test_every_kind_of_lightnings_callbacks_either_looks_or_has_something_in_its_place() -> None:
    from lightning.pytorch import callbacks as known

    kinds = [kind for kind in map(vars(known).get, known.__all__) if kind is not known.Callback]
    rest = {kind.__name__ for kind in kinds if not issubclass(kind, (*LOOKING, *INSTEAD))}
    assert rest == {"ModelPruning", "LambdaCallback"}
    assert not any(issubclass(kind, LOOKING) and issubclass(kind, tuple(INSTEAD)) for kind in kinds)
    assert L.Trainer(**{key: allowed[0] for key, (allowed, _) in KEYS.items()}, logger=False)


@pytest.mark.parametrize(
    ("package", "logger"), [("wandb", "WandbLogger"), ("mlflow", "MLFlowLogger"), ("comet", "CometLogger")]
)
def test_a_logger_whose_package_is_missing_is_named(fit, tmp_path, capsys, package, logger) -> None:
    if shutil.which(package):
        pytest.skip(f"{package} is installed")
    refused(fit("--trainer.logger", logger), capsys, "command line", logger, package)
    assert not (tmp_path / "out").exists()


def test_weights_that_train_themselves_are_not_rounded(inputs, fit, tmp_path, capsys):
    line = fit("--trainer.precision", "16-true", *imitation(inputs))
    refused(line, capsys, "trainer.precision: 16-true keeps no float32 copy", "bf16-mixed")
    assert not (tmp_path / "out").exists()


def test_candidates_that_do_not_say_what_an_export_says_of_them(inputs, fit, tmp_path, capsys) -> None:
    for key in ("metric", "split"):
        folder = tmp_path / key
        shutil.copytree(inputs / "candidates", folder)
        about = json.loads((folder / "candidates.json").read_text())
        del about[key]
        (folder / "candidates.json").write_text(json.dumps(about))
        write_manifest(folder)
        refused(fit("--data.candidates", folder), capsys, str(folder), f"does not say '{key}'")
        assert not (tmp_path / "out").exists()
    assert main(fit()) == 0  # nothing in the way


# -- where a mistake is ------------------------------------------------------------------------------------------------


def test_what_was_typed_is_not_blamed_on_the_recipe(fit, capsys) -> None:
    for words in (["--model.betta", "4"], ["--model.beta", "-1"], ["--trainer.max_steps", "two"], ["--betta", "1"]):
        assert refused(fit(*words), capsys).startswith("error: command line: ")
    path = Path(fit()[2])
    path.write_text(path.read_text().replace("rank: 2", "rank: 2\n    betta: 4"))
    assert refused(fit(), capsys, "did you mean 'beta'").startswith(f"error: {path}: ")


def test_an_optimiser_in_the_recipe_is_refused_and_null_is_not(fit, tmp_path, capsys) -> None:
    """Null stood in the recipe.yaml of every run from before."""
    path = Path(fit()[2])
    text = path.read_text()
    path.write_text("optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.1}}\n" + text)
    refused(fit(), capsys, "optimizer: ", "model.lr is the rate")
    path.write_text("lr_scheduler: {class_path: torch.optim.lr_scheduler.StepLR}\noptimizer: null\n" + text)
    refused(fit(), capsys, "lr_scheduler: ", "model.warmup_steps")
    path.write_text("lr_scheduler: null\noptimizer: null\n" + text)
    assert main(fit()) == 0
    assert main(["consolidate", str(tmp_path / "out"), "--out", str(tmp_path / "whole")]) == 0


@pytest.mark.parametrize("command", ["fit", "launch", "doctor"])
def test_a_key_twice_in_a_mapping_is_named(fit, capsys, command) -> None:
    path = Path(fit()[2])
    path.write_text(path.read_text().replace("max_steps: 4", "max_steps: 4\n  max_steps: 8"))
    refused([command, "--config", str(path)], capsys, str(path), "key 'max_steps' stands in lines")


def test_a_failure_in_our_code_or_the_users_keeps_its_traceback(fit, monkeypatch) -> None:
    words = ["--allow-import", "tests", *callbacks({"class_path": f"{OWN}.Scaled", "init_args": {"factor": 0}})]
    with pytest.raises(Exception, match="a mistake in a class of the user's"):
        main(fit(*words))
    monkeypatch.setattr("dipole_vla.plugin.make_pair", lambda *_: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(ValueError, match="size"):  # the parser's, from the RuntimeError
        main(fit())


def test_what_a_library_says_is_told_apart_by_where_it_was_said() -> None:
    with pytest.raises(TypeError) as library:
        ranks.processes("cpu", -1, 1)
    problem = library.value
    assert not said_by_a_library(problem)  # this test called it
    assert said_by_a_library(problem.with_traceback(problem.__traceback__.tb_next))
    with pytest.raises(InputError) as ours:
        DipoleModule("nowhere")
    assert not said_by_a_library(ours.value.with_traceback(ours.value.__traceback__.tb_next))


# -- ranks -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def foreign_rank(monkeypatch):
    """As in the third task of a job: read from RANK or SLURM_PROCID when Lightning is imported."""
    monkeypatch.setattr(rank_zero_only, "rank", 2)
    for name, value in {**SLURM, "SLURM_PROCID": "2", "SLURM_LOCALID": "2", "RANK": "2", "LOCAL_RANK": "2"}.items():
        monkeypatch.setenv(name, value)


def test_a_run_of_one_process_is_rank_0_whatever_the_environment_says(fit, tmp_path, capsys, foreign_rank) -> None:
    assert main(fit()) == 0
    out = tmp_path / "out"
    for name in ("stage.json", "recipe.yaml", "logs/metrics.csv", ".lock", "manifest.json"):
        assert (out / name).is_file(), name
    assert "✓ fit dipole" in capsys.readouterr().out
    (out / "manifest.json").unlink()
    refused(fit("--model.beta", "9"), capsys, "model.beta", "made with 1.0, now 9.0")


@pytest.mark.parametrize("strategy", ["auto", "ddp", "dipole_vla.training.deepspeed.PairDeepSpeed"])
def test_the_trainer_of_one_process_hears_of_no_other(foreign_rank, strategy) -> None:
    if "." in strategy:
        from dipole_vla.training.deepspeed import PairDeepSpeed

        strategy = PairDeepSpeed(stage=2)
    trainer = L.Trainer(accelerator="cpu", devices=1, strategy=strategy, plugins=ranks.OneProcess(), logger=False)
    ranks.believe(trainer)
    assert (trainer.global_rank, trainer.world_size, rank_zero_only.rank) == (0, 1, 0)
    assert ranks.processes("cpu", 1, 1) == 1
    assert ranks.processes("cpu", 2, 3) == 6


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({**SLURM, "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, "number 0 of 1"),
        ({**SLURM, "SLURM_NTASKS_PER_NODE": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, "tasks per node"),
        ({**SLURM, "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, "--ntasks=4"),
        ({"NODE_RANK": "1"}, "number 2 of 2"),
    ],
)
def test_ranks_that_nobody_started_are_not_waited_for(fit, tmp_path, capsys, monkeypatch, variables, words) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    refused(fit("--trainer.devices", "2", "--trainer.strategy", "ddp"), capsys, "trainer", words)
    monkeypatch.setattr(rank_zero_only, "rank", 0)
    assert not (tmp_path / "out").exists()


def test_a_folder_in_use_is_refused_to_another_task_of_the_job(fit, tmp_path) -> None:
    """Locks belong to processes, so this takes a second one."""
    (tmp_path / "out").mkdir()
    task = {**os.environ, **SLURM, "RANK": "1", "SLURM_PROCID": "1", "SLURM_LOCALID": "1", "OMP_NUM_THREADS": "1"}
    with only_writer(tmp_path / "out"):
        done = subprocess.run(
            [sys.executable, "-m", "dipole_vla.cli", *fit()], capture_output=True, text=True, cwd=ROOT, env=task
        )
    assert done.returncode == 2, done.stderr
    assert "is writing here" in done.stderr


# -- what is allowed ---------------------------------------------------------------------------------------------------


def halfway(out: Path) -> None:
    """Make a finished folder what a kill after the second step would have left."""
    shutil.rmtree(out / "positive")
    shutil.rmtree(out / "negative")
    for name in ("manifest.json", "policy.json", "checkpoints/step=00000004.ckpt"):
        (out / name).unlink()


def test_callbacks_that_look_change_nothing_and_a_resumed_run_is_exact(fit, tmp_path, capsys) -> None:
    looking = ["--allow-import", "tests", *callbacks(
        "LearningRateMonitor", "DeviceStatsMonitor", "ModelSummary", "TQDMProgressBar",
        {"class_path": f"{OWN}.LossRecord", "init_args": {"folder": str(tmp_path / "losses")}},
    )]  # fmt: skip
    assert main(fit("--out", tmp_path / "plain")) == 0
    assert main(fit(*looking)) == 0
    halfway(tmp_path / "out")
    capsys.readouterr()
    elsewhere = [word.replace(str(tmp_path / "losses"), str(tmp_path / "others")) for word in looking]
    assert main(fit(*elsewhere)) == 0
    assert "resuming from" in capsys.readouterr().out
    last = Path("checkpoints") / "step=00000004.ckpt"
    mine, theirs = (torch.load(tmp_path / name / last, weights_only=True) for name in ("out", "plain"))
    assert mine["state_dict"].keys() == theirs["state_dict"].keys()
    assert all(torch.equal(tensor, theirs["state_dict"][name]) for name, tensor in mine["state_dict"].items())


def test_a_callback_of_the_users_may_train_and_is_part_of_the_record(fit, tmp_path, capsys) -> None:
    def scaled(factor: float) -> list[str]:
        named = {"class_path": f"{OWN}.Scaled", "init_args": {"factor": factor}}
        return fit("--allow-import", "tests", *callbacks(named))

    assert main(scaled(0.5)) == 0
    assert f"{OWN}.Scaled" in (tmp_path / "out" / "stage.json").read_text()
    halfway(tmp_path / "out")
    refused(scaled(0.25), capsys, "trainer.callbacks", "another --out")
    refused(fit(), capsys, "trainer.callbacks", "another --out")
    assert main(scaled(0.5)) == 0
    assert main([*scaled(0.5), "--out", str(tmp_path / "whole")]) == 0
    last = Path("checkpoints") / "step=00000004.ckpt"
    assert same_state(tmp_path / "out" / last, tmp_path / "whole" / last)


def test_a_logger_that_writes_on_in_the_folder_spoils_nothing(fit, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    logger = {"class_path": f"{OWN}.ScatteredLogger", "init_args": {"save_dir": str(out)}}
    line = fit("--allow-import", "tests", "--trainer.logger", json.dumps(logger))
    assert main(line) == 0
    halfway(out)
    (out / "positive").mkdir()
    (out / "positive" / "adapter_config.json").write_text("{}")  # as a kill amid the export leaves it
    assert main(line) == 0
    curves = out / "scattered" / "version_0" / "metrics.csv"
    with curves.open("a") as file:
        file.write("written on\n")
    verify_listed(out)
    verify(out)
    listed = json.loads((out / "manifest.json").read_text())["files"]
    assert "positive/adapter_config.json" in listed
    assert not [name for name in listed if name.startswith("scattered")]
    assert load_policy(out).pair is not None
    assert main(["export", str(out), "--out", str(tmp_path / "peft")]) == 0
    capsys.readouterr()
    assert main(line) == 0
    assert "already complete" in capsys.readouterr().out


def test_a_profiler_shows_its_report(fit) -> None:
    told: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("lightning.pytorch.profilers")
    logger.addHandler(handler)
    try:
        assert main(fit("--trainer.profiler", "simple")) == 0
    finally:
        logger.removeHandler(handler)
    assert any("Profiler Report" in text for text in told)


def test_contexts_within_the_folder_of_the_run(fit, tmp_path) -> None:
    assert main(fit("--data.contexts", tmp_path / "out" / "contexts")) == 0
    assert main(fit("--out", tmp_path / "plain")) == 0
    one, two = (load_file(tmp_path / out / "positive" / "adapter_model.safetensors") for out in ("out", "plain"))
    assert all(torch.allclose(tensor, two[name], atol=1e-6) for name, tensor in one.items())
