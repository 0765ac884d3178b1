"""A standing coreset: new shards arrive, old ones leave, and versions follow each other."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset
from pools import digits_pool, embed_pixels, read_shard, write_config

from coreset_ray.config import load
from coreset_ray.io import lease
from coreset_ray.io.filesystem import locate
from coreset_ray.io.lease import Overtaken, hold
from coreset_ray.io.published import Published
from coreset_ray.io.workspace import Workspace
from pipelines import forget, reselect, select_coreset
from pipelines.inputs import pool_table


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Six shards of 40 images."""
    folder = tmp_path_factory.mktemp("digits")
    train, _ = digits_pool(folder, shards=6, each=40)
    return sorted(train.glob("*.tar"))


class Standing:
    """A pool that shards come to and leave, and its configuration."""

    def __init__(self, folder: Path, shards: list[Path]):
        self.pool, self.folder, self.shards = folder / "pool", folder, shards
        self.pool.mkdir()

    def arrive(self, *numbers: int) -> None:
        for i in numbers:
            shutil.copy2(self.shards[i], self.pool)

    def leave(self, number: int) -> None:
        (self.pool / self.shards[number].name).unlink()

    def config(self, *words: str):
        sections = {"select": {"budget": 12}, "score": {"method": "random"}}
        return load(write_config(self.folder, self.pool, **sections), list(words))

    def run(self, *words: str):
        config = self.config(*words)
        embed_pixels(pool_table(config))
        return reselect.run(config)

    @property
    def published(self) -> Published:
        return Workspace(str(self.folder / "work")).published("coreset")

    def uids(self, version: int) -> list[str]:
        return self.table(version, "manifest")["uid"].to_pylist()

    def table(self, version: int, name: str):
        return pq.read_table(f"{self.published.folder.path}/v{version:06d}/{name}.parquet")

    def parts(self) -> dict[Path, int]:
        found = (self.folder / "work").glob("embeddings/*/parts/*.parquet")
        return {p: p.stat().st_mtime_ns for p in found}


@pytest.fixture
def standing(tmp_path, shards, ray_local):
    return Standing(tmp_path, shards)


ADD = "reselect.add=5"


@pytest.mark.slow
def test_a_night_embeds_and_scores_what_is_new_and_keeps_the_rest(standing, monkeypatch):
    """With a real encoder and draws."""
    monkeypatch.setattr("test_reselect.embed_pixels", lambda table: None)
    words = ["score.method=blindcs", "score.params={draws: 2000, neighbors: 20}", ADD]
    standing.arrive(0, 1)
    standing.run(*words)
    embedded = standing.parts()
    standing.arrive(2)
    told = standing.run(*words)
    assert (told["images"], told["added"], told["kept"]) == (17, 5, 12)
    now = standing.parts()
    assert len(now) == 3 and all(now[part] == at for part, at in embedded.items())
    assert standing.uids(2)[:12] == standing.uids(1)


def test_versions_follow_each_other(standing):
    """Each keeps what was chosen, adds what it may, and is whole."""
    standing.arrive(0, 1)
    first = standing.run(ADD)
    assert (first["version"], first["images"], first["added"]) == (1, 12, 12)
    standing.arrive(2)
    second = standing.run(ADD)
    assert (second["version"], second["base"], second["images"]) == (2, 1, 17)
    assert (second["added"], second["kept"], second["dropped"]) == (5, 12, 0)
    assert standing.uids(2)[:12] == standing.uids(1), "what is labeled stays, and stays first"
    manifest = standing.table(2, "manifest")
    assert manifest["rank"].to_pylist() == list(range(17))
    assert set(manifest["reason"].to_pylist()[:12]) == {"kept since v000001"}
    assert "kept since v000001" not in manifest["reason"].to_pylist()[12:]
    pointer = json.loads(Path(standing.published.folder.path, "current.json").read_text())
    assert pointer == {"version": 2, "folder": "v000002"}
    for name in ("report.md", "selection.json", "difference.json"):
        assert Path(standing.published.folder.path, "v000002", name).stat().st_size
    assert "5 added, 12 kept, 0 dropped" in second["report"]
    third_day = standing.run(ADD)
    assert third_day["version"] == 2 and third_day["report"].startswith("Nothing new: v000002")


