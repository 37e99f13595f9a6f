"""The public code's tiny DP-VLA checkpoint under the names of the other forms that it writes."""

from __future__ import annotations

import re
from pathlib import Path

from safetensors.torch import load_file

PARITY = Path(__file__).resolve().parents[1] / "data" / "parity" / "dp_vla"


def wrapped(names):
    """The same tensors under the names that another upstream form has for them."""
    base = load_file(PARITY / "model.safetensors")
    signs = {sign: load_file(PARITY / "lora" / sign / "adapter_model.safetensors") for sign in ("positive", "negative")}
    file = {}
    for name in names:
        inner = name.removeprefix("agent.model.").replace("lora_decoder.base_model.model.", "decoder.")
        if match := re.match(r"decoder\.(.+\.lora_[AB])\.(\w+)\.weight$", inner):
            file[name] = signs[match[2]][f"base_model.model.{match[1]}.weight"].clone()
        else:
            file[name] = base[inner.replace(".base_layer.", ".")].clone()
    return file
