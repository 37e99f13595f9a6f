"""ReCogDrive: InternVL3 and a DiT planner."""
