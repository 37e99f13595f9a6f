"""What the scorer needs of a scene, computed once from logs and maps and kept in flat arrays."""
