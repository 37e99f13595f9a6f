"""DIPOLE fine-tuning for vision-language-action models: a positive and a negative policy, one greed dial."""

__version__ = "0.1.0"
