"""How long a choice without scores takes, from a small one of made-up rows that was timed."""

from dataclasses import dataclass

from coreset_ray.core.alone import Alone
from coreset_ray.core.greedy import Greedy


@dataclass(frozen=True)
class Trial:
    """seconds: of one process while all CPUs are at work, to choose k of n rows; turns: in which
    these were chosen, of a method that lies in blocks; round_trip: seconds of a message to a
    process and back."""

    n: int
    k: int
    seconds: float
    turns: int = 0
    round_trip: float = 0.0


@dataclass(frozen=True)
class Choice:
    """A choice as it is spread. n, k: rows of the pool and of the budget; each: bytes of a row;
    groups: that give as many each; partitions: of a method that needs all rows; cpus: of the
    cluster; read: bytes that a process reads in a second; start: seconds for one to come up."""

    n: int
    k: int
    each: int
    groups: int
    partitions: int
    cpus: int
    read: float
    start: float

    def seconds(self, method: Alone, trial: Trial) -> float:
        """Blocks work side by side, one group after another; a method that needs all rows has a
        process for each group and partition, which reads the whole pool to find its own."""
        n, k = -(-self.n // self.groups), -(-self.k // self.groups)
        unit = trial.seconds / method.work(trial.n, trial.k)
        reading = self.n * self.each / self.read
        if isinstance(method, Greedy):
            turns = self.k * trial.turns / trial.k * trial.round_trip
            work = self.groups * method.work(n, k) * unit
            return self.start + (reading + work) / self.cpus + turns
        if self.partitions == 1:
            return self._side_by_side(self.groups, reading + method.work(n, k) * unit)
        first = reading + method.work(-(-n // self.partitions), k) * unit
        second = reading + method.work(self.partitions * k, k) * unit
        return self._side_by_side(self.groups * self.partitions, first) + self._side_by_side(
            self.groups, second
        )

    def _side_by_side(self, processes: int, seconds: float) -> float:
        return self.start + -(-processes // self.cpus) * seconds

    def reads(self, method: Alone) -> int:
        """Bytes, by all processes together."""
        if isinstance(method, Greedy):
            return self.n * self.each
        rounds = self.partitions + 1 if self.partitions > 1 else 1
        return self.groups * rounds * self.n * self.each