def test_what_was_added_is_exported_for_labeling(standing):
    standing.arrive(0, 1)
    standing.run(ADD)
    standing.arrive(2)
    second = standing.run(ADD)
    folder = Path(second["exported"])
    keys = {s["__key__"] for p in folder.glob("*.tar") for s in read_shard(p)}
    index = pq.read_table(folder / "index.parquet")
    assert keys == set(index["export_key"].to_pylist())
    assert set(index["uid"].to_pylist()) == set(standing.uids(2)) - set(standing.uids(1))


def test_nothing_new_starts_nothing(standing, monkeypatch):
    """No Ray, no lease, no file is touched."""
    standing.arrive(0)
    standing.run()
    before = {p: p.stat().st_mtime_ns for p in (standing.folder / "work").rglob("*")}
    monkeypatch.setattr(reselect, "on_cluster", None)
    monkeypatch.setattr(reselect, "hold", None)
    assert standing.run()["report"].startswith("Nothing new")
    assert {p: p.stat().st_mtime_ns for p in (standing.folder / "work").rglob("*")} == before


@pytest.mark.parametrize(
    "after", ["embed.run", pytest.param("reselect_difference.write", marks=pytest.mark.slow)]
)
def test_a_shard_that_arrives_during_a_run_is_the_next_one_s(standing, monkeypatch, after):
    """Neither does it stop the run, nor does the next one take it for known."""
    module, name = after.split(".")
    of = getattr(reselect, module)
    real = getattr(of, name)

    def then_another_arrives(*args):
        result = real(*args)
        standing.arrive(2)
        return result

    standing.arrive(0, 1)
    with monkeypatch.context() as patch:
        patch.setattr(of, name, then_another_arrives)
        assert standing.run(ADD)["pool"] == 80
    told = standing.run(ADD)
    assert (told["version"], told["pool"], told["added"]) == (2, 120, 5)


def test_a_touched_shard_makes_no_version(standing):
    standing.arrive(0, 1)
    first = standing.run()
    os.utime(standing.pool / standing.shards[0].name, (1, 1))
    assert standing.run()["version"] == first["version"] == 1


@pytest.mark.slow
def test_a_budget_that_is_a_share_grows_with_the_pool(standing):
    standing.arrive(0, 1)
    assert standing.run("select.budget=0.1")["images"] == 8
    standing.arrive(2, 3)
    told = standing.run("select.budget=0.1")
    assert (told["images"], told["added"]) == (16, 8)


def test_a_budget_that_is_used_up_adds_nothing_and_says_so(standing, caplog):
    standing.arrive(0, 1)
    standing.run()
    standing.arrive(2)
    told = standing.run("select.budget=9")
    assert "select.budget=9 is 9 images, and 12 stay already" in caplog.text
    assert (told["images"], told["added"], told["exported"]) == (12, 0, "")
    assert standing.uids(2) == standing.uids(1)


def test_a_shard_that_leaves_takes_its_images_along(standing):
    standing.arrive(0, 1, 2)
    standing.run("select.budget=30")
    name = standing.shards[1].name
    held = standing.table(1, "manifest")
    its = {row["uid"] for row in held.to_pylist() if row["shard"] == name}
    assert its
    standing.leave(1)
    told = standing.run("select.budget=30")
    assert told["gone"] == len(its) and told["images"] == 30
    assert name not in standing.table(2, "manifest")["shard"].to_pylist()
    assert set(standing.uids(1)) - its <= set(standing.uids(2))
    changes = standing.table(2, "difference").to_pylist()
    assert {c["uid"] for c in changes if c["change"] == "gone"} == its


