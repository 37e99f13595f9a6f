"""What Alpamayo is shown of a scene: pictures of named cameras, its past as tokens, the route, and the exact words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image as Images
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from dipole_vla.backbones.base import Observation
from dipole_vla.backbones.observing import COMMANDS, all_shown, pixels
from dipole_vla.backbones.prompt import FRAME_INTERVAL, train_tokenizer
from dipole_vla.backbones.unicycle import Unicycle
from navsim_adapter.foundation.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

SYSTEM = "You are a driving assistant that generates safe and accurate actions."
TASKS = {
    False: "output the future trajectory.",
    True: "output the chain-of-thought reasoning of the driving process, then output the future trajectory.",
}
STARTS = {False: "<|traj_future_start|>", True: "<|cot_start|>"}
"""How the answer begins: without and with reasoning before the plan."""
CAMERAS = {
    "CAM_L0": "Front left camera",
    "CAM_F0": "Front camera",
    "CAM_R0": "Front right camera",
    "CAM_L2": "Rear left camera",
    "CAM_B0": "Rear camera",
    "CAM_R2": "Rear right camera",
}
"""NAVSIM's cameras under the names that version 1.5 was trained with; the others have none."""
ROUTES = {"left": "Turn left", "straight": "Continue straight", "right": "Turn right", "unknown": ""}

PAST_POSES = 16
SPEED_UNIT = 1e-6
"""m/s: speeds travel as whole numbers, which no half-precision trainer or store rounds."""

NAMED = (
    *("prompt_start", "prompt_end", "image_start", "_padding_0", "image_end", "traj_history_start", "_padding_1"),
    *("traj_history_end", "cot_start", "cot_end", "_padding_2", "_padding_3", "traj_future_start", "_padding_4"),
    *("traj_future_end", "traj_history", "traj_future", "image_pad", "_padding_5", "_padding_6", "_padding_7"),
    *("_padding_8", "route_start", "route_pad", "route_end", "question_start", "question_end", "answer_start"),
    "answer_end",
)
FEW_NAMED = (
    *("traj_history", "traj_future", "traj_history_start", "traj_future_start", "traj_history_end"),
    "traj_future_end",
)
"""Special tokens that its tokenizers add to Qwen's, in this order: all of them, or the older few."""


@dataclass(frozen=True)
class Bins:
    """The past as tokens: moves between poses, x, y and z each cut into `count` even bins from low to high (m)."""

    first: int = 154669
    count: int = 1000
    low: tuple[float, ...] = (-4.0, -4.0, -10.0)
    high: tuple[float, ...] = (4.0, 4.0, 10.0)

    def tokens(self, path: np.ndarray) -> list[int]:
        """Three for each pose of the path (n, 3), x, y, z in the ego frame; the first move is from the origin."""
        moves = np.diff(path, axis=0, prepend=np.zeros((1, 3))).astype(np.float32)
        low, high = np.asarray(self.low, np.float32), np.asarray(self.high, np.float32)
        place = np.rint((moves - low) / (high - low) * np.float32(self.count - 1)).astype(np.int64)
        return (self.first + place.clip(0, self.count - 1)).reshape(-1).tolist()


def past(history: Any, interval: float) -> np.ndarray:
    """(16, 3) x, y, heading every `interval` s until now, of four poses (4, 3) 0.5 s apart: the cubic through them."""
    poses = np.array(history, dtype=np.float64)
    if poses.shape != (4, 3):
        raise InputError(f"history: must be four poses (4, 3), {FRAME_INTERVAL} s apart, got shape {poses.shape}")
    poses[:, 2] = np.unwrap(poses[:, 2])
    known, wanted = FRAME_INTERVAL * np.arange(-3, 1), interval * np.arange(1 - PAST_POSES, 1)
    return np.vander(wanted, 4) @ np.linalg.solve(np.vander(known, 4), poses)


