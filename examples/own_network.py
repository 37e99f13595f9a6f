"""DIPOLE on a policy that drives nothing: seven joints reach for a goal, in a Lightning script of one's own.

    python examples/own_network.py OUT

A small flow policy imitates clumsy demonstrations (goal -> 8 steps of 7 joint velocities). Then two adapters learn from
its own actions, rated by the distance to the goal where they end. Killed and started again, the script resumes and ends
the same. The lines marked `# dipole` are all that the method asks for.
"""

import sys
from pathlib import Path

import lightning.pytorch as L
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dipole_vla.advantage import group_relative  # dipole
from dipole_vla.paths import LinearFlow  # dipole
from dipole_vla.plugin import Dipole  # dipole
from dipole_vla.training.callbacks import FiniteGradients  # dipole
from dipole_vla.training.checkpoints import AdapterCheckpoints  # dipole

STEPS, JOINTS = 8, 7


class Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.fc2(nn.functional.gelu(self.fc1(self.norm(x))))


class Arm(nn.Module):
    """A flow policy: the velocity from actions to noise, for a noisy action at time t."""

    def __init__(self, width: int = 96, depth: int = 2):
        super().__init__()
        self.state = nn.Linear(JOINTS, width)
        self.action = nn.Linear(STEPS * JOINTS + 1, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.out = nn.Linear(width, STEPS * JOINTS)

    def velocity(self, token: torch.Tensor, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        x = token + self.action(torch.cat([x_t.flatten(1), t[:, None]], dim=1))
        for block in self.blocks:
            x = block(x)
        return self.out(x).unflatten(1, (STEPS, JOINTS))


def distance(goal: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
    """From where the joints end to the goal: goal (B, 7), action (B, N, 8, 7) -> (B, N)."""
    return (action.sum(-2) / STEPS - goal[:, None]).norm(dim=-1)


def pretrained(steps: int = 500) -> Arm:
    """The policy of clumsy demonstrations: every joint keeps its own error all the way."""
    torch.manual_seed(0)
    net = Arm()
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    for _ in range(steps):
        goal, t = torch.rand(256, JOINTS) * 2 - 1, torch.rand(256)
        clumsy = (goal + 0.4 * torch.randn_like(goal))[:, None] + 0.1 * torch.randn(256, STEPS, JOINTS)
        noise = torch.randn_like(clumsy)
        x_t = clumsy + t[:, None, None] * (noise - clumsy)
        loss = (net.velocity(net.state(goal), x_t, t) - (noise - clumsy)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net


class MyTraining(L.LightningModule):
    def __init__(self, net: nn.Module):
        super().__init__()
        self.dipole = Dipole(  # dipole
            net,  # dipole
            encode=lambda net, observation: {"token": net.state(observation["goal"])},  # dipole
            denoise=lambda net, context, x_t, t: net.velocity(context["token"], x_t, t),  # dipole
            schedule=LinearFlow(noise_at=1),  # dipole
            prediction="velocity",  # dipole
            adapt=r"blocks\.\d+\.fc[12]",  # dipole
            shape=(STEPS, JOINTS),  # dipole
            beta=2.0,  # dipole
        )  # dipole

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        goal, action, returns = batch
        loss, scalars = self.dipole.loss({"goal": goal}, action, group_relative(returns))  # dipole
        self.log_dict(scalars)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.dipole.parameters(), lr=2e-3)


def main(out: Path, epochs: int = 8, goals: int = 1024) -> None:
    module = MyTraining(pretrained())
    dipole, seeded = module.dipole, torch.Generator().manual_seed(1)
    goal = torch.rand(goals, JOINTS, generator=seeded) * 2 - 1
    action = dipole.sample({"goal": goal}, None, candidates=8, generator=seeded)  # dipole
    data = DataLoader(TensorDataset(goal, action, -distance(goal, action)), batch_size=32, shuffle=True)

    saved = AdapterCheckpoints(out / "checkpoints", every=20, ema_decay=0.99)  # dipole
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = L.Trainer(max_epochs=epochs, callbacks=[FiniteGradients(), saved], **quiet)  # dipole
    trainer.fit(module, data, ckpt_path=saved.newest)  # dipole

    with saved.averaged():  # dipole
        dipole.save(out / "adapters")  # dipole
        noise = torch.randn(goals, 4, STEPS, JOINTS, generator=seeded)
        for name, omega in {"omega -1": -1.0, "reference": None, "omega 0": 0.0, "omega 1": 1.0}.items():
            plans = dipole.sample({"goal": goal}, omega, 4, noise=noise)  # dipole
            print(f"{name:10} {distance(goal, plans).mean():.4f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
