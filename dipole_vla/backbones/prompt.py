"""What DP-VLA reads of a scene besides the pictures: the prompt's exact words, and tokenizers for them.

The published model uses Florence-2's tokenizer, which comes with the checkpoint. Small models made here get one
trained on this prompt alone, offline.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

WHEEL_BASE = 3.089  # metres, of the recording car
FRAME_INTERVAL = 0.5  # seconds between history frames


def steering_angle(scene: Mapping[str, Any]) -> float:
    """Front-wheel angle of a bicycle model from the last yaw rate, radians; 0 below 0.2 m/s."""
    speed = abs(scene["velocity"][0])
    if speed < 0.2:
        return 0.0
    turned = _wrapped(scene["history"][-1][2] - scene["history"][-2][2])
    return math.atan(turned / FRAME_INTERVAL * WHEEL_BASE / speed)


def prompt(scene: Mapping[str, Any]) -> str:
    """The published prompt. The steering angle is in radians although the text says degrees; there is no last newline.

    scene: a row of the scenes table (history (4, 3), velocity (2,), acceleration (2,), command).
    """
    return (
        f"- Steering: {steering_angle(scene):.2f} degrees\n"
        f"- Speed: {math.hypot(*scene['velocity']):.2f} m/s\n"
        f"- Acceleration: {math.hypot(*scene['acceleration']):.2f} m/s^2\n"
        f"- Navigation: {scene['command']}\n"
        "\n"
        "What trajectory comes next?"
    )


def prompt_ids(tokenizer: PreTrainedTokenizerFast, scene: Mapping[str, Any], length: int) -> Tensor:
    """(length,) int64 ids of the prompt, cut or padded."""
    options: dict[str, Any] = {"padding": "max_length", "truncation": True, "max_length": length}
    return tokenizer(prompt(scene), return_tensors="pt", **options)["input_ids"][0]


def small_tokenizer(size: int = 320, texts: list[str] | None = None) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on this prompt only, with BART's special ids; deterministic, offline.

    texts: to train it on instead.
    """
    tokenizer = train_tokenizer(texts or prompts(), ["<s>", "<pad>", "</s>", "<unk>"], size, unknown="<unk>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def train_tokenizer(texts: list[str], special: list[str], size: int, unknown: str | None = None) -> Tokenizer:
    """Byte-level BPE of about `size` tokens trained on `texts`; `special` get the first ids, in order."""
    tokenizer = Tokenizer(models.BPE(unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=special,
        initial_alphabet=sorted({letter for text in texts for letter in text if not letter.isspace()}),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def prompts() -> list[str]:
    """Two hundred of them, to train a tokenizer on."""
    commands = ("left", "straight", "right", "unknown")
    return [
        prompt(
            {
                "history": [[0, 0, 0], [0, 0, -(i % 40) / 100 + 0.2]] + [[0, 0, 0]] * 1,
                "velocity": (i * 0.17 % 20, 0.0),
                "acceleration": (i * 0.013 % 4, 0.0),
                "command": commands[i % 4],
            }
        )
        for i in range(200)
    ]


def _wrapped(angle: float) -> float:
    """The same direction in [-pi, pi)."""
    return (angle + math.pi) % (2 * math.pi) - math.pi
