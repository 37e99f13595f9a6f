"""The algorithm on state-based RL benchmarks: the driving code's objective, guidance and solvers on small networks.

Only the network (a stack of MLPs) and the data differ from driving. Commands: `dipole-vla data`, `dipole-vla rl`,
`dipole-vla experiment`.
"""
