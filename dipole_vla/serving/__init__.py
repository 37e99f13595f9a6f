"""A policy as a driver of the egodriver contract, which AlpaSim and CARLA runtimes speak (extra `drive`).

The wire is `carla_driver_interface`'s; here a session becomes what the policy sees, and a plan what the runtime drives.
"""
