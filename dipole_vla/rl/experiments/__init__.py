"""The paper's own open questions, each asked of a small known world, answered by a command and a page."""
