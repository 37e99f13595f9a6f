"""Synthetic driving worlds in NAVSIM's on-disk formats: maps, logs and pictures, all from one seed.

`layouts` draws road networks, `world` drives traffic and an imperfect human through them, `log_writer`, `map_writer`
and `cameras` put the result on disk, `synthesize` runs it all. Traffic keeps to the right in every city.
"""
