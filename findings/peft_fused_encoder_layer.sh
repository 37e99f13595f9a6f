#!/usr/bin/env bash
# LoRA on the linear layers of torch's nn.TransformerEncoderLayer does nothing at inference.
#
# One expects: after `get_peft_model` with target_modules linear1 and linear2, non-zero adapters change the output, in
# training and in evaluation mode alike.
# What happens: without gradients and in evaluation mode the layer hands its bare weights to one fused kernel, which never
# calls the wrapped linear layers: the adapters are skipped without a word. With gradients the same model uses them.
# Seen with: torch 2.13.0, peft 0.21.2, transformers 5.21.0, Python 3.11, on a CPU.
# Why it matters: a fine-tuned adapter evaluates exactly as the base model, so a training that worked looks as if it had not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check "torch==2.13.0" "peft==0.21.2" "transformers==5.21.0" 2>/dev/null
HF_HUB_OFFLINE=1 "$work/venv/bin/python" - <<'PY'
import peft
import torch
from torch import nn

print("torch", torch.__version__, "peft", peft.__version__)
torch.manual_seed(0)
layer = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True))
x = torch.randn(2, 3, 8)
layer.eval()
with torch.no_grad():
    base = layer(x)
model = peft.get_peft_model(layer, peft.LoraConfig(r=2, target_modules=["linear1", "linear2"]))
with torch.no_grad():
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.fill_(1.0)
model.eval()
with torch.no_grad():
    fused = (model(x) - base).abs().max().item()
used = (model(x.requires_grad_()) - base).abs().max().item()
print(f"largest change by the adapters: {fused:.3g} without gradients, {used:.3g} with them")
assert fused == 0.0 and used > 0.1, "the behaviour has changed"
PY
