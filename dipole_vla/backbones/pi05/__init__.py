"""PI0.5: PaliGemma and an action expert whose norms are steered by the time."""
