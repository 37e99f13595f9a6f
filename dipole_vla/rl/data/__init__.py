"""Offline data sets: found, downloaded or made (`ogbench`), or read as published (`exorl`)."""