@pytest.mark.slow
def test_an_image_whose_bytes_change_loses_its_label(standing):
    """The shard comes again with one chosen image replaced and another taken out."""
    standing.arrive(0, 1)
    standing.run("select.budget=30")
    held = standing.table(1, "manifest").to_pylist()
    name = standing.shards[0].name
    mine = [row for row in held if row["shard"] == name]
    changed, removed = mine[0], mine[1]
    samples = read_shard(standing.pool / name)
    other = next(s["png"] for s in samples if s["__key__"] == mine[2]["key"])
    with webdataset.TarWriter(str(standing.pool / name), encoder=False) as writer:
        for sample in samples:
            if sample["__key__"] == removed["key"]:
                continue
            png = other if sample["__key__"] == changed["key"] else sample["png"]
            writer.write({"__key__": sample["__key__"], "png": png, "cls": sample["cls"]})
    told = standing.run("select.budget=30")
    assert (told["gone"], told["altered"]) == (1, 1)
    rows = {
        r["uid"]: r["change"]
        for r in standing.table(2, "difference").to_pylist()
        if r["change"] not in ("added", "kept")
    }
    assert rows == {removed["uid"]: "gone", changed["uid"]: "altered"}
    stay = {row["uid"] for row in held} - rows.keys()
    assert stay <= set(standing.uids(2)), "the rest of the shard is as it was"


@pytest.mark.slow
def test_only_what_is_labeled_stays(standing, tmp_path):
    standing.arrive(0, 1)
    standing.run()
    rows = standing.table(1, "manifest").slice(4, 3).to_pylist()
    listed = tmp_path / "labeled.csv"
    listed.write_text("shard,key\n" + "".join(f"{r['shard']},{r['key']}\n" for r in rows))
    standing.arrive(2)
    words = ["reselect.keep=labeled", f"reselect.labeled={listed}"]
    told = standing.run(*words)
    assert told["images"] == 12 and standing.uids(2)[:3] == [r["uid"] for r in rows]
    assert told["kept"] + told["dropped"] == 12
    assert standing.run(*words)["report"].startswith("Nothing new")
    listed.write_text("shard,key\nno.tar,1\n")
    assert standing.run(*words)["version"] == 3, "another list asks for another version"


def test_a_free_choice_is_that_of_a_plain_run(standing):
    """keep: none forgets the version before; without a version so does any policy."""
    standing.arrive(0, 1, 2)
    told = standing.run("reselect.keep=none")
    stage = select_coreset.finished(standing.config())[0]
    assert told["selection"] == stage.name
    plain = pq.read_table(f"{stage.folder.path}/manifest.parquet")
    assert standing.table(1, "manifest").equals(plain)


@pytest.mark.parametrize(
    "churn", [0.25, *(pytest.param(c, marks=pytest.mark.slow) for c in (0.0, 1.0))]
)
def test_churn_is_capped(standing, churn):
    """Of the version before no more goes than may, and those that come back go in its order."""
    words = ["reselect.keep=none", f"reselect.churn={churn}"]
    standing.arrive(0, 1)
    standing.run("reselect.keep=none")
    standing.arrive(2, 3, 4, 5)
    told = standing.run(*words)
    assert told["images"] == 12 and told["dropped"] <= churn * 12
    if churn == 1.0:
        assert told["dropped"] > 3, "else the cap is not tried"
    if churn == 0.25:
        assert told["dropped"] == 3


