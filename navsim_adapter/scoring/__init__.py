"""From trajectories to scores and their files: the scorer, and a score run over a split."""
