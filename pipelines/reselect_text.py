"""The difference of two versions as a person reads it."""

from typing import Any

_SHARDS = 10
_CLUSTERS = 10


def markdown(told: dict[str, Any]) -> str:
    """told: the content of difference.json."""
    blocks = [_head(told), _shards(told["shards"])]
    if "coverage" in told:
        blocks += [_drift(told), _clusters(told["clusters"]), _advice(told)]
    elif told["base"] is not None:
        blocks.append(_no_drift(told))
    return "\n\n".join(block for block in blocks if block) + "\n"


def _head(told: dict[str, Any]) -> str:
    counts = told["counts"]
    if told["base"] is None:
        return (
            f"# {told['version']}\n\n{told['images']} of {told['pool']} images, the first version."
        )
    lines = [
        f"# {told['version']}, after {told['base']}",
        "",
        f"{told['images']} of {told['pool']} images: {counts['added']} added, {counts['kept']} "
        f"kept, {counts['dropped']} dropped.",
    ]
    if counts["gone"]:
        lines.append(f"{counts['gone']} of {told['base']} are no longer in the pool.")
    if counts["altered"]:
        lines.append(
            f"{counts['altered']} of {told['base']} have other bytes now; a label of the old ones "
            "does not hold for them."
        )
    return "\n".join(lines)


def _shards(shards: dict[str, dict[str, int]]) -> str:
    """The shards of which most changed."""
    names = ("added", "kept", "dropped", "gone", "altered")
    moved = {s: sum(n for c, n in counts.items() if c != "kept") for s, counts in shards.items()}
    order = sorted((s for s in shards if moved[s]), key=lambda s: (-moved[s], s))
    if not order:
        return ""
    rows = [[s, *(str(shards[s].get(name, 0)) for name in names)] for s in order[:_SHARDS]]
    text = _table(["shard", *names], rows)
    left = len(order) - _SHARDS
    return text + (f"\n\n… and {left} more shards, in difference.json." if left > 0 else "")


def _drift(told: dict[str, Any]) -> str:
    shift, coverage = told["shift"], told["coverage"]
    largest = ", ".join(
        f"{i}: {'∞' if value is None else f'{value:+.2f}'}" for i, value in shift["largest"].items()
    )
    return "\n".join(
        [
            f"## {told['new_images']} new images beside {told['old_images']} old ones",
            "",
            f"By {told['sampled']['new']} and {told['sampled']['old']} of them.",
            f"- Embedding: {shift['moved']:.1%} of the dimensions moved by 0.2 standard deviations "
            f"or more; half moved by less than {_number(shift['median'])}, where "
            f"{shift['by_chance']:.2f} is chance. Largest: {largest}.",
            f"- Coverage: {coverage['outside']:.1%} of the new images lie farther from every image "
            f"of {told['base']} (cosine below {coverage['radius']:.3f}) than "
            f"{coverage['covered']:.0%} of the old ones do; with {told['version']} it is "
            f"{coverage['outside_now']:.1%}.",
        ]
    )


def _number(value: float | None) -> str:
    return "∞" if value is None else f"{value:.2f}"


def _clusters(clusters: list[dict[str, Any]]) -> str:
    """Those whose share differs most."""
    order = sorted(
        clusters,
        key=lambda c: (not c["fresh"], -abs(c["share_new"] - c["share_old"]), c["cluster"]),
    )
    rows = [
        [
            f"{c['cluster']}{' (new)' if c['fresh'] else ''}",
            *(f"{c['share_old']:.1%}", f"{c['share_new']:.1%}"),
            *(str(c[name]) for name in ("added", "kept", "dropped")),
        ]
        for c in order[:_CLUSTERS]
    ]
    fresh = sum(c["fresh"] for c in clusters)
    head = ["cluster", "of the old", "of the new", "added", "kept", "dropped"]
    told = f"{fresh or 'None'} of {len(clusters)} clusters {'is' if fresh == 1 else 'are'} new."
    return f"{told}\n\n{_table(head, rows)}"


def _advice(told: dict[str, Any]) -> str:
    """How many labels the new data deserve, and why."""
    coverage = told["coverage"]
    low, high = coverage["to_cover_by_halves"]
    at_least = "" if coverage["sampled_all"] else "at least "
    lines = [
        "## How many labels the new images deserve",
        "",
        f"To cover them as {told['base']} covers the old ones takes {at_least}"
        f"{coverage['to_cover']} images ({low} and {high} by halves of the sample); in proportion "
        f"to their number it would be {coverage['in_proportion']}.",
    ]
    if coverage["to_cover"] == 0:
        lines.append(
            f"Recommended: none. They lie where {told['base']} covers already, so that labels for "
            "them would repeat what is known."
        )
    elif coverage["to_cover"] < coverage["in_proportion"]:
        lines.append(
            f"Recommended: {coverage['to_cover']}, fewer than in proportion: most of them resemble "
            "what is labeled."
        )
    else:
        lines.append(
            f"Recommended: {coverage['to_cover']}, more than in proportion: they hold what the old "
            "data did not."
        )
    lines.append(f"{told['counts']['added']} were added.")
    return "\n".join(lines)


def _no_drift(told: dict[str, Any]) -> str:
    if not told["new_images"]:
        return "No new images: nothing to hold against the old ones."
    return "Too little is left of the old data to hold the new against, or the encoder is another."


def _table(head: list[str], rows: list[list[str]]) -> str:
    marks = ["---", *(["---:"] * (len(head) - 1))]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, marks, *rows])
