"""NAVSIM's files and scores, without the devkit and without torch."""

__version__ = "0.1.0"
