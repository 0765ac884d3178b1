"""What limited a stage, judged from the seconds that its workers spent on each kind of work.

Embedding. An encoder encodes, waits for images, or waits for the writer of its parts. Encoders that
encode `_BUSY` of their time are the limit: nothing else would make the run faster. Otherwise the
limit lies where they wait: at the writer, or at the readers, and there at what readers do most,
waiting for bytes of the store or decoding. Readers that worked less than a quarter of the time for
which each encoder waited were not the cause either: Ray was still starting them. All this is of the
time in which encoders were up; where that is less than half of the stage, the verdict says so, and
where it is less than a tenth, starting is what limited it.

Scoring. The longest of: laying out the pool before the first draw; drawing; committing sums and
writing scores.
"""

from collections.abc import Mapping
from dataclasses import dataclass

_BUSY = 0.8


@dataclass(frozen=True)
class Verdict:
    """limit: encoder, store, decode, draws, layout or start; because: the figures, in words."""

    limit: str
    because: str


def judge(amounts: Mapping[str, float]) -> Verdict | None:
    """What limited a stage that counted these amounts; None where they do not tell."""
    if amounts.get("encode"):
        return _embedding(amounts)
    if amounts.get("draw"):
        return _drawing(amounts)
    return None


def _embedding(amounts: Mapping[str, float]) -> Verdict:
    """read, decode: seconds of readers; encode, wait, hand_over: of encoders; encoders:
    number; flow: seconds from the first shard to the last."""
    encode, wait = amounts["encode"], amounts.get("wait", 0.0)
    hand_over, read = amounts.get("hand_over", 0.0), amounts.get("read", 0.0)
    decode, life = amounts.get("decode", 0.0), encode + wait + hand_over
    encoders, flow = max(1, amounts.get("encoders", 1)), amounts.get("flow", 0.0)
    up = life / encoders
    busy = f"encoders encoded {encode / life:.0%} of their time"
    if up < flow / 2:
        busy = f"once started, {busy}; they were up for {up:.1f} of {flow:.1f} s"
    if up < flow / 10:
        return Verdict("start", busy)
    if encode >= _BUSY * life:
        return Verdict("encoder", busy)
    if hand_over > wait:
        return Verdict("store", f"{busy} and waited {hand_over / life:.0%} for parts to be written")
    waited = f"{busy} and waited {wait / life:.0%} for images"
    if read + decode < wait / encoders / 4:
        return Verdict("start", f"{waited}, while readers were starting")
    share = f"reading took {read / (read + decode):.0%} of the readers' time"
    return Verdict("store" if read > decode else "decode", f"{waited}; {share}")


def _drawing(amounts: Mapping[str, float]) -> Verdict:
    """draw: seconds of all replicas; replicas: number; layout, commit, finish: of the run."""
    parts = {
        "draws": amounts["draw"] / max(1, amounts.get("replicas", 1)),
        "layout": amounts.get("layout", 0.0),
        "store": amounts.get("write", 0.0) + amounts.get("finish", 0.0),
    }
    limit = max(parts, key=lambda part: parts[part])
    told = {
        "draws": "drawing took {:.1f} s",
        "layout": "laying out the pool {:.1f} s",
        "store": "committing sums and writing scores {:.1f} s",
    }
    return Verdict(limit, ", ".join(told[part].format(seconds) for part, seconds in parts.items()))
