"""The text of a plan."""

from typing import Any

from coreset_ray.core.limits import in_bytes


def in_time(seconds: float) -> str:
    """75 → '1 min 15 s'."""
    if seconds < 99.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes = round(seconds / 60) if seconds >= 3600 else int(seconds // 60)
    if seconds < 3600:
        return f"{minutes} min {seconds - 60 * minutes:.0f} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours / 24:.1f} days"


def count(number: int, unit: str) -> str:
    """2, 'node' → '2 nodes'."""
    return f"{number:,} {unit}{'' if number == 1 else 's'}"


def report(plan: dict[str, Any]) -> str:
    """The plan as a reader wants it: what it is of, where it fits, then a table of stages."""
    lines = [_pool(plan), _cluster(plan), *_scoring(plan), "", *_table(plan["stages"])]
    return "\n".join(lines)


def _pool(plan: dict[str, Any]) -> str:
    pool, seen = plan["pool"], plan["measured"]["reading"]
    if pool["exact"]:
        rows = f"{pool['rows']:,} images, as embedded"
    else:
        rows = (
            f"about {pool['rows']:,} images (an estimate: {seen['images']:,} in the first "
            f"{in_bytes(seen['covered'])} of {seen['shards']} shards)"
        )
    return (
        f"Pool: {pool['shards']:,} shards, {in_bytes(pool['image_bytes'])}; {rows}; "
        f"{pool['dims']:,} dimensions"
    )


def _cluster(plan: dict[str, Any]) -> str:
    nodes = plan["cluster"]["nodes"]
    sizes = sorted({f"{cpus:g} CPUs and {in_bytes(memory)}" for cpus, memory in nodes})
    gpus = f", {plan['cluster']['gpus']:g} GPUs in all" if plan["cluster"]["gpus"] else ""
    return f"Cluster: {count(len(nodes), 'node')} of {' or '.join(sizes)}{gpus}"


def _scoring(plan: dict[str, Any]) -> list[str]:
    layout = plan["layout"]
    if layout is None:
        return ["Layout: none; nothing is drawn"]
    files = ", ".join(f"{name} {in_bytes(size)}" for name, size in layout["files"].items())
    state = "laid out already" if layout["laid_out"] else "to be laid out"
    need = max(plan["memory"], key=lambda node: node["total"] / max(node["memory"], 1))
    lines = [
        f"Layout: {count(layout['workers'], 'worker')} × "
        f"{count(layout['row_shards'], 'row shard')}; columns "
        f"{in_bytes(layout['bytes'])} ({files} a row shard), {state} in {layout['folder']}",
        f"Memory: a worker {in_bytes(need['each'] * layout['row_shards'])} of its own; a node "
        f"{in_bytes(need['total'])} of {in_bytes(need['memory'])}: columns "
        f"{in_bytes(need['columns'])}, shared, and {need['processes']} processes",
    ]
    if (encoding := plan["measured"]["encoding"]) is not None:
        lines.append(
            f"Encoders: {encoding['actors']} on {encoding['device']}, of "
            f"{in_bytes(encoding['memory'])} each; {1000 * encoding['decode']:.1f} ms to decode an "
            f"image, {1000 * encoding['encode']:.1f} ms to encode it"
        )
    return [*lines, *_drawing(plan)]


def _drawing(plan: dict[str, Any]) -> list[str]:
    drawing, rate = plan["measured"]["drawing"], plan["draws_per_second"]
    if drawing is None:
        return []
    cost, n = drawing["cost"], plan["pool"]["rows"]
    of = " and ".join(f"{rows:,}" for rows in cost["rows"])
    if cost["real"]:
        how = "measured on the pool's own columns"
    elif tuple(cost["rows"]) == (n,):
        how = f"measured on a pool of {of} rows"
    else:
        how = (
            f"fitted: {1e6 * cost['fixed']:.0f} µs + {1e9 * cost['per_row']:.3f} ns a row, on "
            f"{of} rows of {cost['dims']:,} dimensions"
        )
    up = drawing["workers"]
    few = "" if up == plan["layout"]["workers"] else f"; only {up} workers came up in time"
    return [f"Draws: {rate:,.0f}/s with all workers at work, {how}{few}"]


def _table(stages: dict[str, dict[str, Any]]) -> list[str]:
    lines = ["| stage | reads | writes | wall time | |", "|---|---:|---:|---:|---|"]
    total = 0.0
    for name, stage in stages.items():
        seconds = stage["seconds"]
        if seconds is None:
            lines.append(f"| {name} | | | | {stage['note']} |")
            continue
        total += seconds
        lines.append(
            f"| {name} | {in_bytes(stage['reads'])} | {in_bytes(stage['writes'])} | "
            f"{in_time(seconds)} | {stage['note']} |"
        )
    return [*lines, f"| all of these | | | {in_time(total)} | |"]
