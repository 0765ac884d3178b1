"""What a selection bought, counted by hand."""

import random

import pyarrow as pa
import pytest

from coreset_ray.io.truth import TRUTH, bought


def row(key: int, origin: str | None, label: str | None, kind: str = "original") -> dict:
    return {"shard": "0.tar", "key": str(key), "origin": origin, "kind": kind, "label": label}


ROWS = [
    row(0, "a", "cat"),
    row(1, "a", "cat", "crop+jpeg"),
    row(2, "b", "cat"),
    row(3, "b", "cat", "copy"),
    row(4, "c", "dog"),
    row(5, "c", "dog", "resize"),
    row(6, "c", "dog", "color"),
    row(7, "d", "eel"),
    row(8, "e", "eel"),
    row(9, "x", None, "off_topic"),
    row(10, "x", None, "off_topic"),
    row(11, None, None, "blank"),
    row(12, None, None, "noise"),
    row(13, None, None, "noise"),
]


def table(rows: list[dict]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=TRUTH)


def chosen(*keys: int, shard: str = "0.tar") -> pa.Table:
    return pa.table({"key": [str(key) for key in keys], "shard": [shard] * len(keys)})


def test_a_selection_counted_by_hand():
    assert bought(chosen(1, 3, 2, 4, 5, 6, 9, 11, 12, 13), table(ROWS)) == {
        "images": 10,
        "distinct": 3,
        "duplicates": 0.3,
        "off_topic": 0.1,
        "blank": 0.1,
        "noise": 0.2,
        "classes": 2,
        "classes_in_pool": 3,
        "rare_classes": 1,  # dog has one original, however many copies of it
        "rare_in_pool": 1,
    }


def test_shards_go_by_the_name_of_their_file():
    assert bought(chosen(0, 7, shard="train/0.tar"), table(ROWS))["distinct"] == 2


def test_the_shares_add_up_and_order_does_not_matter():
    for seed in range(20):
        draw = random.Random(seed)
        keys = draw.sample(range(14), draw.randint(1, 14))
        found = bought(chosen(*keys), table(draw.sample(ROWS, 14)))
        assert found == bought(chosen(*sorted(keys)), table(ROWS))
        shares = sum(found[name] for name in ("duplicates", "off_topic", "blank", "noise"))
        assert shares + found["distinct"] / found["images"] == pytest.approx(1)


def test_of_two_equally_rare_classes_the_first_counts():
    rows = [row(i, str(i), label) for i, label in enumerate(("10", "9", "11"))]
    assert [bought(chosen(i), table(rows))["rare_classes"] for i in range(3)] == [0, 1, 0]


def test_without_labels_there_are_no_classes():
    found = bought(chosen(0), table([row(0, "a", None), row(1, "b", None)]))
    assert (found["distinct"], found["classes"], found["rare_in_pool"]) == (1, 0, 0)


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(ValueError, match="chooses no image"):
        bought(chosen(), table(ROWS))
    with pytest.raises(ValueError, match=r"2 of 3 chosen .*shard '0\.tar', key '20' first"):
        bought(chosen(1, 30, 20), table(ROWS))
