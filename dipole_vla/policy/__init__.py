"""What a policy is made of: a backbone, its two adapters, and the guided sampler over them."""

from dipole_vla.backbones.action import Plain, Poses
from dipole_vla.backbones.base import ActionSpec, Backbone, Context, Processor
from dipole_vla.policy.adapters import AdapterPair
from dipole_vla.policy.arguments import Guidance
from dipole_vla.policy.distilled import DistilledPair
from dipole_vla.policy.guided import GuidedPolicy, load_policy
from dipole_vla.policy.scenes import EncodedScenes

__all__ = [
    "ActionSpec",
    "AdapterPair",
    "Backbone",
    "Context",
    "DistilledPair",
    "EncodedScenes",
    "Guidance",
    "GuidedPolicy",
    "Plain",
    "Poses",
    "Processor",
    "load_policy",
]
