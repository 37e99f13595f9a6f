"""One module per command of `dipole-vla`, and what only commands share."""
