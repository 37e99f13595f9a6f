"""SimWAM: a flow expert over trajectories that reads a video expert's keys and values of the present picture."""
