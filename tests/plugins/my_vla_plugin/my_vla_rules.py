"""The rule of docs/own-rules.md, for the commands."""

from dipole_vla.objective import Rule

RAMP = Rule(
    positive=lambda advantage, beta, shift: (0.5 + (beta * advantage + shift) / 4).clamp(0, 1),
    negative=lambda advantage, beta, shift: (0.5 - (beta * advantage + shift) / 4).clamp(0, 1),
)
