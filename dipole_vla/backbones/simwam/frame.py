"""The encoder of Wan2.2's video VAE for a single picture, under its published names.

Its convolutions look back in time. Before the first picture they see zeros, so of each kernel the last slice alone
counts and everything is two-dimensional; what joins frames, and the decoder, are left out.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, normalize, scaled_dot_product_attention

MEAN = (
    *(-0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891),
    *(0.1570, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502),
    *(-0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313, -0.1649, 0.0117, 0.0723),
    *(-0.2839, -0.2083, -0.0520, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667),
)
"""Of the latents, channel by channel; published with the code, not with the weights."""
STD = (
    *(0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901),
    *(0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659),
    *(0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944),
    *(0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744),
)
CHANNELS = len(MEAN)
SHRINKS = 16
"""Pixels along the side of one latent."""


class FrameEncoder(nn.Module):
    """Pixels (n, 3, H, W) in [-1, 1] -> normalised latents (n, 48, H / 16, W / 16), the mean of their distribution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = [width, width, 2 * width, 4 * width, 4 * width]
        self.encoder = nn.ModuleDict(
            {
                "conv1": FrameConv(12, width, 3, padding=1),
                "downsamples": nn.Sequential(
                    *(Stage(*pair, frames=1 + (i in (1, 2)), shrinks=i < 3) for i, pair in enumerate(pairwise(widths)))
                ),
                "middle": nn.Sequential(
                    Residual(widths[-1], widths[-1]), Look(widths[-1]), Residual(widths[-1], widths[-1])
                ),
                "head": nn.Sequential(Norm(widths[-1]), nn.SiLU(), FrameConv(widths[-1], 2 * CHANNELS, 3, padding=1)),
            }
        )
        self.conv1 = FrameConv(2 * CHANNELS, 2 * CHANNELS, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        x = blocks(pixels, 2).transpose(2, 3).flatten(1, 3)  # columns of a block before its rows, as published
        for part in self.encoder.values():
            x = part(x)
        mean = self.conv1(x).chunk(2, dim=1)[0]
        offset, scale = (torch.tensor(each, device=x.device, dtype=x.dtype)[:, None, None] for each in (MEAN, STD))
        return (mean - offset) / scale


class FrameConv(nn.Conv3d):
    """Over one frame (n, channels, H, W), after nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return conv2d(x, self.weight[:, :, -1], self.bias, padding=self.padding[1:])


class Norm(nn.Module):
    """Each pixel's channels scaled to a mean square of 1."""

    def __init__(self, width: int, axes: int = 3) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width, *[1] * axes))

    def forward(self, x: Tensor) -> Tensor:
        return normalize(x, dim=1) * x.shape[1] ** 0.5 * self.gamma.reshape(-1, 1, 1)


class Residual(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            Norm(before),
            nn.SiLU(),
            FrameConv(before, after, 3, padding=1),
            Norm(after),
            nn.SiLU(),
            nn.Identity(),  # dropout, in the published numbering
            FrameConv(after, after, 3, padding=1),
        )
        self.shortcut = nn.Identity() if before == after else FrameConv(before, after, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.residual(x)


class Look(nn.Module):
    """Every pixel looks at all, with one head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = Norm(width, axes=2)
        self.to_qkv, self.proj = nn.Conv2d(width, 3 * width, 1), nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.to_qkv(self.norm(x)).flatten(2).transpose(1, 2)[:, None].chunk(3, dim=-1)
        seen = scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2)
        return x + self.proj(seen.unflatten(2, x.shape[2:]))


class Stage(nn.Module):
    """Two residual blocks and, beside them, means of what they were given; then half the pixels along each side.

    frames: how many become one in a film; before a first picture the others are zeros.
    """

    def __init__(self, before: int, after: int, frames: int, shrinks: bool) -> None:
        super().__init__()
        self.after, self.frames, self.side = after, frames, 2 if shrinks else 1
        self.downsamples = nn.Sequential(Residual(before, after), Residual(after, after))
        if shrinks:
            self.downsamples.append(Halving(after))

    def forward(self, x: Tensor) -> Tensor:
        return self.downsamples(x) + self._means(x)

    def _means(self, x: Tensor) -> Tensor:
        within = blocks(x, self.side).flatten(2, 3)
        within = torch.cat([torch.zeros_like(within)] * (self.frames - 1) + [within], dim=2)
        return within.flatten(1, 2).unflatten(1, (self.after, -1)).mean(2)


class Halving(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.resample = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(width, width, 3, stride=2))

    def forward(self, x: Tensor) -> Tensor:
        return self.resample(x)


def blocks(x: Tensor, side: int) -> Tensor:
    """(n, c, H, W) -> (n, c, side, side, H / side, W / side): row and column within a block, then the blocks."""
    split = x.unflatten(3, (-1, side)).unflatten(2, (-1, side))
    return split.permute(0, 1, 3, 5, 2, 4)
