"""`navsim-adapter closed-loop`: a driver at the wheel of a synthetic world, from pictures to pedals."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from navsim_adapter.foundation.errors import InputError, did_you_mean
from navsim_adapter.foundation.option_checks import check_range
from navsim_adapter.foundation.progress import Progress
from navsim_adapter.foundation.words import counted

if TYPE_CHECKING:
    from navsim_adapter.closed_loop.drivers import Driver

BUILT_IN = ("human", "human_plan", "pdm_closed", "stand_still", "constant_velocity")
TRAFFIC = ("idm", "log-replay")
SHORTEST, LONGEST = 8.0, 20.0  # s


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--world", required=True, metavar="DIR", help="a world written by navsim-adapter synth")
    parser.add_argument("--split", default="test", help="folder under navsim_logs (default test)")
    parser.add_argument(
        "--driver", required=True, help=f"host:port or unix:PATH of a served driver, or {', '.join(BUILT_IN)}"
    )
    parser.add_argument("--name", help="what tables call a served driver (default: what it says it is)")
    parser.add_argument("--beside", metavar="DIR", help="another driver's run of the same drives: paired differences")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for drives, table, summary, page and films")
    parser.add_argument("--seconds", type=float, default=SHORTEST, help="of a drive, 8 to 20 (default 8)")
    parser.add_argument("--replan", type=float, default=0.5, help="seconds between plans, 0.1 to 1 (default 0.5)")
    parser.add_argument("--traffic", choices=TRAFFIC, default="idm", help="do the others react? (default idm: they do)")
    parser.add_argument("--seed", type=int, nargs="+", default=[0], help="one drive of each log for each (default 0)")
    parser.add_argument("--scenes", type=int, metavar="N", help="the first N logs alone")
    parser.add_argument("--workers", type=int, default=1, help="processes, one log each; the result is the same")


def run(options: argparse.Namespace) -> None:
    _check(options)
    from navsim_adapter.closed_loop.drive import Manner
    from navsim_adapter.closed_loop.job import run_closed_loop
    from navsim_adapter.closed_loop.run import Run
    from navsim_adapter.closed_loop.summary import line_of
    from navsim_adapter.nuplan.scenes import split_name

    manner = Manner(options.traffic, round(options.seconds * 10), round(options.replan * 10))
    driver, seeds = _driver(options), tuple(dict.fromkeys(options.seed))
    split = split_name(options.split)
    job = Run(options.world, split, driver, options.out, manner, seeds, options.scenes, options.beside)
    with Progress("logs") as progress:
        content = run_closed_loop(job, options.workers, progress.show)
    print(
        f"{counted(content['drives'], 'drive')} of {driver.name} in {counted(content['logs'], 'log')} in {options.out}"
    )
    print(line_of(content))


def _check(options: argparse.Namespace) -> None:
    check_range("--seconds", options.seconds, SHORTEST, LONGEST)
    check_range("--replan", options.replan, 0.1, 1.0)
    for seed in options.seed:
        check_range("--seed", seed, 0, 2**31 - 1)
    check_range("--scenes", options.scenes, 1)
    check_range("--workers", options.workers, 1)


def _driver(options: argparse.Namespace) -> Driver:
    from navsim_adapter.closed_loop import drivers

    given = options.driver
    if given in BUILT_IN:
        if options.name:
            raise InputError(f"--name: {given} has its name already; leave --name out")
        return drivers.BUILT_IN[given]
    if ":" not in given:
        hint = did_you_mean(given, list(BUILT_IN))
        raise InputError(f"--driver: {given!r} is neither host:port nor one of {', '.join(BUILT_IN)}{hint}")
    from navsim_adapter.closed_loop.served import Served, ask_name

    own = ask_name(given)
    return Served(given, options.name or own)
