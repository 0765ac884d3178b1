"""What signals would need and take, for the plan."""

from contextlib import suppress

from coreset_ray.clustering.kmeans_fit import Clustering
from coreset_ray.clustering.neighbors import choose_kind
from coreset_ray.config import Config
from coreset_ray.core import limits, signal_costs
from coreset_ray.core.forecast import PoolSize, RowCosts, Stage
from coreset_ray.core.signal_costs import Work
from coreset_ray.distributed.session import Cluster
from coreset_ray.models.mlp import MlpRecipe
from pipelines import signals
from pipelines.inputs import NotReady

_GUESSED = 10  # classes
_METRICS = 9


def signal_stages(
    config: Config, pool: PoolSize, on: Cluster, rate: float | None, rows: RowCosts, gpu: bool
) -> list[Stage]:
    """A stage for each signal. rate: operations a second of one CPU, None where not measured.
    Raises `ValueError` where one does not fit into the cluster's memory."""
    stages = []
    for name in signals.wanted_by(config):
        if _finished(config, name):
            stages.append(Stage(name, 0, 0, 0.0, "finished"))
            continue
        work = _work(config, name, pool)
        if work is None or rate is None or gpu:
            why = "not planned on GPUs" if gpu and work is not None else "not planned"
            stages.append(Stage(name, 0, 0, None, why))
            continue
        limits.check_signal(name, work.memory, on.nodes)
        workers = config.compute.train_workers if work.trainings else int(on.cpus)
        seconds = work.seconds(rate, min(workers, int(on.cpus)), rows.start)
        note = f"{work.flops:.1e} operations at {rate * min(workers, on.cpus):.1e}/s"
        stages.append(Stage(name, 4 * pool.rows * pool.dims, work.writes, seconds, note))
    return stages


def classes_of(config: Config) -> int:
    """As many as are named; a guess while their number is still to be proposed."""
    return _GUESSED if config.signals.classes == "auto" else config.signals.classes


def clusters_of(config: Config) -> int:
    """Of the signal `clusters`."""
    return config.signals.clusters.count or classes_of(config)


def _finished(config: Config, name: str) -> bool:
    with suppress(NotReady):
        return signals.SIGNALS[name].stage_of(config)[0].done() is not None
    return False


def _work(config: Config, name: str, pool: PoolSize) -> Work | None:
    """None for what is not foretold."""
    n, m, told, c = pool.rows, pool.dims, config.signals, classes_of(config)
    if name == "knn":
        kind = choose_kind(n) if told.knn.index == "auto" else told.knn.index
        return signal_costs.neighbors(n, m, told.knn.k, kind, told.knn.lists, told.knn.probes)
    if name == "clusters":
        iterations = told.clusters.iterations
        return signal_costs.clusters(n, m, clusters_of(config), Clustering.single, iterations)
    if name == "pseudo_labels":
        if told.labels != "pseudo" or told.pseudo_labels.clustering == "kmeans":
            return Work(0.0, 0, 20 * n)
        heads = told.pseudo_labels.heads(c, told.seed)
        return signal_costs.heads(n, m, c, heads.hidden, heads.heads, heads.epochs)
    if name == "proxy":
        recipe, runs = told.proxy.recipe(), told.proxy.runs
        return signal_costs.proxy(n, m, c, recipe.hidden, recipe.epochs, runs)
    recipe = told.dynamics.recipe() if name == "dynamics" else None
    if isinstance(recipe, MlpRecipe):
        width, epochs = recipe.hidden, recipe.epochs
        return signal_costs.classifier(n, m, c, width, epochs, _METRICS * epochs)
    return None
