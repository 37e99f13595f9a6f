"""Three Lightning modules (imitation, critic, dipole) and what they share."""

from dipole_vla.training.critic import CriticModule
from dipole_vla.training.dipole import DipoleModule
from dipole_vla.training.imitation import ImitationModule

__all__ = ["CriticModule", "DipoleModule", "ImitationModule"]
