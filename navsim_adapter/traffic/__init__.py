"""Traffic policies of EPDMS: what the road users do while the ego drives a trajectory (metric 8).

A policy takes a scene and the ego's 41 simulated states and gives the objects at the 41 steps. `log_replay` and
`constant_velocity` ignore the states; `idm` reacts to them.
"""
