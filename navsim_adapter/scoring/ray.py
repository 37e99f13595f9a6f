"""Units of a score run on a Ray cluster. Ray is an extra and is imported here only.

Machines read data, caches and trajectories under the same paths as the one that asks, so these lie on a shared file
system, and have this package installed. Ray itself repeats units of a machine that is lost.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

from navsim_adapter.foundation.errors import InputError
from navsim_adapter.scoring.units import Map, Part, Unit, score_unit


def run_on_ray(address: str) -> Map:
    """Score on the cluster at `address`; "auto" is the running one, "local" starts one on this machine.

    Raises InputError where Ray is not installed or there is no such cluster.
    """
    try:
        import ray
    except ImportError:
        raise InputError("--ray: ray is not installed; pip install 'dipole-vla[ray]'") from None

    def run(units: Sequence[Unit]) -> Generator[tuple[Unit, Part]]:
        is_mine = not ray.is_initialized()
        if is_mine:
            try:
                ray.init(address=address, log_to_driver=False, logging_level="ERROR")
            except (ConnectionError, ValueError, RuntimeError) as problem:
                reason = " ".join(str(problem).split())[:160]
                raise InputError(f"--ray {address}: no cluster there ({reason}); start one, or use local") from problem
        try:
            score = ray.remote(score_unit)
            waiting = {score.remote(unit): unit for unit in units}
            while waiting:
                (done, *_), _ = ray.wait(list(waiting))
                unit = waiting.pop(done)
                try:
                    yield unit, ray.get(done)
                except ray.exceptions.RayTaskError as problem:
                    if isinstance(problem.cause, InputError):
                        raise InputError(str(problem.cause)) from problem
                    raise
        finally:
            if is_mine:
                ray.shutdown()

    return run
