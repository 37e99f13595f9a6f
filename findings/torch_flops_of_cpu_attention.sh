#!/usr/bin/env bash
# torch's FlopCounterMode counts attention on a CPU as nothing.
#
# One expects: `scaled_dot_product_attention` costs the FLOPs of its two products, as the same products written out do,
# whatever kernel computes it.
# What happens: without gradients or a mask the CPU takes a fused kernel that the counter has no formula for: 0 FLOPs,
# and no warning. The same attention written as two products is counted whole.
# Seen with: torch 2.13.0, Python 3.11, on a CPU.
# Why it matters: a plan of what a training step costs, counted on a CPU, leaves out attention: half of the work for long
# sequences.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check "torch==2.13.0" numpy 2>/dev/null
"$work/venv/bin/python" - <<'PY'
import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode

print("torch", torch.__version__)
torch.manual_seed(0)
query, key, value = (torch.randn(2, 4, 128, 32) for _ in range(3))


def counted(work):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        result = work()
    return counter.get_total_flops(), result


fused, one = counted(lambda: scaled_dot_product_attention(query, key, value))
plain, other = counted(lambda: torch.softmax(query @ key.mT / 32**0.5, -1) @ value)
assert torch.allclose(one, other, atol=1e-5)
print(f"FLOPs counted: {fused} of scaled_dot_product_attention, {plain} of its two products")
assert fused == 0, "the behaviour has changed"
assert plain == 2 * 2 * (2 * 4 * 128 * 128 * 32), "the behaviour has changed"
PY
