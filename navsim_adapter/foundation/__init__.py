"""Files, errors, checks and progress: the ground of both packages, nothing of NAVSIM."""
