"""The family of docs/add-a-backbone.md in a package of its own."""

# ruff: noqa: B008, RUF012 (the text of the page)

from dataclasses import dataclass

import torch
from torch import nn

from dipole_vla.backbones.base import ActionSpec, Backbone, Context
from dipole_vla.backbones.dit import Layout
from dipole_vla.backbones.observing import history, pictures, pixels
from dipole_vla.paths import LinearFlow
from dipole_vla.solvers import SolverSpec


@dataclass(frozen=True)
class MyConfig:
    """Sizes only; the defaults are the published model, `tiny` is for tests."""

    width: int = 512

    @classmethod
    def tiny(cls, **overrides):
        return cls(**{"width": 32, **overrides})


class MyVLA(Backbone):
    family = "my_vla"  # written into config.json
    config_class = MyConfig
    lora_scopes = {"head": r"head\.(0|2)", "all": r"(head\.(0|2)|encoder)"}  # over module names
    encoder_names = ("encoder.",)  # what imitation trains slower, or not at all

    def __init__(self, config, action=None, solver=SolverSpec("euler", steps=10)):
        super().__init__(config, action or ActionSpec(heading="angle", dim=3), solver)
        numbers = self.action.horizon * self.action.dim
        self.encoder = nn.Linear(12, config.width)
        self.head = nn.Sequential(
            nn.Linear(numbers + 1 + config.width, config.width), nn.GELU(), nn.Linear(config.width, numbers)
        )

    @classmethod
    def tiny(cls, config=None, solver=None):  # for `dipole-vla init` and tests
        return cls(config or MyConfig.tiny(), solver=solver or SolverSpec("euler", steps=10))

    @property
    def schedule(self):  # a path with its own time convention: VPLinear, CosineTable, LinearFlow
        return LinearFlow(noise_at=1)

    @property
    def prediction(self):  # what `denoise` returns: "noise", "sample" or "velocity"
        return "velocity"

    def processor(self):
        return MyProcessor()

    def encode(self, observation):  # once per scene: all that does not depend on the noisy action
        return Context({"tokens": self.encoder(observation["proprio"])})

    def denoise(self, context, x_t, t):  # (B*G, horizon, dim); row i of the context serves its G rows of x_t
        tokens = Layout(len(context), len(x_t), context.serves).per_row(context["tokens"])
        time = self.schedule.network_time(t)[:, None].to(x_t.dtype)
        return self.head(torch.cat([x_t.flatten(1), time, tokens], dim=-1)).unflatten(1, x_t.shape[1:]).float()

    def features(self, context):  # (B, d) for the critic
        return context["tokens"].float()


@dataclass(frozen=True)
class MyProcessor:
    """Picklable, holds no weights, opens no files: it runs in loader processes."""

    cameras: tuple = ("CAM_F0",)

    def __call__(self, scene, images):
        (front,) = pictures(scene, images, self.cameras)  # RGB; a scene without this camera is named
        return {"pixels": pixels(front.resize((8, 8))), "proprio": history(scene)}
