"""One-step critic: Q(scene, trajectory) fitted to scored returns and V(scene) by expectile; G = Q - V.

A driving plan is scored once, as a whole, so there is no bootstrap: this is IQL with a horizon of one. At
evaluation the critic picks the best of N, because the simulator sees the future and must never choose. Multi-step
IQL for the RL benchmarks is not here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from dipole_vla.backbones import weights
from dipole_vla.backbones.base import Backbone, Context
from dipole_vla.data.pictures import refuse_other_cameras
from dipole_vla.policy.plan_attention import PlanAttention
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.option_checks import check_range
from navsim_adapter.sampling import Sampling, unlike

MEAN = "mean_critic"  # family of a folder with members


@dataclass(frozen=True)
class CriticConfig:
    """feature_dim: width of `Backbone.features`; horizon: poses per trajectory, `interval` seconds apart.

    expectile: 0.5 makes V the mean of Q over the candidates, which keeps G centred; the offline-RL line uses 0.9.
    """

    feature_dim: int = 0
    horizon: int = 8
    hidden: int = 256
    layers: int = 2
    ensemble: int = 2
    expectile: float = 0.5
    dropout: float = 0.0
    interval: float = 0.5

    def __post_init__(self) -> None:
        if self.feature_dim < 1:
            raise InputError(f"critic.feature_dim: must be >= 1, got {self.feature_dim}; pass the features' width")
        for name, least in (("hidden", 1), ("layers", 0), ("ensemble", 1)):
            check_range(f"critic.{name}", getattr(self, name), least)
        if not 0 < self.expectile < 1:
            raise InputError(f"critic.expectile: must be in (0, 1), got {self.expectile}; 0.5 is the mean")
        if not 0 <= self.dropout < 1:
            raise InputError(f"critic.dropout: must be in [0, 1), got {self.dropout}; 0 is none")


class OneStepCritic(nn.Module):
    """An ensemble of Q networks, whose least value counts, and one V network, on standardised inputs."""

    feature_mean: Tensor
    feature_std: Tensor
    pose_mean: Tensor
    pose_std: Tensor
    family: ClassVar[str] = "one_step_critic"
    config_class: ClassVar[type[CriticConfig]] = CriticConfig
    reads_tokens: ClassVar[bool] = False

    def __init__(self, config: CriticConfig) -> None:
        super().__init__()
        self.config = config
        pose_dim = config.horizon * 4
        self.q = nn.ModuleList(self._q(config.feature_dim + pose_dim) for _ in range(config.ensemble))
        self.v = _network(config, config.feature_dim)
        for name, size in (("feature", config.feature_dim), ("pose", pose_dim)):
            self.register_buffer(f"{name}_mean", torch.zeros(size))
            self.register_buffer(f"{name}_std", torch.ones(size))

    def _q(self, size: int) -> nn.Module:
        """One Q network that reads `size` numbers of each plan and its scene."""
        return _network(self.config, size)

    @torch.no_grad()
    def fit_statistics(self, features: Tensor, poses: Tensor) -> None:
        """Set the input standardisation from training data: features (S, d), poses (..., horizon, 3)."""
        flat = _flat_poses(poses).flatten(0, -2)
        for name, values in (("feature", features.float()), ("pose", flat.float())):
            getattr(self, f"{name}_mean").copy_(values.mean(0))
            getattr(self, f"{name}_std").copy_(values.std(0, correction=0).clamp_min(1e-2))

    def q_values(self, features: Tensor, poses: Tensor) -> Tensor:
        """(ensemble, B, N) from features (B, d) and poses (B, N, horizon, 3), ego frame."""
        joined = self._beside((features.float() - self.feature_mean) / self.feature_std, poses)
        return torch.stack([network(joined).squeeze(-1) for network in self.q])

    def _beside(self, features: Tensor, poses: Tensor) -> Tensor:
        """(B, N, width + horizon * 4): each standardised plan beside its scene's standardised features (B, width)."""
        flat = (_flat_poses(poses.float()) - self.pose_mean) / self.pose_std
        return torch.cat([features[:, None].expand(-1, flat.shape[1], -1), flat], dim=-1)

    def forward(self, features: Tensor, poses: Tensor) -> Tensor:
        """(B, N) least Q of the ensemble: what candidates are ranked by."""
        return self.q_values(features, poses).amin(0)

    def value(self, features: Tensor) -> Tensor:
        """(B,) V of the scenes."""
        return self.v((features.float() - self.feature_mean) / self.feature_std).squeeze(-1)

    def advantage(self, features: Tensor, poses: Tensor) -> Tensor:
        """(B, N) G = least Q - V."""
        return self(features, poses) - self.value(features)[:, None]

    def loss(self, features: Tensor, poses: Tensor, returns: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Squared error of every Q against returns (B, N), and expectile regression of V on the least Q."""
        q = self.q_values(features, poses)
        q_loss = ((q - returns.float()) ** 2).mean()
        v_loss = expectile_loss(q.detach().amin(0) - self.value(features)[:, None], self.config.expectile).mean()
        scalars = {"loss_q": q_loss, "loss_v": v_loss, "q": q.mean(), "advantage_std": (q.amin(0)).std(1).mean()}
        return q_loss + v_loss, {name: scalar.detach() for name, scalar in scalars.items()}

    def save_pretrained(self, folder: str | Path) -> None:
        folder = Path(folder)
        weights.write_tensors(folder / "model.safetensors", self.state_dict())
        weights.write_json(folder / "config.json", {"family": self.family, "config": asdict(self.config)})

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str | torch.device = "cpu") -> OneStepCritic:
        path = Path(folder) / "config.json"
        raw = weights.read_record(path, ("family", "config"))
        if raw["family"] != cls.family:
            raise InputError(f"{path}: holds a {raw['family']!r}, {cls.family} was wanted; pass the critic's folder")
        critic = cls(weights.record_from(cls.config_class, raw["config"], f"{path}: config"))
        weights.load_strict(critic, Path(folder) / "model.safetensors", device)
        return critic.eval()


@dataclass(frozen=True)
class TokenConfig(CriticConfig):
    """ego, tokens, token_width: of a scene, as its context has ego state and tokens; heads: of the attention."""

    ego: int = 0
    tokens: int = 0
    token_width: int = 0
    heads: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("critic.layers: of kind tokens", self.layers, 1)
        if self.hidden % self.heads:
            raise InputError(f"critic.hidden: of kind tokens: {self.hidden} is no multiple of the {self.heads} heads")


class TokenCritic(OneStepCritic):
    """The same with Q networks in which each plan, beside the ego state, attends to the scene's tokens.

    Where the other reads features (B, d), this one reads (B, d + ego + tokens * token_width), see `scene_features`. Q
    does not read the pooled ones: with them it learnt no more than the other does.
    """

    ego_mean: Tensor
    ego_std: Tensor
    token_mean: Tensor
    token_std: Tensor
    family = "token_critic"
    config_class = TokenConfig
    reads_tokens = True
    config: TokenConfig

    def __init__(self, config: TokenConfig) -> None:
        super().__init__(config)
        for name, size in (("ego", config.ego), ("token", config.token_width)):
            self.register_buffer(f"{name}_mean", torch.zeros(size))
            self.register_buffer(f"{name}_std", torch.ones(size))

    def _q(self, size: int) -> nn.Module:
        c = self.config
        return PlanAttention(
            size - c.feature_dim + c.ego, c.tokens, c.token_width, c.hidden, c.layers, c.heads, c.dropout
        )

    @torch.no_grad()
    def fit_statistics(self, features: Tensor, poses: Tensor) -> None:
        pooled, ego, tokens = self._parts(features)
        super().fit_statistics(pooled, poses)
        for name, values in (("ego", ego), ("token", tokens.flatten(0, 1))):
            getattr(self, f"{name}_mean").copy_(values.mean(0))
            getattr(self, f"{name}_std").copy_(values.std(0, correction=0).clamp_min(1e-2))

    def q_values(self, features: Tensor, poses: Tensor) -> Tensor:
        _, ego, tokens = self._parts(features)
        joined = self._beside((ego - self.ego_mean) / self.ego_std, poses)
        tokens = (tokens - self.token_mean) / self.token_std
        return torch.stack([network(joined, tokens).squeeze(-1) for network in self.q])

    def value(self, features: Tensor) -> Tensor:
        return super().value(self._parts(features)[0])

    def _parts(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pooled features (B, d), ego state (B, ego) and tokens (B, tokens, token_width)."""
        c = self.config
        pooled, ego, tokens = features.float().split([c.feature_dim, c.ego, c.tokens * c.token_width], dim=1)
        return pooled, ego, tokens.unflatten(1, (c.tokens, c.token_width))


@dataclass(frozen=True)
class MeanConfig:
    """members: how many critics the folder holds."""

    members: int

    def __post_init__(self) -> None:
        if self.members < 1:
            raise InputError(f"critic.members: must be at least one, got {self.members}")


class MeanCritic(nn.Module):
    """The mean of several critics of the same scenes and plans: what only one of them believes counts less."""

    def __init__(self, members: Sequence[OneStepCritic]) -> None:
        """members: at least two, of one feature width and horizon."""
        super().__init__()
        self.members = nn.ModuleList(members)

    @property
    def _critics(self) -> list[OneStepCritic]:
        return cast(list[OneStepCritic], list(self.members))

    @property
    def config(self) -> CriticConfig:
        """The first member's: of the features and plans that all read."""
        return self._critics[0].config

    def fit_statistics(self, features: Tensor, poses: Tensor) -> None:
        """As `OneStepCritic.fit_statistics`, of every member."""
        for member, own in self._each(features):
            member.fit_statistics(own, poses)

    def forward(self, features: Tensor, poses: Tensor) -> Tensor:
        """(B, N) mean of the members' ratings."""
        return torch.stack([member(own, poses) for member, own in self._each(features)]).mean(0)

    def advantage(self, features: Tensor, poses: Tensor) -> Tensor:
        """(B, N) mean of the members' G."""
        return torch.stack([member.advantage(own, poses) for member, own in self._each(features)]).mean(0)

    def loss(self, features: Tensor, poses: Tensor, returns: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of the members' losses, and the means of what they log."""
        losses, scalars = zip(*(member.loss(own, poses, returns) for member, own in self._each(features)))
        return sum(losses), {name: torch.stack([each[name] for each in scalars]).mean() for name in scalars[0]}

    @property
    def reads_tokens(self) -> bool:
        return any(member.reads_tokens for member in self._critics)

    def _each(self, features: Tensor) -> list[tuple[OneStepCritic, Tensor]]:
        """Every member beside what it reads of the features."""
        return [(m, features if m.reads_tokens else features[:, : m.config.feature_dim]) for m in self._critics]

    def save_pretrained(self, folder: str | Path) -> None:
        """Every member as a critic's folder of its own, named by its place, from 0."""
        folder = Path(folder)
        weights.write_json(folder / "config.json", {"family": MEAN, "config": asdict(MeanConfig(len(self.members)))})
        for place, member in enumerate(self._critics):
            member.save_pretrained(folder / str(place))


Critic = OneStepCritic | MeanCritic


def scene_features(backbone: Backbone, context: Context, with_tokens: bool) -> Tensor:
    """What a critic reads of scenes: pooled features (B, d); with tokens, behind them ego state and tokens, flat."""
    features = backbone.features(context)
    if not with_tokens:
        return features
    if "tokens" not in context or "proprio" not in context:
        raise InputError(
            f"critic: kind tokens: {backbone.family} keeps no tokens of a scene, or no ego state; use kind pooled"
        )
    return torch.cat([features, *(context[name].float().flatten(1) for name in ("proprio", "tokens"))], dim=1)


def load_critic(folder: str | Path, device: str | torch.device = "cpu") -> Critic:
    """Read what `save_pretrained` of either wrote, strictly."""
    path = Path(folder) / "config.json"
    raw = weights.read_record(path, ("family", "config"))
    if raw["family"] != MEAN:
        kind = TokenCritic if raw["family"] == TokenCritic.family else OneStepCritic
        return kind.from_pretrained(folder, device)
    count = weights.record_from(MeanConfig, raw["config"], f"{path}: config").members
    return MeanCritic([_member(Path(folder) / str(place), device) for place in range(count)]).eval()


def _member(folder: Path, device: str | torch.device) -> OneStepCritic:
    found = load_critic(folder, device)
    if not isinstance(found, OneStepCritic):
        raise InputError(f"{folder}: is a mean of critics within a mean; give a folder whose members are critics")
    return found


def fitted_critic(
    folder: str | Path, backbone: str | Path, fingerprint: str, model: Backbone, device: str | torch.device = "cpu"
) -> tuple[Critic, dict[str, Any]]:
    """The critic that `dipole-vla fit` left in `folder`, and its provenance; InputError if it was fitted on the
    features of another backbone or other cameras, which are other numbers, or on plans of another length or interval.

    backbone: for the message.  fingerprint: of `model` as on disk.
    """
    made = Path(folder) / "provenance.json"
    provenance = weights.read_json(made) if made.is_file() else {}
    if "backbone_fingerprint" not in provenance:
        raise InputError(
            f"{folder}: no critic (no provenance.json that names its backbone); pass the folder of its fit"
        )
    trained_on = provenance["backbone_fingerprint"]
    if trained_on != fingerprint:
        raise InputError(
            f"{folder}: reads features of backbone {trained_on[:12]}…, {backbone} is {fingerprint[:12]}…; "
            "pass the matching one"
        )
    refuse_other_cameras(made, provenance, model.processor)
    critic = load_critic(folder, device)
    rated = Sampling(critic.config.horizon, critic.config.interval)
    if rated != model.sampling:
        found, own = unlike(rated, model.sampling)
        raise InputError(f"{folder}: rates plans of {found}, {backbone} makes {own}; fit another")
    return critic, provenance


def refuse_other_metric(
    critic: str | Path, provenance: Mapping[str, Any], candidates: Path, metric: str | None
) -> str | None:
    """InputError where the critic learned other scores than the candidates' `metric`; a remark where nobody noted
    which it learned."""
    learned = provenance.get("metric")
    if learned is None or metric is None:
        unknown = critic if learned is None else candidates
        return f"{unknown}: does not say by which metric it was scored; critic and candidates are not compared"
    if learned != metric:
        raise InputError(
            f"{critic}: learned scores by {learned}, {candidates} is scored by {metric}; fit a critic to these "
            "candidates, or collect by the critic's metric"
        )
    return None


def expectile_loss(difference: Tensor, expectile: float) -> Tensor:
    """Asymmetric squared loss; its minimiser over v of difference = q - v is the expectile of q."""
    weight = torch.where(difference > 0, expectile, 1 - expectile)
    return weight * difference**2


def _flat_poses(poses: Tensor) -> Tensor:
    """(..., horizon, 3) -> (..., horizon * 4): x, y, cos heading, sin heading."""
    heading = poses[..., 2:]
    return torch.cat([poses[..., :2], heading.cos(), heading.sin()], dim=-1).flatten(-2)


def _network(config: CriticConfig, size: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(config.layers):
        layers += [nn.Linear(size, config.hidden), nn.LayerNorm(config.hidden), nn.GELU(), nn.Dropout(config.dropout)]
        size = config.hidden
    return nn.Sequential(*layers, nn.Linear(size, 1))