def expanded(tokenizer: PreTrainedTokenizerFast, count: int, names: tuple[str, ...]) -> PreTrainedTokenizerFast:
    """Qwen's tokenizer with `count` trajectory tokens and special `names`, as the model's own code adds them."""
    tokenizer.add_tokens([f"<i{i}>" for i in range(count)])
    tokenizer.add_tokens([f"<|{name}|>" for name in names], special_tokens=True)
    return tokenizer


def id_of(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    """The number of one token."""
    found = tokenizer.convert_tokens_to_ids(token)
    assert isinstance(found, int)
    return found


def small_tokenizer(count: int = 24) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on these prompts alone, with all special tokens and `count` of trajectories; offline."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"]
    texts = [SYSTEM, *TASKS.values(), *CAMERAS.values(), *ROUTES.values(), "system user assistant\n: frame 0 1 2 3"]
    trained = train_tokenizer(texts, special, 320)
    plain = PreTrainedTokenizerFast(tokenizer_object=trained, pad_token=special[0], eos_token=special[2])
    return expanded(plain, count, NAMED)


@dataclass(frozen=True)
class AlpamayoProcessor:
    """Scene row and pictures -> pixels (views, 3, H, W) uint8, input_ids, attention_mask (length,), speed ().

    speed: now, whole micrometres per second. Pictures are stretched to the size that the published processor gives
    16:9; a camera named several times in a row is a film of it, for which the tables have the latest picture alone.
    The past is the cubic through the four poses known. Padding is on the left, to the longest route.
    """

    cameras: tuple[str, ...]
    image_size: tuple[int, int]
    tokens_per_view: int
    image_token: int
    bins: Bins
    action: Unicycle
    names_views: bool
    reasons: bool
    tokenizer: PreTrainedTokenizerFast

    def __call__(self, scene: Mapping[str, Any], images: Mapping[str, Image | Tensor]) -> Observation:
        path = past(scene["history"], self.action.interval)
        ids = self._ids(str(scene["command"]), path)
        missing = self._length - len(ids)
        speed = self.action.speed_of(torch.from_numpy(path)).item()
        return {
            "pixels": torch.stack(all_shown(scene, images, self)),
            "input_ids": torch.tensor([0] * missing + ids),
            "attention_mask": torch.tensor([0] * missing + [1] * len(ids)),
            "speed": torch.tensor(round(speed / SPEED_UNIT)),
        }

    @cached_property
    def _length(self) -> int:
        return max(len(self._ids(command, np.zeros((PAST_POSES, 3)))) for command in COMMANDS)

    def _ids(self, command: str, path: np.ndarray) -> list[int]:
        if command not in ROUTES:
            raise InputError(f"scene: command {command!r} is not one of {', '.join(COMMANDS)}")
        route = ROUTES[command] if self.names_views else ""
        route = f"<|route_start|>{route}<|route_end|>" if route else ""
        flat = np.concatenate([path[:, :2], np.zeros((len(path), 1))], axis=1)
        task = (
            f"<|traj_history_end|>{route}{TASKS[self.reasons]}<|im_end|>\n<|im_start|>assistant\n{STARTS[self.reasons]}"
        )
        views = self._views(f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n")
        return [*views, *self._words("<|traj_history_start|>"), *self.bins.tokens(flat), *self._words(task)]

    def _views(self, words: str) -> list[int]:
        """The words, then each picture's places between its marks, with its camera and frame where these are named."""
        ids, shown, frame = [], "", 0
        for camera in self.cameras:
            frame = frame + 1 if camera == shown else 0
            if self.names_views:
                words += f"{CAMERAS[camera]}: " if camera != shown else ""
                words += f"frame {frame} "
            ids += [*self._words(words + "<|vision_start|>"), *[self.image_token] * self.tokens_per_view]
            words, shown = "<|vision_end|>", camera
        return ids + self._words(words)

    def _words(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def shown(self, image: Image) -> Tensor:
        high, wide = self.image_size
        return pixels(image.resize((wide, high), Images.Resampling.BICUBIC))