@pytest.mark.slow
def test_the_images_kept_shape_a_greedy_choice(standing):
    """k-center beside what is kept: each image added is the farthest from all before it."""
    standing.arrive(0, 1)
    words = ["score={}", "select.method=k_center", ADD]
    standing.run(*words)
    standing.arrive(2)
    standing.run(*words)
    table = pool_table(standing.config())
    rows = {}
    for part in table.snapshot()["parts"]:
        of = pq.read_table(table.parts.part(part["part"]).path)
        rows |= dict(zip(of["uid"].to_pylist(), of["embedding"].to_pylist(), strict=True))
    unit = {u: np.array(v) / np.linalg.norm(v) for u, v in rows.items()}
    kept = standing.uids(1)
    for uid in standing.uids(2)[12:]:
        distance = {u: min(np.linalg.norm(x - unit[k]) for k in kept) for u, x in unit.items()}
        assert distance[uid] == pytest.approx(max(distance.values()))
        kept.append(uid)


def test_a_killed_run_leaves_the_last_version_current(standing, monkeypatch):
    """Whatever was written of the next one does not count, and the same command goes on."""
    standing.arrive(0, 1)
    standing.run(ADD)
    standing.arrive(2)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(reselect.Published, "publish", killed)
        standing.run(ADD)
    current = standing.published.current()
    assert current is not None and current.number == 1
    told = standing.run(ADD)
    assert (told["version"], told["base"]) == (3, 1), "its number is not used again"
    assert [v.number for v in standing.published.versions()] == [1, 3]


def test_an_overtaken_run_publishes_nothing(tmp_path, monkeypatch):
    """It learns it when it begins, or when it is about to publish; the other's version stands."""
    monkeypatch.setattr(lease, "_BEAT", 60)
    monkeypatch.setattr(lease, "_POLL", 0.01)
    published = Published(locate(tmp_path / "selections" / "c"))
    folder = locate(tmp_path / "lease")
    with hold(folder) as slow:
        number, _ = published.begin(slow)
        for claim in Path(folder.path).glob("0*.json"):
            told = json.loads(claim.read_text())
            claim.write_text(json.dumps(told | {"machine": ["other"]}))
        monkeypatch.setattr(lease, "TTL", 0.1)
        with hold(folder) as quick:
            mine, _ = published.begin(quick)
            assert mine == number + 1
            for attempt in (lambda: published.begin(slow), lambda: published.publish(1, {}, slow)):
                with pytest.raises(Overtaken):
                    attempt()
            published.publish(mine, {"told": "quick"}, quick)
            # At the very moment between its look and its write, and the pointer after it.
            monkeypatch.setattr(lease.Lease, "check", lambda self: None)
            published.publish(number, {"told": "slow"}, slow)
    current = published.current()
    assert current is not None and current.record == {"told": "quick"}
    pointer = json.loads(Path(published.folder.path, "current.json").read_text())
    assert pointer["version"] == mine


def test_settings_that_disagree_are_refused(standing):
    standing.arrive(0)
    for words, told in (
        (["reselect.keep=labeled"], "goes with `labeled`"),
        (["reselect.labeled=x.csv"], "goes with `labeled`"),
        (["reselect.churn=0.5"], "lets nothing go"),
        (["select.keep=x.parquet"], "select.keep: reselect.keep says what stays"),
        (["reselect.keep=labeled", "reselect.labeled=no.csv"], "'no.csv' does not exist"),
    ):
        with pytest.raises(ValueError, match=told):
            standing.run(*words)


