"""What a step of two policies costs beside an ordinary LoRA step of the same backbone: one table, one run.

    python benchmarks/training.py            # a DP-VLA of the published geometry at a quarter of the width
    python benchmarks/training.py --quick    # a tiny one: shows that the script works, not what the step costs

Times are CPU seconds of this process (on a GPU: of its stream), from a batch's arrival to the end of the optimiser's
step. The ordinary step is PEFT with one adapter: frozen encoder, head on the same noisy actions, mean squared error.
Memory is the peak of a process of its own, less what it held before it built the model. An epoch is every scene once,
read from disk: pictures decoded and resized, or stored contexts.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import lightning.pytorch as L
import numpy as np
import torch
from datasets import Dataset
from datasets.utils.logging import disable_progress_bar
from peft import LoraConfig, inject_adapter_in_model
from PIL import Image
from torch import Tensor

from dipole_vla.backbones import load_backbone
from dipole_vla.backbones.dp_vla.model import DPVLA, DPVLAConfig
from dipole_vla.commands.fit import quiet_lightning
from dipole_vla.data.contexts import Encoder
from dipole_vla.data.module import DrivingData
from dipole_vla.objective import per_sample_loss
from dipole_vla.paths import interpolate, target
from dipole_vla.training import DipoleModule
from dipole_vla.training.base import FineTuning, stored_context
from navsim_adapter.foundation.files import finish, write_json

MIDDLE: dict[str, Any] = {
    "width": 256, "depth": 12, "heads": 8, "input_width": 256, "context_width": 256, "text_width": 256,
    "text_layers": 12, "text_heads": 8, "text_hidden": 1024, "text_positions": 1024, "image_size": 384,
    "vision_dims": (64, 128, 256, 512), "vision_heads": (2, 4, 8, 16), "vision_depths": (1, 1, 9, 1),
    "vision_patch": (7, 3, 3, 3), "vision_stride": (4, 2, 2, 2), "vision_window": 12, "image_positions": 50,
}  # fmt: skip
VARIANTS = ("single", "both", "bernoulli")
RANKS = {"middle": 8, "quick": 4}  # as the recipe's 32 is to the published width of 1024


class SingleLora(FineTuning):
    """The ordinary step: one PEFT adapter on the head, imitation of the candidates."""

    def __init__(self, backbone: Path, rank: int):
        super().__init__(lr=3e-4, warmup_steps=1, weight_decay=0.0, seed=0)
        self.folder, self.backbone = backbone, load_backbone(backbone)
        self.backbone.freeze()
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=self.backbone.lora_scopes["head"])
        inject_adapter_in_model(config, self.backbone)
        self.backbone.eval()

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": [parameter for parameter in self.parameters() if parameter.requires_grad]}]

    def frozen_encoder(self, device: torch.device) -> Encoder:
        fingerprint = DPVLA.from_pretrained(self.folder).fingerprint()
        return Encoder(self.backbone.to(device).encode, self.backbone.processor(), fingerprint, device)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        generator, backbone = self.step_generator(), self.backbone
        x0 = backbone.action.encode(batch["poses"]).flatten(0, 1)
        noise = torch.randn(x0.shape, generator=generator, device=x0.device)
        t = backbone.schedule.sample_t(len(x0), generator=generator).to(x0.device)
        context = stored_context(backbone, batch) if "context" in batch else backbone.encode(batch["observation"])
        output = backbone.denoise(context, interpolate(backbone.schedule, x0, noise, t), t)
        loss = per_sample_loss(output, target(backbone.prediction, backbone.schedule, x0, noise, t)).mean()
        self.log("loss", loss)
        return loss

    def export(self, folder: Path, provenance: Any) -> None: ...


class Clock(L.Callback):
    """Seconds of every step but the first, and of all of them with their reading."""

    def __init__(self) -> None:
        self.steps: list[float] = []

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        self._start = now()

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        self.end = now()
        self.steps.append(self.end - self._start)
        if len(self.steps) == 1:
            self.warm = self.end

    @property
    def per_step_with_reading(self) -> float:
        return (self.end - self.warm) / (len(self.steps) - 1)


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def write_inputs(folder: Path, size: str, scenes: int, group: int) -> None:
    """A backbone, scenes with three pictures of 1920 x 1080, and scored candidates."""
    torch.manual_seed(0)
    config = DPVLAConfig.tiny(**MIDDLE) if size == "middle" else DPVLAConfig.tiny(width=32, image_size=32)
    DPVLA.tiny(config).save_pretrained(folder / "backbone")
    finish(folder / "backbone", {"command": "benchmark"})
    disable_progress_bar()
    rng = np.random.default_rng(0)
    shade = np.linspace(0, 255, 1920, dtype=np.uint8)[None, :, None]
    rows = []
    for i in range(scenes):
        cameras = {name: f"{i}_{name}.jpg" for name in config.cameras}
        for j, name in enumerate(cameras.values()):
            (folder / "pictures").mkdir(exist_ok=True)
            picture = np.broadcast_to(np.roll(shade, 100 * (i + j), axis=1), (1080, 1920, 3))
            Image.fromarray(np.ascontiguousarray(picture)).save(folder / "pictures" / name)
        numbers = {"history": rng.normal(size=(4, 3)).tolist(), "velocity": [5.0, 0.0], "acceleration": [0.1, 0.0]}
        text = {"token": f"scene{i:04d}", "log_name": f"log{i}", "command": "straight", "cameras": cameras}
        rows.append({**text, **numbers, "future": rng.normal(size=(8, 3)).tolist()})
    Dataset.from_list(rows).save_to_disk(str(folder / "scenes"))
    write_json(folder / "scenes" / "scenes.json", {"split": "trainval", "sensors": str(folder / "pictures")})
    finish(folder / "scenes", {"command": "benchmark"})
    score = rng.uniform(size=(scenes, group))
    advantage = (score - score.mean(1, keepdims=True)) / score.std(1, keepdims=True)
    table = {
        "token": [row["token"] for row in rows for _ in range(group)],
        "index": list(range(group)) * scenes,
        "source": ["reference"] * (scenes * group),
        "poses": rng.normal(size=(scenes * group, 8, 3)).tolist(),
        **{name: values.ravel().tolist() for name, values in
           (("score", score), ("return", score), ("advantage", advantage))},
    }  # fmt: skip
    Dataset.from_dict(table).save_to_disk(str(folder / "candidates"))
    write_json(folder / "candidates" / "candidates.json", {"metric": "none", "split": "trainval"})
    finish(folder / "candidates", {"command": "benchmark"})


def module_of(inputs: Path, size: str, variant: str) -> FineTuning:
    rank = RANKS[size]
    if variant == "single":
        return SingleLora(inputs / "backbone", rank)
    return DipoleModule(inputs / "backbone", routing=variant, rank=rank, lr=3e-4, warmup_steps=1)  # type: ignore[arg-type]


def run(inputs: Path, batch: int, module: FineTuning, steps: int, **options: Any) -> Clock:
    clock = Clock()
    trainer = L.Trainer(
        max_steps=steps, devices=1, accelerator="auto", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=50, callbacks=[clock],
    )  # fmt: skip
    data = DrivingData(inputs / "scenes", inputs / "candidates", batch_size=batch, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, data)
    return clock


def memory(inputs: Path, size: str, batch: int, variant: str) -> None:
    """In a process of its own: print the peak bytes of two steps, less what was held before the model."""
    before = resident()
    run(inputs, batch, module_of(inputs, size, variant), 2)
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    print(torch.cuda.max_memory_allocated() if torch.cuda.is_available() else used)


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def measure(inputs: Path, size: str, scenes: int, batch: int, rounds: int, steps: int) -> dict[str, Any]:
    modules = {variant: module_of(inputs, size, variant) for variant in VARIANTS}
    kinds = {"": {"keep_in_memory": True}, " cached": {"contexts": inputs / "contexts"}}
    times: dict[str, list[float]] = {f"{variant}{kind}": [] for kind in kinds for variant in VARIANTS}
    for _ in range(rounds):  # side by side, so that a change of the machine's speed meets all alike
        for kind, options in kinds.items():
            for variant, module in modules.items():
                found = run(inputs, batch, module, steps + 1, **options).steps[1:]
                times[f"{variant}{kind}"] += found
                print(f"  {variant}{kind}: {', '.join(f'{seconds:.3f}' for seconds in found)} s", flush=True)
    epoch = scenes // batch
    epochs = {
        name: epoch * run(inputs, batch, modules["bernoulli"], epoch + 1, **options).per_step_with_reading
        for name, options in (("from pictures", {}), ("cached", {"contexts": inputs / "contexts"}))
    }
    peaks = {}
    for variant in VARIANTS:
        line = [sys.executable, __file__, "--memory", variant, "--inputs", str(inputs), "--size", size]
        done = subprocess.run([*line, "--batch", str(batch)], capture_output=True, text=True, check=True)
        peaks[variant] = int(done.stdout.split()[-1])
    parameters = {variant: sum(p.numel() for p in m.parameters()) for variant, m in modules.items()}
    return {
        "step": {name: statistics.median(values) for name, values in times.items()},
        "epoch": epochs, "peak": peaks, "parameters": parameters, "context_bytes": context_bytes(inputs),
    }  # fmt: skip


def context_bytes(inputs: Path) -> int:
    return json.loads((inputs / "contexts" / "contexts.json").read_text())["shape"]["bytes_per_scene"]


def show(found: dict[str, Any], scenes: int, batch: int, group: int, rank: int) -> None:
    step, peak, epoch = found["step"], found["peak"], found["epoch"]
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} thread"
    print(f"{where}; backbone of {found['parameters']['single'] / 1e6:.0f} M parameters, rank {rank}")
    print(f"{batch} scenes x {group} candidates a step; {found['context_bytes'] / 1e6:.2f} MB of context a scene")
    print(
        f"\n{'':12s}{'step s':>9s}{'x single':>10s}{'cached s':>10s}{'x single':>10s}{'peak MB':>10s}{'x single':>10s}"
    )
    for name in VARIANTS:
        cached, own = step[f"{name} cached"], step[name]
        print(
            f"{name:12s}{own:9.3f}{own / step['single']:10.2f}{cached:10.3f}{cached / step['single cached']:10.2f}"
            f"{peak[name] / 1e6:10.0f}{peak[name] / peak['single']:10.2f}"
        )
    ratio = epoch["from pictures"] / epoch["cached"]
    print(f"\nbernoulli epoch of {scenes} scenes, with reading: {epoch['from pictures']:.2f} s from pictures, ", end="")
    print(f"{epoch['cached']:.2f} s from contexts: {ratio:.1f} x faster")
    print("bars: both 1.25, bernoulli 1.10 (cached too), peak 1.15, epoch 3")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--scenes", type=int, default=16, help="in an epoch")
    parser.add_argument("--batch", type=int, default=2, help="scenes a step")
    parser.add_argument("--candidates", type=int, default=16, help="of a scene")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="timed steps a round and variant")
    parser.add_argument("--json", type=Path, help="also write the numbers there")
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    parser.add_argument("--inputs", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--size", choices=RANKS, default="middle", help=argparse.SUPPRESS)
    options = parser.parse_args()
    quiet_lightning()
    if options.memory:
        return memory(options.inputs, options.size, options.batch, options.memory)
    size, scenes, batch = "quick" if options.quick else "middle", options.scenes, options.batch
    with tempfile.TemporaryDirectory() as folder:
        write_inputs(Path(folder), size, scenes, options.candidates)
        found = measure(Path(folder), size, scenes, batch, options.rounds, options.steps)
    show(found, scenes, batch, options.candidates, RANKS[size])
    if options.json:
        write_json(options.json, found)


if __name__ == "__main__":
    main()
