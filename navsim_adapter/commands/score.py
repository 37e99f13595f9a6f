"""The command `navsim-adapter score`: trajectories in, official scores out, by one run or by many shards of it.

From options to units of work (`scoring.job`), units to rows (`scoring.units`), rows to files (`scoring.result`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.option_checks import check_range

if TYPE_CHECKING:
    from navsim_adapter.scoring.job import Job
    from navsim_adapter.scoring.rows import Traffic
    from navsim_adapter.scoring.units import Map, Part, Parts

METRICS = ("pdms", "epdms", "pdms-v1.1", "epdms-v2.2", "epdms-v2.2-before-2025-09-29")
TRAFFIC = ("log-replay", "constant-velocity", "idm")
_SECOND_STAGE_ONLY = ("second_stage_trajectories", "second_stage_cache", "mapping")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from navsim_adapter.commands.options import add_data_arguments

    add_data_arguments(parser)
    parser.add_argument("--trajectories", required=True, metavar="T.npz", help="arrays token, name, poses (M, T, 3)")
    parser.add_argument(
        "--metric",
        choices=METRICS,
        help=f"PDMS v1.1 (default), EPDMS v2.2 (two stages), or {METRICS[-1]}: as the devkit scored until its fix",
    )
    parser.add_argument("--traffic", choices=TRAFFIC, help="default: log-replay, and idm in two stages, as officially")
    parser.add_argument("--out", required=True, metavar="CSV", help="table of sub-scores and scores, in input order")
    parser.add_argument("--format", choices=("rows", "official"), default="rows", help="our layout or the devkit's")
    parser.add_argument("--cache", metavar="DIR", help="read scenes from this cache, not from logs and maps")
    stages = parser.add_argument_group("two stages")
    stages.add_argument("--two-stage", metavar="FOLDER", help="synthetic_scene_pickles/ and mapping.json or split YAML")
    stages.add_argument("--second-stage-trajectories", metavar="T2.npz", help="the same planners in rendered scenes")
    stages.add_argument("--mapping", metavar="FILE", help="mapping.json or split YAML, if it is not in FOLDER")
    stages.add_argument("--second-stage-cache", metavar="DIR", help="read rendered scenes from this cache")
    many = parser.add_argument_group("many processors")
    many.add_argument("--threads", type=int, default=1, help="scenes scored at a time in a process; one stage only")
    many.add_argument("--workers", type=int, default=1, help="processes, a log or mapping entry each")
    many.add_argument("--shard", metavar="I/N", help="score the I-th of N parts; the last writes OUT, the same for all")
    many.add_argument("--ray", metavar="ADDRESS", help="score on this Ray cluster; auto: the running one; local: start")


def run(options: argparse.Namespace) -> None:
    from navsim_adapter.foundation.progress import Progress
    from navsim_adapter.foundation.shard import Shard
    from navsim_adapter.scoring.result import check_layout, check_replacing, identity, is_written
    from navsim_adapter.scoring.rows import check_traffic
    from navsim_adapter.scoring.scorer import family_of
    from navsim_adapter.scoring.units import Parts

    _check_stages(options)
    _refuse_ignored(options)
    metric = options.metric or ("epdms" if options.two_stage else "pdms")
    traffic: Traffic = options.traffic or ("idm" if options.two_stage else "log-replay")
    check_traffic(family_of(metric), traffic)
    score = _map(options)
    shard = Shard.parse(options.shard) if options.shard else None
    job = _job(options, metric, traffic)
    inputs = (options.trajectories, options.second_stage_trajectories, job.facts.source.get("mapping"))
    check_layout(options.out, options.format, job.labels["name"], job.facts, inputs)
    parts, of_units = Parts(options.out, identity(job.facts)), "entries" if options.two_stage else "logs"
    if shard and is_written(options.out, options.format, job.facts):
        return print(f"shard {shard}: {options.out} is already complete")
    with parts.held(shard):
        check_replacing(
            options.out, options.format, job.labels["name"], job.facts, lambda: bool(job.units) and not job.left(parts)
        )
        with Progress(of_units) as progress:
            found = job.run(parts, score, progress.show, shard)
        if not shard:
            return _write(options, job, parts, found)
    left = job.left(parts)
    if left and not is_written(options.out, options.format, job.facts):
        return print(f"shard {shard}: done; {left} of {len(job.units)} {of_units} are still with the others")
    with parts.held(wait=True):
        if not is_written(options.out, options.format, job.facts):  # another shard may have put them together
            return _write(options, job, parts, parts.all_of(job.units))
        parts.clear()
        print(f"shard {shard}: done; another one has written {options.out}")


def _write(options: argparse.Namespace, job: Job, parts: Parts, found: Sequence[Part]) -> None:
    """The result, on disk and on the terminal."""
    from navsim_adapter.scoring.means import mean_lines
    from navsim_adapter.scoring.result import report, require_scores, write_result

    result = job.result(found)
    files = write_result(options.out, result, options.format)
    parts.clear()
    for line in (*job.remarks, *report(result)):
        print(line, file=sys.stderr)
    scored, rows, facts = int(result.table.is_scored.sum()), len(result.table), result.facts
    print(f"{scored} of {rows} trajectories scored with {facts.family} in {files[0]} ({facts.metric}, {facts.traffic})")
    print("\n".join(mean_lines(result)))
    require_scores(files[0], result)


def _check_stages(options: argparse.Namespace) -> None:
    if not options.two_stage:
        for name in _SECOND_STAGE_ONLY:
            if getattr(options, name):
                raise InputError(f"--{name.replace('_', '-')}: belongs to a two-stage run; add --two-stage FOLDER")
    elif not options.second_stage_trajectories:
        raise InputError("--two-stage: needs --second-stage-trajectories; name the table for the rendered scenes")
    elif options.metric and options.metric.startswith("pdms"):
        raise InputError("--metric pdms: the two-stage score is EPDMS; leave --two-stage or --metric out")


def _refuse_ignored(options: argparse.Namespace) -> None:
    """An option without effect is refused: who gave it believes that it has one."""
    if options.cache and options.split:
        raise InputError("--split: the cache holds the scenes; leave --split or --cache out")
    reads_maps = options.two_stage and not options.second_stage_cache
    if options.cache and options.data and not reads_maps:
        raise InputError("--data: everything is read from caches; leave --data or --cache out")
    if options.two_stage and options.threads != 1:
        raise InputError("--threads: has no effect in two stages; use --workers")
    if options.ray and options.workers != 1 and not options.two_stage:  # two stages build their scenes here
        raise InputError("--workers: the cluster decides how many there are; leave --workers or --ray out")


def _map(options: argparse.Namespace) -> Map:
    check_range("--threads", options.threads, 1)
    if options.ray:
        from navsim_adapter.scoring.ray import run_on_ray

        return run_on_ray(options.ray)
    from navsim_adapter.scoring.units import run_in_processes

    return run_in_processes(options.workers)


def _job(options: argparse.Namespace, metric: str, traffic: Traffic) -> Job:
    from navsim_adapter.commands.options import root_of
    from navsim_adapter.scoring.job import SecondStage, one_stage, source_of, two_stage

    if not options.two_stage:
        source = source_of(options.cache, lambda: root_of(options), options.split)
        return one_stage(options.trajectories, source, metric, traffic, options.threads)
    needs_maps = not options.second_stage_cache
    source = source_of(options.cache, lambda: root_of(options), options.split, needs_maps)
    second = SecondStage(
        options.two_stage, options.second_stage_trajectories, options.mapping, options.second_stage_cache
    )
    return two_stage(options.trajectories, source, second, traffic, options.workers, metric)
