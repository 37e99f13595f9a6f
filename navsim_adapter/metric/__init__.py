"""The official sub-scores, each in a file of its own, over many candidates per scene."""
