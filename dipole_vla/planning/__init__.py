"""What a training recipe needs, counted and timed; `dipole-vla plan` says it."""
