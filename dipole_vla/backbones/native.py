"""transformers' own classes inside our backbones: what the meta device needs besides the weights.

A model built on the meta device gets its parameters from a file. Buffers that no file holds (rotary frequencies,
position ids) have to be computed again; nothing else here.
"""

from __future__ import annotations

import torch
from transformers import PreTrainedModel


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
