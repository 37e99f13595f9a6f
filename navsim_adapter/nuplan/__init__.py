"""NAVSIM's files, logs, scenes and maps, as typed records."""
