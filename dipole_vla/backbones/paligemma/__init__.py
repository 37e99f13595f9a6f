"""A PaliGemma prefix read once and a Gemma expert on its keys and values: what PI0 and PI0.5 share."""
