"""Scenes and scored candidates as the training loops see them: (observation, action, advantage)."""
