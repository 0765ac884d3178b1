"""Plans that cannot fit are refused, with the arithmetic and what to change."""

from collections.abc import Sequence

from coreset_ray.core.costs import (
    COLUMN_SHARE,
    NodeNeed,
    Nodes,
    Spreading,
    choose_spreading,
    columns_total,
    node_needs,
)

COPIES = 4  # of the columns needed, while a method or a filter works on them
_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def in_bytes(count: float) -> str:
    """1234567 → '1.2 MB'."""
    size, unit = float(count), 0
    while size >= 999.5 and unit < len(_UNITS) - 1:
        size, unit = size / 1000, unit + 1
    return f"{size:.0f} B" if unit == 0 else f"{size:.{1 if size < 99.95 else 0}f} {_UNITS[unit]}"


def check_memory(
    n: int, m: int, channels: int, spreading: Spreading, nodes: Nodes, base: int, width: int = 4
) -> list[NodeNeed]:
    """What each node needs while drawing; `ValueError` with the arithmetic and remedies where
    one has less. base: bytes of a process before it holds anything of the pool; width: of a value
    of the columns."""
    needs = node_needs(n, m, channels, spreading, nodes, base, width)
    short = next((need for need in needs if need.total > need.memory), None)
    if short is None:
        return needs
    one = columns_total(n, m, spreading.row_shards, width)
    raise ValueError(
        f"the plan does not fit: a node has {in_bytes(short.memory)} of memory for it, and scoring "
        f"{n:,} images of {m:,} dimensions in {spreading.workers} workers × {spreading.row_shards} "
        f"row shards needs {in_bytes(short.total)} there: columns {short.shards} × {in_bytes(one)} "
        f"({width + 1} bytes a value, 16 a row, and a sample) + {short.processes} processes × "
        f"{in_bytes(short.each)}. "
        + "; or ".join(_remedies(n, m, channels, spreading, nodes, base, width, short))
    )


def _remedies(
    n: int,
    m: int,
    channels: int,
    spreading: Spreading,
    nodes: Nodes,
    base: int,
    width: int,
    short: NodeNeed,
) -> list[str]:
    """What would make it fit, as far as it can be told."""
    found = []
    better = choose_spreading(n, m, nodes, width=width)
    if better != spreading and _fits(node_needs(n, m, channels, better, nodes, base, width)):
        found.append(
            f"set compute.row_shards={better.row_shards} and compute.score_workers={better.workers}"
        )
    elif workers := _fewer_workers(n, m, channels, spreading, nodes, base, width):
        found.append(f"set compute.score_workers={workers}")
    if width > 2 and _fits(node_needs(n, m, channels, spreading, nodes, base, 2)):
        found.append("set score.columns=float16, which rounds embeddings")
    cpus, memory = max(nodes, key=lambda node: node[1])
    for count in range(len(nodes) + 1, 1025):
        more = [(cpus, memory)] * count
        wider = choose_spreading(n, m, more, width=width)
        if _fits(node_needs(n, m, channels, wider, more, base, width)):
            found.append(f"use {count} nodes of {cpus:g} CPUs and {in_bytes(memory)} each")
            break
    room = min(COLUMN_SHARE * short.memory, short.memory - short.processes * short.each)
    dims = int(m * room / max(1, short.columns))
    if 0 < dims < m:
        found.append(f"use encoders of at most {dims:,} dimensions in all (embed.encoders)")
    found.append(f"use nodes of at least {in_bytes(short.total)} of memory")
    return found


def _fewer_workers(
    n: int, m: int, channels: int, spreading: Spreading, nodes: Nodes, base: int, width: int
) -> int | None:
    for workers in range(spreading.workers - 1, 0, -1):
        fewer = Spreading(workers, spreading.row_shards)
        if _fits(node_needs(n, m, channels, fewer, nodes, base, width)):
            return workers
    return None


def _fits(needs: Sequence[NodeNeed]) -> bool:
    return all(need.total <= need.memory for need in needs)


def check_signal(name: str, needed: int, nodes: Nodes) -> None:
    """`ValueError` where all nodes together have less memory than a signal's processes need."""
    there = sum(memory for _, memory in nodes)
    if needed > there:
        raise ValueError(
            f"the plan does not fit: the signal {name!r} holds the pool's rows between its "
            f"processes, {in_bytes(needed)}, and the nodes have {in_bytes(there)} for it: use more "
            "nodes, or encoders of fewer dimensions"
        )


