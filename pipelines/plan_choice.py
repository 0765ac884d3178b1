"""What filters and a choice without scores would need and take, for the plan."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from coreset_ray.config import Config
from coreset_ray.core import costs, limits
from coreset_ray.core.alone import Alone
from coreset_ray.core.choice_costs import Choice, Trial
from coreset_ray.core.filter import Filter
from coreset_ray.core.forecast import PoolSize, RowCosts, Stage
from coreset_ray.core.greedy import Greedy
from coreset_ray.core.made_up import Widths, can_make_up
from coreset_ray.core.rule import Rule
from coreset_ray.core.selection import resolve_budget
from coreset_ray.distributed.session import Cluster
from coreset_ray.models.patterns import width_of_tokens
from pipelines import signals
from pipelines.plan_signals import classes_of, clusters_of

Timer = Callable[[Alone | Filter, int, int, Widths, Cluster], Trial]


def check_choice(config: Config, pool: PoolSize, on: Cluster) -> None:
    """`ValueError` where a filter, or a method that selects by itself, fits no machine, or one
    that lies in blocks not all of them."""
    for wanted in config.select.filters:
        dropping = wanted.build()
        limits.check_filter(dropping, pool.rows, _row_bytes(config, dropping.needs, pool), on.nodes)
    method = config.rule(0.0)
    if isinstance(method, Rule):
        return
    each = _row_bytes(config, method.needs, pool)
    if isinstance(method, Greedy):
        limits.check_blocks(config.selector()[0], pool.rows, each, on.nodes)
        return
    groups = _groups(config)
    share = -(-resolve_budget(config.select.budget, pool.rows) // groups)
    parts = config.select.partitions
    asked = pool.rows // groups, each, parts, on.nodes
    widths = _widths(config, pool)
    width = {column: widths.numbers(column) for column in method.needs}
    scratch = method.scratch(share, width)
    limits.check_whole(
        *asked,
        copies=method.copies,
        beside=method.beside(width),
        chosen=share,
        scratch=scratch,
        remedy=limits.SHARE_OUT if method.weighs else None,
    )


def filters_stage(
    config: Config, pool: PoolSize, on: Cluster, rows: RowCosts, timer: Timer
) -> Stage | None:
    """What the filters take, one after another, each in one process; None without any."""
    filters = [wanted.build() for wanted in config.select.filters]
    if not filters:
        return None
    if not all(can_make_up(one.needs) for one in filters):
        return Stage("filters", 0, 0, None, "not planned")
    widths, reads, seconds, told = _widths(config, pool), 0, 0.0, []
    for one in filters:
        trial = timer(one, pool.rows, 0, widths, on)
        size = pool.rows * _row_bytes(config, one.needs, pool)
        reads += size
        seconds += rows.start + size / rows.layout + trial.seconds * pool.rows / trial.n
        told.append(f"{trial.n:,}")
    return Stage("filters", reads, 0, seconds, f"by {', '.join(told)} made-up rows")


def choice_stage(
    config: Config, pool: PoolSize, on: Cluster, rows: RowCosts, timer: Timer
) -> Stage:
    """The stage `select` of a method that selects by itself."""
    method, k = config.rule(0.0), resolve_budget(config.select.budget, pool.rows)
    assert not isinstance(method, Rule), "rules read scores"
    of_kept = "pseudo_labels.label" in method.needs  # it starts from labels of images kept already
    if not can_make_up(method.needs) or config.select.target or of_kept:
        return Stage("select", 0, 0, None, "not planned")
    each, groups = _row_bytes(config, method.needs, pool), _groups(config)
    n, share = -(-pool.rows // groups), -(-k // groups)
    trial = timer(method, n, share, _widths(config, pool), on)
    partitions, cpus = config.select.partitions, max(1, int(on.cpus))
    choice = Choice(pool.rows, k, each, groups, partitions, cpus, rows.layout, rows.start)
    seconds = 2 * rows.start + choice.seconds(method, trial)  # counts rows, writes the manifest
    note = f"by {trial.k:,} of {trial.n:,} made-up rows in {trial.seconds:.2f} s"
    return Stage("select", choice.reads(method), costs.manifest_bytes(k), seconds, note)


def _groups(config: Config) -> int:
    balance = config.select.balance
    if balance is None:
        return 1
    return classes_of(config) if balance == "pseudo_labels" else clusters_of(config)


def _widths(config: Config, pool: PoolSize) -> Widths:
    told = config.signals
    widths = Widths(pool.dims, told.knn.k, classes_of(config), told.proxy.recipe().hidden)
    if "patterns" not in signals.wanted_by(config):
        return widths
    tokens = width_of_tokens(told.patterns.encoder)  # which takes a library seconds to say
    return replace(widths, patterns=told.patterns.count, tokens=tokens)


def _row_bytes(config: Config, needs: Sequence[str], pool: PoolSize) -> int:
    widths = _widths(config, pool)
    return sum(widths.bytes(column) for column in needs)
