"""transformers' own classes inside our backbones: their tokenizers, and what the meta device needs besides weights.

A model built on the meta device gets its parameters from a file. Buffers that no file holds (rotary frequencies,
position ids) have to be computed again.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from dipole_vla.backbones.base import Backbone
from dipole_vla.backbones.source_files import load_tokenizer


class Prompted(Backbone):
    """A backbone that reads text; its tokenizer, where it has one, lies beside its weights."""

    tokenizer: PreTrainedTokenizerFast | None

    def save_assets(self, folder: Path) -> None:
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(str(folder / "tokenizer"))

    def load_assets(self, folder: Path) -> None:
        self.tokenizer = load_tokenizer(folder / "tokenizer")


def restore_buffers(model: PreTrainedModel) -> None:
    """Compute the buffers of `model` that are on the meta device although its parameters are not.

    transformers computes them in its initialisation of a module; parameters are marked as done, so it leaves them.
    """
    device = next(model.parameters()).device
    waiting = {name: buffer for name, buffer in model.named_non_persistent_buffers() if buffer.is_meta}
    if device.type == "meta" or not waiting:
        return
    for parameter in model.parameters():
        parameter._is_hf_initialized = True  # type: ignore[attr-defined]
    for name, buffer in waiting.items():
        owner = model.get_submodule(name.rpartition(".")[0])
        blank = float("nan") if buffer.is_floating_point() else -1
        fresh = torch.full(buffer.shape, blank, dtype=buffer.dtype, device=device)
        setattr(owner, name.rpartition(".")[2], torch.nn.Buffer(fresh, persistent=False))
        owner._is_hf_initialized = False  # type: ignore[assignment]
    model.initialize_weights()
    for name in waiting:
        buffer = model.get_buffer(name)
        if torch.isnan(buffer).any() if buffer.is_floating_point() else (buffer < 0).any():
            raise RuntimeError(f"{type(model).__name__}: buffer {name} was not computed; this transformers differs")
