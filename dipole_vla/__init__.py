"""DIPOLE fine-tuning for vision-language-action models: a positive and a negative policy, one greed dial."""

from typing import TYPE_CHECKING

from navsim_adapter.foundation.faces import face

if TYPE_CHECKING:
    from dipole_vla.advantage import group_relative as group_relative
    from dipole_vla.backbones import register_backbone as register_backbone
    from dipole_vla.backbones.action import Poses as Poses
    from dipole_vla.backbones.base import Backbone as Backbone
    from dipole_vla.data.module import DrivingData as DrivingData
    from dipole_vla.guidance import guide as guide
    from dipole_vla.objective import dichotomous_loss as dichotomous_loss
    from dipole_vla.paths import CosineTable as CosineTable
    from dipole_vla.paths import LinearFlow as LinearFlow
    from dipole_vla.paths import VPLinear as VPLinear
    from dipole_vla.plugin import Dipole as Dipole
    from dipole_vla.policy.guided import GuidedPolicy as GuidedPolicy
    from dipole_vla.policy.guided import load_policy as load_policy
    from dipole_vla.solvers import SolverSpec as SolverSpec
    from dipole_vla.training.dipole import DipoleModule as DipoleModule

__version__ = "0.1.0"
_PLACES = {
    "Backbone": "dipole_vla.backbones.base",
    "CosineTable": "dipole_vla.paths",
    "Dipole": "dipole_vla.plugin",
    "DipoleModule": "dipole_vla.training.dipole",
    "DrivingData": "dipole_vla.data.module",
    "GuidedPolicy": "dipole_vla.policy.guided",
    "LinearFlow": "dipole_vla.paths",
    "Poses": "dipole_vla.backbones.action",
    "SolverSpec": "dipole_vla.solvers",
    "VPLinear": "dipole_vla.paths",
    "dichotomous_loss": "dipole_vla.objective",
    "group_relative": "dipole_vla.advantage",
    "guide": "dipole_vla.guidance",
    "load_policy": "dipole_vla.policy.guided",
    "register_backbone": "dipole_vla.backbones",
}
__all__ = list(_PLACES)
__getattr__, __dir__ = face(__name__, _PLACES)
