"""What a user says of a backbone where published files do not: cameras, seconds between poses; and of a scorer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from small_backbone import make_backbone

from dipole_vla.backbones import backbone_class
from dipole_vla.backbones.action import Plain
from dipole_vla.backbones.chosen import choose_cameras, choose_interval
from dipole_vla.scoring import require_sampling, score_plans, seen_of
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.sampling import Sampling


def small(family: str):
    kind = backbone_class(family)
    return kind.tiny(kind.config_class.tiny())


def test_cameras_are_the_views_in_order() -> None:
    model = make_backbone()
    choose_cameras(model, ["CAM_B0", "CAM_F0", "CAM_R2"])
    assert model.processor().cameras == ("CAM_B0", "CAM_F0", "CAM_R2")
    planner = small("recogdrive")
    choose_cameras(planner, ["CAM_B0"])
    assert planner.processor().cameras == ("CAM_B0",)
    with pytest.raises(InputError, match="recogdrive is shown one picture"):
        choose_cameras(planner, ["CAM_B0", "CAM_F0"])


def test_weights_for_so_many_views_are_shown_no_other_number() -> None:
    model = small("timm")
    with pytest.raises(InputError, match="cameras: these weights do not fit 1 picture;"):
        choose_cameras(model, ["CAM_F0"])
    assert len(model.processor().cameras) == 3


def test_an_interval_is_part_of_what_the_numbers_mean() -> None:
    model = make_backbone()
    before = model.fingerprint()
    choose_interval(model, 0.25)
    assert model.sampling == Sampling(8, 0.25)
    assert model.fingerprint() != before
    with pytest.raises(InputError, match="seconds from"):
        choose_interval(model, 0.0)
    model.action = Plain((8, 7))
    with pytest.raises(InputError, match="interval: plans of family dp_vla have their own"):
        choose_interval(model, 0.25)


@dataclass
class Half:
    """A scorer of before: half a second between poses."""

    def score(self, tokens, trajectories):
        return len(tokens), trajectories.shape


@dataclass
class Far(Half):
    seconds_ahead: float = 2.0

    def score(self, tokens, trajectories, interval: float = 0.5):
        return len(tokens), trajectories.shape, interval


def test_a_scorer_gets_the_interval_or_is_told_to_take_one() -> None:
    plans = np.zeros((1, 2, 8, 3))
    assert score_plans(Half(), ["a"], plans, 0.5) == (1, plans.shape)
    assert score_plans(Far(), ["a"], plans, 0.25) == (1, plans.shape, 0.25)
    require_sampling(Half(), Sampling(3, 0.5))  # it does not say how far it looks
    require_sampling(Far(), Sampling(8, 0.25))
    with pytest.raises(InputError, match="score takes no `interval`"):
        require_sampling(Half(), Sampling(64, 0.1))
    with pytest.raises(InputError, match=r"3 poses every 0.5 s end 1.5 s from now, the scorer looks 2 s ahead"):
        require_sampling(Far(), Sampling(3, 0.5))


def test_the_human_need_not_have_driven_further_than_the_scorer_looks() -> None:
    assert seen_of(Far(), Sampling(64, 0.1)) == Sampling(20, 0.1)
    assert seen_of(Half(), Sampling(64, 0.1)) == Sampling(64, 0.1)
