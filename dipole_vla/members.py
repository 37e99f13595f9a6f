"""The keys of a critic's `members`. Light, for help and mistakes are told before torch is loaded."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.option_checks import check_range


@dataclass(frozen=True)
class Member:
    """One of several critics; null is the model's own key.

    Args:
        kind: pooled = networks on the scene's pooled features; tokens = each plan attends to the scene's tokens.
        hidden: width of its networks.
        layers: hidden layers, or layers of attention.
        ensemble: number of Q networks.
        dropout: after every hidden layer.
        lr: learning rate.
    """

    kind: Literal["pooled", "tokens"] = "pooled"
    hidden: int | None = None
    layers: int | None = None
    ensemble: int | None = None
    dropout: float | None = None
    lr: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("pooled", "tokens"):
            raise InputError(f"model.members: kind must be pooled or tokens, got {self.kind!r}")
        check_range("model.members.lr", self.lr, 0)

    @property
    def sizes(self) -> dict[str, Any]:
        """What was said of the networks."""
        said = {each.name: getattr(self, each.name) for each in fields(self) if each.name not in ("kind", "lr")}
        return {name: value for name, value in said.items() if value is not None}
