"""PI0: PaliGemma and an action expert."""
