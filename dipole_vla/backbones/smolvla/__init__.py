"""SmolVLA: the first layers of SmolVLM2 and an action expert of every other kind of attention."""