SHARE_OUT = "lower the budget, or share it out over groups with select.balance"


def check_whole(
    rows: int,
    each: int,
    partitions: int,
    nodes: Nodes,
    *,
    copies: int = COPIES,
    beside: int = 0,
    chosen: int = 0,
    scratch: int = 0,
    who: str = "this method",
    remedy: str | None = None,
) -> None:
    """`ValueError` where so many rows of so many bytes, in so many partitions, fit no node, or
    leave no room for what a choice itself takes.

    copies: of a row that are held at once; beside: further bytes a row; chosen: rows that each
    partition gives to the second round; scratch: bytes that a choice itself takes; who: holds them;
    remedy: what to do about it, by default the number of partitions that would do.
    """
    most = max((memory for _, memory in nodes), default=0)
    if scratch >= most:
        raise ValueError(
            f"{who} takes {in_bytes(scratch)} to choose so many, whatever the pool, and the "
            f"largest node offers {in_bytes(most)}: {SHARE_OUT}"
        )
    held = _held(rows, partitions, chosen)
    row = copies * each + beside
    asked = row * held
    if asked + scratch > most:
        more = f" and {beside:,} beside them" if beside else ""
        once = f", and {in_bytes(scratch)} to choose so many" if scratch else ""
        second = f" (what {partitions} partitions choose)" if held > -(-rows // partitions) else ""
        told = remedy or _partitions(rows, int(most - scratch) // row, chosen)
        raise ValueError(
            f"{who} holds all rows in one process: {copies} × {held:,.0f} rows{second} × "
            f"{each:,} bytes{more} = {in_bytes(asked)}{once}, and the largest node offers "
            f"{in_bytes(most)}: {told}"
        )


def _partitions(rows: int, room: int, chosen: int) -> str:
    """The number of them that leaves no round more rows than there is room for, as a remedy."""
    least = -(-rows // room) if room else rows + 1
    most = room // chosen if chosen else rows
    if least > min(most, rows):
        return f"no select.partitions do: {SHARE_OUT}"
    return (
        f"set select.partitions to at least {least}"
        + (f" and at most {most}" if most < rows else "")
        + ", which chooses in two rounds"
    )


def _held(rows: int, partitions: int, chosen: int) -> int:
    """Rows that are held at once: in one partition, or in the second round all that were chosen."""
    if partitions == 1:
        return rows
    return max(-(-rows // partitions), min(rows, partitions * chosen))


def check_blocks(name: str, rows: int, each: int, nodes: Nodes) -> None:
    """`ValueError` where all nodes together have too little memory for a method whose rows lie in
    blocks on them."""
    there, asked = sum(memory for _, memory in nodes), COPIES * each * rows
    if asked > there:
        raise ValueError(
            f"the plan does not fit: {name!r} holds the rows spread over all nodes: {COPIES} × "
            f"{rows:,} rows × {each:,} bytes = {in_bytes(asked)}, and they have {in_bytes(there)} "
            "for it: use more nodes, or encoders of fewer dimensions"
        )


def check_filter(method: object, rows: int, each: int, nodes: Nodes) -> None:
    """`ValueError` where so many rows, of so many bytes as a filter reads, fit no node."""
    who, remedy = f"select.filters: {method}", "leave it out, or add a larger node"
    check_whole(rows, each, 1, nodes, who=who, remedy=remedy)


def check_disk(place: str, free: int, needs: dict[str, int], remedies: Sequence[str]) -> None:
    """`ValueError` with the sum where what is to be written at a place exceeds what is free."""
    total = sum(needs.values())
    if total <= free:
        return
    listed = " + ".join(f"{name} {in_bytes(size)}" for name, size in needs.items() if size)
    raise ValueError(
        f"the plan does not fit: {in_bytes(free)} are free at {place}, and {in_bytes(total)} would "
        f"be written there: {listed}. {'; or '.join(remedies)}"
    )


def check_encoders(count: int, each: int, nodes: Nodes) -> None:
    """`ValueError` where the nodes together cannot hold so many encoder processes of such a
    size."""
    room = sum(int(memory // max(1, each)) for _, memory in nodes)
    if count > room:
        listed = ", ".join(in_bytes(memory) for _, memory in nodes)
        raise ValueError(
            f"the plan does not fit: {count} encoder processes of {in_bytes(each)} each, and nodes "
            f"of {listed} hold {room}. Set compute.encoders={max(1, room)}; or use nodes with more "
            "memory, or smaller encoders"
        )
