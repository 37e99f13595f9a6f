"""What the three trainings share: the optimiser and its schedule, seeded noise, the finite check, light checkpoints."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Self

import lightning.pytorch as L
import torch
from lightning.pytorch.plugins.precision import HalfPrecision
from torch import Tensor, nn

from dipole_vla.data.contexts import Encoder, Ranks
from dipole_vla.data.module import DrivingData, DrivingDataset
from dipole_vla.data.pictures import refuse_other_cameras
from dipole_vla.data.tables import CandidateTable
from dipole_vla.policy import Backbone, Context
from dipole_vla.progress import console
from dipole_vla.training.ema import WeightMean
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.option_checks import check_range

EXPORTED = ("advantage", "metric", "split", "allow_eval_split")  # of candidates.json: what an export says of them


class FineTuning(L.LightningModule):
    """A LightningModule whose checkpoints hold only what trains, and which ends in an exported folder.

    needs_observation: whether training steps look at the scene itself (pictures, prompt, history).
    needs_candidates: who of this training needs scored candidates, for the message; empty if nobody does.
    reads_of_advantage: keys of `data.advantage` that this training obeys; others are refused.
    reads_variants: whether it learns from candidates of source variant, too, as a critic does.
    """

    needs_observation = True
    needs_candidates = ""
    reads_of_advantage: tuple[str, ...] = ()
    reads_variants = False
    backbone: Backbone
    dataset: DrivingDataset | None = None  # what it was fed

    def __init__(self, lr: float, warmup_steps: int, weight_decay: float, seed: int, ema_decay: float = 0.0):
        super().__init__()
        check_range("model.lr", lr, 0)
        check_range("model.seed", seed, 0, 2**32 - 1)
        check_range("model.warmup_steps", warmup_steps, 0)
        check_range("model.weight_decay", weight_decay, 0)
        self.lr, self.warmup_steps, self.weight_decay, self.noise_seed = lr, warmup_steps, weight_decay, seed
        self.ema_decay = ema_decay
        self.mean: WeightMean | None = None  # made with the optimiser
        self.strict_loading = False  # frozen weights are not in the checkpoint
        self._restored_mean: Mapping[str, Any] | None = None
        self._said: set[str] = set()

    def say(self, remark: str | None) -> None:
        """One line on the terminal, of one rank, once: `setup` runs twice."""
        if remark and remark not in self._said and self.trainer.is_global_zero:
            self._said.add(remark)
            console.print(remark, markup=False, soft_wrap=True)

    def setup(self, stage: str) -> None:
        """Lightning's hook: here alone a training and its data meet through the trainer."""
        self.meet(getattr(self.trainer, "datamodule", None))

    def meet(self, data: Any, may_open: bool = True) -> None:
        """Refuse what would be missed only after the last step, or never. Cheap: `fit` asks before it opens its folder,
        and the trainer again.

        may_open: whether the scenes may be read now, if they are not yet.
        """
        check_candidates(type(self), type(data), getattr(data, "candidates", None))
        self._check_precision()
        if isinstance(data, DrivingData):
            data.advantage.refuse_unread(self.reads_of_advantage, type(self).__name__)
            self.dataset = self._opened(data) if may_open else data.dataset
            if self.dataset is not None:
                self.look_at(self.dataset)

    def _opened(self, data: DrivingData) -> DrivingDataset:
        trainer: Any = self.trainer
        encoder = partial(self.frozen_encoder, trainer.strategy.root_device)
        ranks = Ranks(trainer.global_rank, trainer.world_size, trainer.strategy.barrier)
        return data.open(self.backbone, self.needs_observation, encoder, ranks, self.reads_variants)

    def look_at(self, dataset: DrivingDataset) -> None:
        """Refuse, or remark on, what this training is to learn from."""
        candidates = dataset.candidates
        if candidates is None:
            return
        refuse_other_cameras(candidates.folder, candidates.about, lambda: dataset.processor)
        self.say(candidates.remark_on_pictures(dataset.scenes))
        self.say(dataset.formed_otherwise)
        absent = [key for key in EXPORTED if key not in candidates.about]
        if self.needs_candidates and absent:
            raise InputError(f"{candidates.folder}: candidates.json does not say {absent[0]!r}; collect them again")

    @property
    def candidates(self) -> CandidateTable:
        """What this training learns from, where it needs scored candidates."""
        assert self.dataset is not None
        assert self.dataset.candidates is not None
        return self.dataset.candidates

    def _check_precision(self) -> None:
        trainer: Any = self.trainer
        exact = {id(tensor) for _, tensor in self.named_exact()}
        rounded = [name for name, parameter in self.named_trained() if id(parameter) not in exact]
        if rounded and isinstance(trainer.precision_plugin, HalfPrecision):
            raise InputError(
                f"trainer.precision: {trainer.precision} keeps no float32 copy of what trains here (first "
                f"{rounded[0]}), and steps too small for it are lost; use bf16-mixed"
            )

    @abstractmethod
    def parameter_groups(self) -> list[dict[str, Any]]:
        """What the optimiser gets."""

    @abstractmethod
    def export(self, folder: Path, provenance: Mapping[str, Any]) -> None:
        """Write the result of the training (a backbone, a critic or a policy folder)."""

    def frozen_encoder(self, device: torch.device) -> Encoder | None:
        """What this training reads of a scene, if that never changes and may be stored; on `device`."""
        return None

    def configure_optimizers(self):
        if self.ema_decay:
            self.mean = WeightMean(self.named_trained(), self.ema_decay)
            if self._restored_mean is not None:
                self.mean.restore(self._restored_mean)
        optimizer = torch.optim.AdamW(self.parameter_groups(), lr=self.lr, weight_decay=self.weight_decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, WarmupThenLinear(self.warmup_steps, self.trainer.max_steps)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def named_trained(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, parameter) for name, parameter in self.named_parameters() if parameter.requires_grad]

    def named_exact(self) -> Iterable[tuple[str, Tensor]]:
        """What keeps its float32 numbers under a trainer that casts the module to half precision."""
        return ()

    def to(self, *arguments: Any, **named: Any) -> Self:
        """Like nn.Module.to, but `named_exact` keep their values: a trip through half precision would change them."""
        kept = {name: tensor.data for name, tensor in self.named_exact()}
        super().to(*arguments, **named)
        for name, tensor in self.named_exact():
            tensor.data = kept[name].to(tensor.device)
        return self

    def optimizer_step(self, *arguments: Any, **named: Any) -> None:
        """One step of the optimiser, then of the weights' mean: before any callback saves a checkpoint."""
        super().optimizer_step(*arguments, **named)
        if self.mean is not None:
            self.mean.update()

    def averaged(self) -> AbstractContextManager[None]:
        """Within the block the weights are their running mean, where there is one: what is exported."""
        return nullcontext() if self.mean is None else self.mean.in_place()

    def gradients(self) -> Mapping[str, Iterable[nn.Parameter]]:
        """Parameters by the name their gradient norm is logged under."""
        return {"grad_norm": (parameter for _, parameter in self.named_trained())}

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log gradient norms, before clipping. `callbacks.FiniteGradients` is who stops at one that is not finite."""
        for name, parameters in self.gradients().items():
            found = [parameter.grad for parameter in parameters if parameter.grad is not None]
            if found:  # an engine of its own (DeepSpeed) keeps them
                self.log(name, torch.nn.utils.get_total_norm(found))

    def step_generator(self) -> torch.Generator:
        """Noise of this batch by its place in the data's global order, whatever came before.

        A resumed run draws the same numbers, and so do two ranks and one process that accumulates two batches.
        """
        generator = torch.Generator(device=self.device)
        trainer = self.trainer
        batch = trainer.global_step * trainer.accumulate_grad_batches
        batch += trainer.fit_loop.epoch_loop.batch_idx % trainer.accumulate_grad_batches
        place = batch * trainer.world_size + trainer.global_rank
        return generator.manual_seed((self.noise_seed * 1_000_003 + place) % 2**63)

    def checked(self, loss: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """The loss, or an InputError that names the scenes when it is not finite; no step is taken then."""
        if not torch.isfinite(loss):
            tokens = _not_finite_scenes(batch) or batch["token"]
            raise InputError(
                f"step {self.trainer.global_step}: loss is {loss.item()} on tokens {', '.join(tokens)}; "
                f"{suspects(self.trainer)}; no step was taken, the last checkpoint is intact"
            )
        return loss

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        frozen = {name for name, parameter in self.named_parameters() if not parameter.requires_grad}
        if frozen:  # a frozen backbone's buffers do not change either
            frozen |= {name for name, _ in self.named_buffers()}
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k not in frozen}
        if self.mean is not None:
            checkpoint["weight_mean"] = self.mean.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        missing = trained - checkpoint["state_dict"].keys()
        if missing:
            raise InputError(
                f"checkpoint: {len(missing)} trained tensors are missing, first {min(missing)}; start afresh"
            )
        if self.ema_decay:
            if "weight_mean" not in checkpoint:
                raise InputError("checkpoint: made without model.ema_decay; start afresh, or set it to 0")
            self._restored_mean = checkpoint["weight_mean"]
            if self.mean is not None:
                self.mean.restore(checkpoint["weight_mean"])


def check_candidates(kind: type[FineTuning], data: type | None, candidates: Any) -> None:
    """InputError if a training of that kind could take steps on such data, and then not export what it has learnt."""
    if not kind.needs_candidates:
        return
    if data is None or not issubclass(data, DrivingData):
        named = getattr(data, "__name__", data)
        raise InputError(f"data: {named} holds no scored candidates; name dipole_vla.data.module.DrivingData")
    if candidates is None:
        raise InputError(
            f"data.candidates: {kind.needs_candidates} learns from scored candidates; give the folder of `collect`"
        )


def suspects(trainer: Any) -> str:
    """What may be behind a number that is not finite."""
    precision = str(getattr(trainer, "precision", ""))
    half = f", or train without trainer.precision {precision}" * precision.startswith(("16", "bf16"))
    overflow = ", whose numbers end at 65504" * precision.startswith("16")
    return f"check these scenes, or lower model.lr{half}{overflow}"


def stored_context(backbone: Backbone, batch: Mapping[str, Any]) -> Context:
    """The batch's contexts from disk, in the frozen weights' own precision."""
    dtype = next(parameter.dtype for parameter in backbone.parameters() if not parameter.requires_grad)
    return Context({name: x.to(dtype) if x.is_floating_point() else x for name, x in batch["context"].items()})


def _not_finite_scenes(batch: Mapping[str, Any]) -> list[str]:
    """Tokens whose own numbers in the batch hold a NaN or an infinity."""
    tables = [*batch.get("observation", {}).values(), *batch.get("context", {}).values()]
    tables += [batch[name] for name in ("poses", "score", "advantage") if name in batch]
    finite = [torch.isfinite(table.flatten(1)).all(1).tolist() for table in tables if table.dim() > 1]
    return [token for token, *good in zip(batch["token"], *finite) if not all(good)]


class WarmupThenLinear:
    """Learning-rate factor: linear warm-up, then linear to zero at the last step."""

    def __init__(self, warmup_steps: int, max_steps: int):
        self.warmup_steps, self.max_steps = warmup_steps, max_steps

    def __call__(self, step: int) -> float:
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.max_steps <= 0:
            return 1.0
        return max(0.0, (self.max_steps - step) / max(1, self.max_steps - self.warmup_steps))


def split_decay(named: Iterable[tuple[str, nn.Parameter]], weight_decay: float, **options: Any) -> list[dict[str, Any]]:
    """AdamW groups: matrices decay, vectors (biases, norms, embeddings of positions) do not."""
    matrices: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for _, parameter in named:
        if parameter.requires_grad:
            (matrices if parameter.ndim >= 2 else vectors).append(parameter)
    groups = [
        {"params": matrices, "weight_decay": weight_decay, **options},
        {"params": vectors, "weight_decay": 0.0, **options},
    ]
    return [group for group in groups if group["params"]]
