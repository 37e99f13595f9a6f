"""What ReCogDrive is shown of a scene: the front picture in tiles, and the published prompt word for word.

The wording is data that the weights were trained with; changing a letter changes the model's answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL.Image import Image, Resampling
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from dipole_vla.backbones.prompt import train_tokenizer

IMAGE_TOKEN = "<IMG_CONTEXT>"
COMMANDS = {"left": "TURN LEFT", "straight": "GO STRAIGHT", "right": "TURN RIGHT", "unknown": "UNKNOWN"}

SYSTEM = """
You are a vehicle trajectory prediction model for autonomous driving. Your task is to predict the ego vehicle's \
4-second trajectory based on the following inputs: multi-view images from 8 cameras, ego vehicle states (position), \
and discrete navigation commands. The input provides a 2-second history, and your output should ensure a safe \
trajectory for the next 4 seconds. Your predictions must adhere to the following metrics:
1. **No at-fault Collisions (NC)**: Avoid collisions with other objects/vehicles.
2. **Drivable Area Compliance (DAC)**: Stay within the drivable area.
3. **Time to Collision (TTC)**: Maintain a safe distance from other vehicles.
4. **Ego Progress (EP)**: Ensure the ego vehicle moves forward without being stuck.
5. **Comfort (C)**: Avoid sharp turns and sudden decelerations.
6. **Driving Direction Compliance (DDC)**: Align with the intended driving direction.
For evaluation, use the **PDM Score**, which combines these metrics: \
**PDM Score** = NC * DAC * (5*TTC + 5*EP + 2*C + 0*DDC) / 12.
Your predictions will be evaluated through a non-reactive 4-second simulation with an LQR controller and background \
actors following their recorded trajectories. The better your predictions, the higher your score.
"""


def prompt(scene: Mapping[str, Any], tiles: int, tokens_per_tile: int, horizon: int = 8) -> str:
    """The whole text given to the tokenizer, image placeholders written out.

    scene: a row of the scenes table (history (4, 3), command); tiles: number of picture tiles.
    """
    poses = np.asarray(scene["history"], dtype=np.float32)
    last = len(poses) - 1
    history = " ".join(
        f"   - t-{last - i}: ({', '.join(_number(float(value)) for value in pose)})" for i, pose in enumerate(poses)
    )
    question = (
        f"<img>{IMAGE_TOKEN * (tokens_per_tile * tiles)}</img>\n"
        "As an autonomous driving system, predict the vehicle's trajectory based on:\n"
        "1. Visual perception from front camera view\n"
        f"2. Historical motion context (last 4 timesteps):{history}\n"
        f"3. Active navigation command: [{COMMANDS.get(str(scene['command']), 'UNKNOWN')}]\n"
        f"Output requirements:\n- Predict {horizon} future trajectory points\n"
        "- Each point format: (x:float, y:float, heading:float)\n"
        "- Use [PT, ...] to encapsulate the trajectory\n"
        "- Maintain numerical precision to 2 decimal places"
    )
    return f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


def _number(value: float) -> str:
    """Signed, two decimals; what rounds to 0.01 or less is written 0.0."""
    return f"{value:+.2f}" if abs(round(value, 2)) > 1e-2 else "0.0"


def picture_tiles(image: Image, size: int, most: int) -> Tensor:
    """(T, 3, size, size) uint8: the picture cut into the grid nearest to its shape, then a thumbnail if T > 1."""
    image = image.convert("RGB")
    columns, rows = _grid(image.width, image.height, size, most)
    whole = image.resize((columns * size, rows * size), Resampling.BICUBIC)
    boxes = [(x * size, y * size, (x + 1) * size, (y + 1) * size) for y in range(rows) for x in range(columns)]
    parts = [whole.crop(box) for box in boxes]
    if len(parts) > 1:
        parts.append(image.resize((size, size), Resampling.BICUBIC))
    return torch.stack([torch.from_numpy(np.array(part)).permute(2, 0, 1) for part in parts]).contiguous()


def _grid(width: int, height: int, size: int, most: int) -> tuple[int, int]:
    """(columns, rows) of 1 to `most` tiles with the aspect ratio nearest to the picture's.

    Of grids with the same aspect the larger one wins while the picture has more than half of its pixels.
    """
    grids = sorted(
        {(i, j) for n in range(1, most + 1) for i in range(1, n + 1) for j in range(1, n + 1) if i * j <= most},
        key=lambda grid: grid[0] * grid[1],
    )
    best, best_difference = (1, 1), float("inf")
    for grid in grids:
        difference = abs(width / height - grid[0] / grid[1])
        is_larger_tie = difference == best_difference and width * height > 0.5 * size * size * grid[0] * grid[1]
        if difference < best_difference or is_larger_tie:
            best, best_difference = grid, difference
    return best


def padded_ids(tokenizer: PreTrainedTokenizerFast, text: str, length: int) -> tuple[Tensor, Tensor] | None:
    """Token ids and mask, each (length,), padded on the left; None if the text is longer than that."""
    ids = tokenizer(text)["input_ids"]
    gap = length - len(ids)
    if gap < 0:
        return None
    mask = torch.cat([torch.zeros(gap, dtype=torch.long), torch.ones(len(ids), dtype=torch.long)])
    return torch.tensor([tokenizer.pad_token_id] * gap + list(ids)), mask


def small_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer trained on this prompt alone, for small models made here; deterministic, offline."""
    examples = [
        prompt({"history": [[i * 0.07 - 9, (i % 40) / 50, (i % 30) / 90]] * 4, "command": command}, 0, 0)
        for i in range(60)
        for command in COMMANDS
    ]
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", IMAGE_TOKEN, "<img>", "</img>"]
    tokenizer = train_tokenizer(examples, special, size=1200)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|endoftext|>", eos_token="<|im_end|>")
