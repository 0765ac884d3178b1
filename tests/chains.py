"""The chain of stages on clusters of several nodes, undisturbed or under kills."""

import hashlib
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from pools import digits_pool, write_config
from raylets import Driver, Nodes, nodes

SHARDS, EACH = 16, 40
CHAIN = ("embed", "signals", "run")
_SIGNALS = {"classes": 10, "pseudo_labels": {"clustering": "kmeans"}}


def pool_of(folder: Path, *, shards: int = SHARDS, each: int = EACH) -> Path:
    return digits_pool(folder, shards=shards, each=each)[0]


def configuration(folder: Path, pool: Path, draws: int) -> Path:
    return write_config(
        folder,
        pool,
        score={"params": {"draws": draws, "neighbors": 20}},
        select={"budget": 0.1},
        signals=_SIGNALS,
    )


def results(folder: Path) -> dict[str, str]:
    """Every table that a run made, by name and content: shards' rows, signals, scores, manifest."""
    work = folder / "work"
    found = [*work.glob("**/part*.parquet"), *work.glob("**/manifest.parquet")]
    found += work.glob("embeddings/*/parts/*.parquet")
    return {str(p.relative_to(work)): hashlib.sha256(p.read_bytes()).hexdigest() for p in found}


def committed(work: Path) -> int:
    return len(list(work.glob("embeddings/*/parts/*.done.json")))


def draws_kept(work: Path) -> int:
    return len(list(work.glob("sums/*/*.json")))


def undisturbed(folder: Path, pool: Path, draws: int) -> dict[str, str]:
    """Its results, on one node."""
    with nodes(1) as one:
        for command in CHAIN:
            one.drive(command, configuration(folder, pool, draws)).ends()
    return results(folder)


@dataclass
class Soaked:
    """chains: that ended; kills: of what; again: commands given again."""

    chains: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    again: int = 0


def soak(
    folder: Path,
    pool: Path,
    wanted: dict[str, str],
    *,
    draws: int,
    seconds: float,
    every: float,
    seed: int,
) -> Soaked:
    """Chains, one after another, on three nodes of which something is killed at random times,
    `every` seconds in the mean: a node (another takes its place), a process of Ray's, or the
    driver, whose command is then given again. Each has to end with what is wanted."""
    told, rng = Soaked(), random.Random(seed)
    end = time.monotonic() + seconds
    kill_at = time.monotonic() + rng.uniform(0, 2 * every)
    with nodes(3) as three:
        while told.chains == 0 or time.monotonic() < end:
            place = folder / f"chain-{told.chains}"
            place.mkdir()
            config = configuration(place, pool, draws)
            for command in CHAIN:
                driver = three.drive(command, config)
                while (code := driver.process.poll()) != 0:
                    if code is not None:
                        told.again += 1
                        assert told.again <= 5 + 2 * sum(told.kills.values()), (
                            driver.log.read_text()
                        )
                        driver = three.drive(command, config)
                    elif kill_at < time.monotonic() < end:
                        told.kills[_kill(three, driver, rng)] += 1
                        kill_at = time.monotonic() + rng.uniform(0, 2 * every)
                    time.sleep(0.05)
            assert results(place) == wanted, f"after {told.kills}"
            told.chains += 1
    return told


def _kill(of: Nodes, driver: Driver, rng: random.Random) -> str:
    kind = rng.choice(["node", "process", "driver"])
    if kind == "node":
        of.kill(rng.choice(of.others))
        of.start()
    elif kind == "driver":
        driver.kill()
    else:
        mine = [c for c in psutil.Process().children(recursive=True) if _works(c)]
        if not mine:
            return "nothing"
        rng.choice(mine).kill()
    return kind


def _works(process: psutil.Process) -> bool:
    """Not an agent, whose node goes with it, be it the head."""
    try:
        name = "".join(process.cmdline()[:1])
    except psutil.Error:
        return False
    return name.startswith("ray::") and "Agent" not in name
