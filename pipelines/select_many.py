"""Many selections → their manifests. Where one process can hold the pool, as many are made at a
time as there are CPUs, and the budgets of one method read it once; otherwise the cluster makes one
after another. Each lies where `coreset-ray select` would put it, with the same manifest."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from coreset_ray.config import Config
from coreset_ray.distributed.at_hand import ByItself, FromScores, Job, at_hand, choose_at_hand
from coreset_ray.io.workspace import Stage
from pipelines import select_coreset
from pipelines.select_source import source_of

_log = logging.getLogger(__name__)

Made = tuple[int, str | None]  # the place of a configuration, and why there is no selection


@dataclass(frozen=True)
class _Wanted:
    """A selection that is to be made, and the configurations that it is of, by their places."""

    config: Config
    stage: Stage
    record: dict[str, Any]
    places: list[int]


def run(configs: Sequence[Config]) -> Iterator[Made]:
    """Makes each, with the signals and scores it reads, where it is not there yet; yields the place
    of each as it is done, with the reason where its settings do not go with this pool. Within a
    session."""
    wanted: dict[str, _Wanted] = {}
    for place, config in enumerate(configs):
        try:
            select_coreset.make_inputs(config)
            stage, record = select_coreset.prepare(config)
        except ValueError as error:
            yield place, str(error)
            continue
        if stage.done() is not None:
            yield place, None
        else:
            found = wanted.setdefault(stage.name, _Wanted(config, stage, record, []))
            found.places.append(place)
    yield from _made(list(wanted.values()))


def _made(wanted: Sequence[_Wanted]) -> Iterator[Made]:
    """By one task for all budgets of one source; by the whole cluster where no task may hold it."""
    sources: dict[str, tuple[FromScores | ByItself, list[_Wanted]]] = {}
    apart = []
    for one in wanted:
        source = source_of(one.config, one.record)
        if _plain(one.config) and at_hand(source, one.record["kept"]):
            sources.setdefault(repr(source), (source, []))[1].append(one)
        else:
            apart.append(one)
    groups = list(sources.values())
    jobs = [
        Job(source, tuple((one.record["kept"], _manifest(one.stage)) for one in group))
        for source, group in groups
    ]
    for place, outcomes in choose_at_hand(jobs):
        for one, outcome in zip(groups[place][1], outcomes, strict=True):
            if outcome.failed is None:
                spent = {"seconds": round(outcome.seconds, 3), "memory": outcome.memory}
                select_coreset.publish(one.config, one.stage, one.record, spent)
            yield from ((i, outcome.failed) for i in one.places)
    for one in apart:
        failed = None
        try:
            select_coreset.run(one.config)
        except ValueError as error:
            failed = str(error)
        yield from ((i, failed) for i in one.places)


def _plain(config: Config) -> bool:
    """Whether it starts from nothing and all rows at once."""
    told = config.select
    return told.keep is None and told.target is None and told.partitions == 1


def _manifest(stage: Stage) -> str:
    return (stage.folder / "manifest.parquet").uri