def everything(folder: Path) -> bytes:
    """All that a workspace holds, but who is at work in it."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.parent.name != "lease"]
    return b"".join(p.read_bytes() for p in files)


def test_a_takedown_leaves_no_trace(standing):
    """A shard leaves; `forget` removes its rows from every table and says what it searched."""
    words = ["score={}", "select.method=d2", "select.params={}", "signals.knn.k=5"]
    standing.arrive(0, 1, 2)
    standing.run(*words, "select.budget=30")
    config = standing.config(*words, "select.budget=30")
    name = standing.shards[1].name
    with pytest.raises(ValueError, match=rf"--shard '{name}' is in the pool: delete it there"):
        forget.run(config, [name], yes=True)
    standing.leave(1)
    standing.run(*words, "select.budget=30")
    work = standing.folder / "work"
    own = {u for v in (1, 2) for u in standing.uids(v)}
    parts = {p: set(pq.read_table(p)["uid"].to_pylist()) for p in standing.parts()}
    part = next(p for p in parts if part_of(p) == name)
    lost = parts[part]
    assert lost & own, "a version holds some"
    before = everything(work)
    told = forget.run(config)["report"]
    assert everything(work) == before and "40 images" in told and "would go" in told
    report = forget.run(config, yes=True)["report"]
    after = everything(work)
    assert "none names an image" in report
    assert not any(uid.encode() in after for uid in lost) and part.stem.encode() not in after
    for file in work.rglob("*.parquet"):
        rows = pq.read_table(file)
        if "uid" in rows.column_names:
            assert not lost & set(rows["uid"].to_pylist()), file
    assert set(standing.uids(1)) == own - lost - (set(standing.uids(2)) - set(standing.uids(1)))
    assert forget.run(config, yes=True)["report"].startswith("Nothing to forget")
    assert standing.run(*words, "select.budget=30")["report"].startswith("Nothing new")
    standing.arrive(3)
    assert standing.run(*words, "select.budget=32")["added"] == 2, "and life goes on"


def test_what_no_version_was_chosen_from_is_named_but_not_taken(standing):
    """Another configuration's shards may lie in the same workspace."""
    standing.arrive(0, 1)
    embed_pixels(pool_table(standing.config()))
    standing.leave(1)
    name = standing.shards[1].name
    report = forget.run(standing.config(), yes=True)["report"]
    assert report.startswith("Nothing to forget: no shard that a version of 'coreset' was chosen")
    assert f"1 shard that is not in the pool as it was ('{name}' first)" in report
    assert "--shard" in report and len(standing.parts()) == 2
    assert "none names" in forget.run(standing.config(), [name], yes=True)["report"]
    assert len(standing.parts()) == 1
    report = forget.run(standing.config(), yes=True)["report"]
    assert report.startswith("Nothing to forget") and "--shard" not in report


def part_of(path: Path) -> str:
    return json.loads(path.with_name(f"{path.stem}.done.json").read_text())["shard"]


@pytest.mark.slow
def test_one_image_is_forgotten_when_its_shard_comes_again_without_it(standing):
    standing.arrive(0, 1)
    standing.run("select.budget=30")
    name = standing.shards[0].name
    removed, *_ = [r for r in standing.table(1, "manifest").to_pylist() if r["shard"] == name]
    samples = read_shard(standing.pool / name)
    with webdataset.TarWriter(str(standing.pool / name), encoder=False) as writer:
        for sample in samples:
            if sample["__key__"] != removed["key"]:
                writer.write({k: v for k, v in sample.items() if k in ("__key__", "png", "cls")})
    standing.run("select.budget=30")
    config = standing.config("select.budget=30")
    assert "1 images" in forget.run(config, yes=True)["report"]
    assert removed["uid"].encode() not in everything(standing.folder / "work")
    assert removed["uid"] not in standing.uids(1) and len(standing.uids(1)) == 29


def test_what_cannot_be_removed_is_named(standing, monkeypatch):
    """The proof fails where something is left."""
    standing.arrive(0, 1)
    standing.run("select.budget=30")
    standing.leave(1)
    standing.run("select.budget=30")
    uid = [r["uid"] for r in standing.table(2, "difference").to_pylist() if r["change"] == "gone"]
    stray = standing.folder / "work" / "notes" / "mine.csv"
    config = standing.config("select.budget=30")
    real = forget._remove

    def and_then_somebody_writes(*arguments):
        real(*arguments)
        stray.parent.mkdir()
        stray.write_text(f"uid\n{uid[0]}\n")

    monkeypatch.setattr(forget, "_remove", and_then_somebody_writes)
    with pytest.raises(RuntimeError, match=r"1 files still name .*\n  notes/mine.csv: 1"):
        forget.run(config, yes=True)
