"""What a plan foretells: bytes against real files, layouts against clusters, refusals, the text."""

import re
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pools import digits_pool, embed_pixels, write_config

from coreset_ray import catalog, cli
from coreset_ray.config import load
from coreset_ray.core import costs, forecast, limits, signal_costs
from coreset_ray.core.choice_costs import Choice, Trial
from coreset_ray.core.costs import Spreading, choose_spreading
from coreset_ray.core.forecast import fit
from coreset_ray.core.greedy import greedy_turns, together
from coreset_ray.core.made_up import Widths, can_make_up, made_up
from coreset_ray.core.method import Method
from coreset_ray.core.plan_text import in_time
from coreset_ray.core.pool import pool_of
from coreset_ray.core.rule import Rule
from coreset_ray.distributed import calibrate_choice
from coreset_ray.distributed.session import Cluster
from coreset_ray.filters.near_duplicates import NearDuplicates
from coreset_ray.selectors.cal import Cal
from coreset_ray.selectors.graph_cut import GraphCut
from coreset_ray.selectors.k_center import KCenter
from coreset_ray.selectors.medoids import Medoids
from pipelines import embed, plan, plan_signals, score, select_coreset
from pipelines.inputs import key_of, pool_table
from pipelines.plan_choice import check_choice
from pipelines.plan_signals import signal_stages
from pipelines.score import ledger_of

GB = 10**9


def files_below(folder) -> dict[Path, int]:
    return {p: p.stat().st_size for p in Path(folder).rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def pool(tmp_path_factory, ray_local):
    """A configuration of a pool of 240 digits."""
    folder = tmp_path_factory.mktemp("plan")
    train, _ = digits_pool(folder, shards=2, each=120)
    return load(write_config(folder, train))


@pytest.fixture(scope="module")
def estimated(pool):
    """Its plan before anything ran, and what lay in the workspace then."""
    return plan.run(pool), files_below(pool.workspace)


@pytest.fixture(scope="module")
def scored(pool):
    """The same pool planned when embedded, then scored and selected."""
    config = pool
    embed_pixels(pool_table(config))
    embed.run(config)
    before = files_below(config.workspace)
    told = plan.run(config)
    after = files_below(config.workspace)
    score.run(config)
    select_coreset.run(config)
    return config, told, before, after


@pytest.mark.slow
def test_a_pool_that_is_not_embedded_is_estimated(estimated):
    told, written = estimated
    assert written == {}, "nothing is written into the workspace"
    assert not told["pool"]["exact"] and told["pool"]["rows"] == pytest.approx(240, rel=0.1)
    assert "an estimate" in told["report"]
    assert told["measured"]["encoding"]["width"] == told["pool"]["dims"] == 64
    assert told["stages"]["embed"]["seconds"] > 0 and told["draws_per_second"] > 0


def test_an_embedded_pool_is_counted(scored):
    _, told, _, _ = scored
    assert told["pool"]["exact"] and told["pool"]["rows"] == 240
    assert told["stages"]["embed"]["note"] == "finished"
    assert told["stages"]["evaluate"]["seconds"] is None
    assert told["measured"]["encoding"] is None and "as embedded" in told["report"]


def test_nothing_is_written_into_the_workspace(scored):
    _, _, before, after = scored
    assert before == after


def test_columns_take_the_bytes_foretold(scored):
    config, told, _, _ = scored
    snapshot = pool_table(config).snapshot()
    folder = Path(config.workspace, "layouts", key_of(snapshot), "0-of-1")
    assert told["layout"]["folder"] == str(folder.parent) and not told["layout"]["laid_out"]
    found = {name: (folder / f"{name}.npy").stat().st_size for name in told["layout"]["files"]}
    assert found == told["layout"]["files"] and told["layout"]["bytes"] == sum(found.values())


def test_files_take_about_the_bytes_foretold(scored):
    config, told, _, _ = scored
    work = Path(config.workspace)

    def size(pattern: str) -> int:
        return sum(p.stat().st_size for p in work.glob(pattern))

    rows, dims = told["pool"]["rows"], told["pool"]["dims"]
    table = costs.embedding_bytes(rows, dims, "float32", 2)
    assert table == pytest.approx(size("embeddings/*/parts/*.parquet"), rel=0.2)
    assert costs.score_bytes(rows, 2) == pytest.approx(size("scores/*/*.parquet"), rel=0.2)
    assert costs.manifest_bytes(48) == pytest.approx(size("selections/*/*.parquet"), rel=0.2)
    records = ledger_of(config, pool_table(config).snapshot()).usable(3000)
    sums = sum(size(f"sums/*/{file.name}") for record in records for file in record.files)
    assert sums == costs.sum_bytes(rows, 2) * len(records)


@pytest.mark.slow
def test_what_was_drawn_and_laid_out_is_used(scored):
    config, *_ = scored
    more = plan.run(config.replace("score", params={"draws": 5000, "neighbors": 20}))
    assert more["measured"]["drawing"]["cost"]["real"], "the columns that lie there are used"
    assert more["stages"]["score"]["note"].startswith("2,000 draws")


def test_float16_columns_take_less():
    """The plan offers them where they make it fit."""
    n, m = 240, 64
    half, full = (sum(costs.column_bytes(n, m, 1, width).values()) for width in (2, 4))
    assert full - half == 2 * n * m
    nodes = [(4, 9 * GB)]
    with pytest.raises(ValueError, match=r"5 bytes a value.*set score.columns=float16"):
        limits.check_memory(1_500_000, 1280, 2, Spreading(4, 1), nodes, GB // 8)
    limits.check_memory(1_500_000, 1280, 2, Spreading(4, 1), nodes, GB // 8, 2)
    assert choose_spreading(3_000_000, 1280, [(4, 16 * GB)] * 2, width=2).row_shards < (
        choose_spreading(3_000_000, 1280, [(4, 16 * GB)] * 2).row_shards
    )


@pytest.mark.slow
def test_a_method_without_draws_has_no_layout(scored):
    config, *_ = scored
    told = plan.run(config.replace("score", method="random", params={}))
    assert told["layout"] is None and told["stages"]["score"]["seconds"] > 0


@pytest.mark.slow
def test_row_shards_are_calibrated_too(scored):
    config, *_ = scored
    told = plan.run(config.replace("score", seed=9).replace("compute", row_shards=2))
    assert (told["layout"]["workers"], told["layout"]["row_shards"]) == (1, 2)
    assert told["draws_per_second"] > 0


def test_a_pool_that_a_node_holds_stays_whole():
    assert choose_spreading(1_000_000, 1280, [(8, 32 * GB)]) == Spreading(8, 1)
    assert choose_spreading(240, 64, [(2, 8 * GB), (2, 8 * GB)]) == Spreading(4, 1)
    assert choose_spreading(240, 64, [(0.5, GB)]) == Spreading(1, 1)
    assert choose_spreading(240, 64, [(2, GB)], workers=5) == Spreading(5, 1)


def test_a_pool_that_no_node_holds_is_split():
    nodes = [(4, 16 * GB)] * 4
    chosen = choose_spreading(3_000_000, 1280, nodes)
    assert chosen.row_shards > 1 and chosen.workers == 16 // chosen.row_shards
    held = costs.node_needs(3_000_000, 1280, 2, chosen, nodes, 0)
    assert all(need.columns <= 0.6 * need.memory for need in held)
    fewer = Spreading(chosen.workers, chosen.row_shards - 1)
    assert costs.node_needs(3_000_000, 1280, 2, fewer, nodes, 0)[0].columns > 0.6 * 16 * GB
    assert choose_spreading(3_000_000, 1280, nodes, row_shards=1) == Spreading(16, 1)
    assert choose_spreading(3_000_000, 1280, nodes, 1, 3) == Spreading(1, 3)


@pytest.mark.parametrize(
    ("spreading", "nodes", "says"),
    [
        (Spreading(16, 1), [(4, 16 * GB)] * 4, "set compute.row_shards="),
        (Spreading(4, 1), [(4, 16 * GB)], r"use \d+ nodes of 4 CPUs"),
        (Spreading(4, 1), [(4, 16 * GB)], r"at most \d+ dimensions"),
        (Spreading(4, 1), [(4, 16 * GB)], r"columns 1 × 19\.\d GB"),
    ],
)
def test_too_little_memory_is_refused_with_a_remedy(spreading, nodes, says):
    with pytest.raises(ValueError, match=says):
        limits.check_memory(3_000_000, 1280, 2, spreading, nodes, GB // 4)


def test_remedies_for_memory_are_enough():
    nodes = [(4, 16 * GB)] * 4
    chosen = choose_spreading(3_000_000, 1280, nodes)
    limits.check_memory(3_000_000, 1280, 2, chosen, nodes, GB // 4)


def test_too_many_encoders_are_refused():
    with pytest.raises(ValueError, match=r"compute\.encoders=3"):
        limits.check_encoders(4, 5 * GB, [(8, 16 * GB)])


def test_a_full_disk_is_refused(scored, monkeypatch):
    config, *_ = scored
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(GB, GB, 1000))
    with pytest.raises(ValueError, match=r"1\.0 kB are free at .*: .*sums .*"):
        plan.run(config.replace("score", seed=4))


def test_a_refusal_ends_with_status_2(scored, monkeypatch, capsys):
    config, *_ = scored
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(GB, GB, 1000))
    with pytest.raises(SystemExit) as exit:
        cli.main(["plan", str(Path(config.workspace).parent / "config.yaml"), "score.seed=4"])
    said = capsys.readouterr().err
    assert exit.value.code == 2 and "1.0 kB are free" in said and "Free space there" in said


def test_the_command_prints_a_table(scored, capsys):
    config, *_ = scored
    cli.main(["plan", str(Path(config.workspace).parent / "config.yaml")])
    said = capsys.readouterr().out
    assert "| stage | reads | writes | wall time |" in said and "| evaluate |" in said
    assert said.count("| finished |") == 3, "embedded, scored and selected"
    assert "Pool: 2 shards" in said and "2 workers × 1 row shard;" in said


def test_a_line_through_two_trials():
    assert fit([(100, 3.0), (300, 5.0)]) == pytest.approx((2.0, 0.01))
    assert fit([(100, 3.0), (300, 3.0)]) == pytest.approx((0.0, 0.01))
    assert fit([(100, 3.0)]) == pytest.approx((0.0, 0.03))


def test_sizes_and_times_are_readable():
    assert [limits.in_bytes(b) for b in (0, 999, 1500, 12.3e9)] == [
        *("0 B", "999 B", "1.5 kB", "12.3 GB")
    ]
    assert [in_time(s) for s in (0.2, 42, 150, 7500)] == [
        *("0.2 s", "42 s", "2 min 30 s", "2 h 5 min")
    ]


def timer(method, n, k, widths, on):
    """A trial that takes a second, whose rows are chosen two in a turn."""
    return Trial(min(n, 1000), min(k, 10), 1.0, 5, 0.001)


def planned(tmp_path, *words, rows=50_000, rate=4e10, memory=16 * GB):
    """Seconds and note of each signal and of the choice, for a pool of 1,280 dimensions on two
    CPUs that read 1 GB/s."""
    config = load(write_config(tmp_path, tmp_path), ["score={}", *words])
    pool = forecast.PoolSize(1, 1, rows, 1280, 0, 0, 0, True)
    costs = forecast.RowCosts(1e9, 1.0, 0.0, 0.0, 3.0, 0)
    on = Cluster(((2.0, memory),), 0.0)
    check_choice(config, pool, on)
    own = [forecast.Stage(n, 1, 1, 1.0) for n in ("score", "select")]
    stages = plan._chosen(config, own, pool, on, costs, timer)
    stages += signal_stages(config, pool, on, rate, costs, rate is None)
    return {s.name: (s.seconds, s.note) for s in stages}


@pytest.fixture
def nothing_made(monkeypatch):
    monkeypatch.setattr(plan_signals, "_finished", lambda config, name: False)


@pytest.mark.usefixtures("nothing_made")
def test_signals_are_planned_with_what_they_are_made_of(tmp_path):
    assert planned(tmp_path) == {"score": (1.0, ""), "select": (1.0, "")}
    elfs = planned(tmp_path, "score.method=elfs")
    assert list(elfs) == ["score", "select", "knn", "pseudo_labels", "dynamics"]
    assert elfs["select"] == (None, "not planned") and elfs["score"] == (1.0, "")
    flops = 2 * 50_000 * 50_000 * 1280  # every row with every row
    assert elfs["knn"] == (flops / 8e10 + 3.0, f"{flops:.1e} operations at 8.0e+10/s")
    twice = planned(tmp_path, "score.method=elfs", rows=100_000)
    assert twice["knn"][0] == pytest.approx(4 * (elfs["knn"][0] - 3) + 3)
    assert twice["dynamics"][0] - 23 == pytest.approx(2 * (elfs["dynamics"][0] - 23))
    kmeans = planned(tmp_path, "score.method=elfs", "signals.pseudo_labels.clustering=kmeans")
    assert list(kmeans)[2:] == ["clusters", "pseudo_labels", "dynamics"]
    d2 = planned(tmp_path, "select.method=d2", rate=None)
    assert d2["knn"] == (None, "not planned on GPUs")
    assert d2["score"] == (0.0, "no scores")
    assert "clusters" in planned(tmp_path, "select.balance=clusters")
    told = "score.method=grand", "signals.labels=cls"
    grand = planned(tmp_path, *told, "signals.proxy.runs=10")
    assert list(grand)[2:] == ["pseudo_labels", "proxy"], "labels that are given take no clusters"
    more = planned(tmp_path, *told, "signals.proxy.runs=20")
    assert grand["proxy"][0] - 23 == pytest.approx((more["proxy"][0] - 23) / 2, rel=0.1)
    resnet = planned(tmp_path, "score.method=elfs", "signals.dynamics.proxy=resnet18")
    assert resnet["dynamics"] == (None, "not planned")


@pytest.mark.usefixtures("nothing_made")
def test_signals_that_fit_no_cluster_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"'knn' holds the pool's rows .*, 51\.3 GB, and the nodes"
    ):
        planned(tmp_path, "select.method=d2", rows=5_000_000)


@settings(max_examples=300, deadline=None, database=None)
@given(
    rows=st.integers(1, 400),
    each=st.integers(1, 30),
    partitions=st.integers(1, 60),
    chosen=st.integers(1, 60),
    memory=st.integers(1, 6000),
)
def test_a_number_of_partitions_is_named_only_where_it_does(rows, each, partitions, chosen, memory):
    """Rounds counted by hand: no part holds more than there is room for, nor do all choices."""
    nodes = [(1.0, memory), (1.0, memory / 2)]

    def fits(p):
        held = [-(-rows // p), min(rows, p * chosen) if p > 1 else 0]
        return limits.COPIES * each * max(held) <= memory

    try:
        limits.check_whole(rows, each, partitions, nodes, chosen=chosen)
        assert fits(partitions)
    except ValueError as error:
        assert not fits(partitions)
        told = re.search(r"at least (\d+)(?: and at most (\d+))?", str(error))
        if told is None:
            assert "no select.partitions do" in str(error)
            assert not any(fits(p) for p in range(1, rows + 1))
        else:
            least, most = int(told[1]), int(told[2] or rows)
            assert all(fits(p) for p in range(least, most + 1))
            assert not any(fits(p) for p in range(1, least))


@pytest.mark.usefixtures("nothing_made")
def test_choices_that_fit_no_node_are_refused(tmp_path):
    """By their rows, by what a filter reads, and by what grows with the budget alone."""
    medoids = "select.method=medoids"
    with pytest.raises(ValueError, match=r"holds all rows .* to at least 3 and at most 7, which"):
        planned(tmp_path, medoids, "select.budget=0.05", rows=2_000_000)
    with pytest.raises(ValueError, match=r"holds all rows .*no select.partitions do: lower the"):
        planned(tmp_path, medoids, "select.budget=0.5", rows=2_000_000)
    limits.check_whole(1000, 600, 1, [(1, 4e6)], copies=6)
    with pytest.raises(ValueError, match=r": 7 × 1,000 rows × 600 bytes = 4.2 MB.* at least 2"):
        limits.check_whole(1000, 600, 1, [(1, 4e6)], copies=GraphCut.copies)
    near = "select.filters=[near_duplicates]"
    assert "filters" in planned(tmp_path, near)
    with pytest.raises(ValueError, match=r"select.filters: NearDup.* leave it out, or add a large"):
        planned(tmp_path, near, rows=10_000_000)
    local = "select.method=freesel", "select.budget=100"  # 5 patterns of 192 numbers an image
    local += ("signals.patterns.encoder={name: timm:vit_tiny_patch16_224}",)
    with pytest.raises(ValueError, match=r"4 × 2,000,000 rows × 3,840 bytes"):
        planned(tmp_path, *local, rows=2_000_000)
    many = "select.method=gradmatch", "select.budget=0.8"
    with pytest.raises(ValueError, match=r"takes 25.6 GB to choose so many.*select.balance"):
        planned(tmp_path, *many)
    assert "proxy" in planned(tmp_path, *many, "select.balance=pseudo_labels")


@pytest.mark.usefixtures("nothing_made")
def test_blocks_that_fit_no_cluster_are_refused(tmp_path):
    assert "select" in planned(tmp_path, "select.method=k_center", rows=48_000, memory=GB)
    with pytest.raises(
        ValueError, match=r"'k_center' holds the rows .* 4 × 500,000 rows × 5,120 b"
    ):
        planned(tmp_path, "select.method=k_center", rows=500_000, memory=GB)


@pytest.mark.usefixtures("nothing_made")
def test_choices_and_filters_are_planned(tmp_path):
    """Against sums by hand: a trial of 10 of 1,000 rows takes a second and five turns."""
    size = 50_000 * 1280 * 4 / 1e9  # seconds to read the rows

    def seconds(*words):
        return planned(tmp_path, "select.budget=1000", *words)["select"][0]

    # 50 times the rows and 100 times the images, on two CPUs, and 500 turns
    assert seconds("select.method=k_center") == pytest.approx(9 + (size + 5000) / 2 + 0.5)
    assert seconds("select.method=medoids") == pytest.approx(9 + size + 50 * 10)
    balanced = "select.method=medoids", "select.balance=pseudo_labels", "signals.classes=10"
    assert seconds(*balanced) == pytest.approx(9 + 5 * (size + 5 * 10**0.5))
    # two halves side by side, then 2,000 rows
    halves = "select.method=medoids", "select.partitions=2"
    assert seconds(*halves) == pytest.approx(12 + (size + 25 * 10) + (size + 2 * 10))
    near = planned(tmp_path, "select.filters=[near_duplicates, hypersphere]")["filters"]
    read = 50_000 * (50 * 12 + 8 + 5120) / 1e9
    assert near == (pytest.approx(6 + read + 100), "by 1,000, 1,000 made-up rows")
    assert seconds("select.method=k_center", "select.keep=m.parquet") > 0
    wanted = "select.params={measure: mutual_information, wanted: [1]}"
    told = "select.method=similar", wanted, "select.keep=m.parquet"
    assert planned(tmp_path, *told)["select"] == (None, "not planned")
    assert planned(tmp_path, "score.method=elfs")["select"] == (None, "not planned")
    assert seconds("select.method=freesel") > 0


def test_rows_are_read_by_every_process_that_needs_them_all():
    one, parts = (Choice(100, 10, 4, 5, p, 2, 1e9, 0.0) for p in (1, 3))
    assert one.reads(KCenter()) == 400
    assert one.reads(Medoids()) == 5 * 400 and parts.reads(Medoids()) == 5 * 4 * 400


def test_the_work_of_a_choice_grows_with_rows_and_budget():
    for name, kind in catalog.selector_classes().items():
        if issubclass(kind, Rule):
            continue
        method = kind()
        small, rows, both = method.work(1000, 10), method.work(2000, 10), method.work(2000, 80)
        assert 0 < small < rows <= both, name
        assert rows / small in (2, 4) or name == "gradmatch", name


def test_what_is_made_up_is_what_methods_read():
    widths = Widths(dims=12, neighbors=5, classes=4, hidden=7, patterns=3, tokens=6)
    needs = sorted({need for kind in catalog.selector_classes().values() if issubclass(kind, Method)
                    for need in kind.needs})  # fmt: skip
    assert can_make_up(needs) and not can_make_up(["dynamics.margin"])
    rows = made_up(needs, 300, widths)
    assert pool_of(rows["embedding"], rows.uid)["embedding"].shape == (300, 12)
    for name in needs:
        column = rows[name]
        assert column.dtype.itemsize * (column.shape[1] if column.ndim > 1 else 1) == widths.bytes(
            name
        ), name
    assert np.allclose(rows["proxy.probability"].sum(axis=1), 1, atol=1e-5)
    parts = rows["patterns.pattern"].reshape(300, 3, 6)
    assert np.allclose(np.linalg.norm(parts, axis=2), 1, atol=1e-5)
    near = rows["knn.neighbor"]
    assert near.min() >= 0 and near.max() < 300 and (np.diff(rows["knn.similarity"]) <= 0).all()
    groups = made_up(["clusters.cluster", "knn.neighbor"], 300, widths)
    cluster = groups["clusters.cluster"]
    assert (cluster[groups["knn.neighbor"]] == cluster[:, None]).all()


def test_a_trial_is_no_larger_than_what_it_foretells(ray_local):
    on = Cluster(((2.0, 4 * GB),), 0.0)
    trial = calibrate_choice.time_choice(KCenter(), 100, 20, Widths(8, 5), on)
    assert (trial.n, trial.k) == (100, 20) and trial.seconds > 0
    assert 1 <= trial.turns <= 20 and 0 < trial.round_trip < 1


def test_any_shape_is_timed():
    for name, method, k in (("whole", Cal(), 20), ("filter", NearDuplicates(), 0)):
        trial = calibrate_choice._timed(method, 100, k, Widths(8, 5))
        assert (trial.n, trial.k, trial.turns) == (100, k, 0) and trial.seconds > 0, name


def test_turns_of_a_greedy_choice_are_its_rows():
    rows = made_up(["embedding"], 200, Widths(6))
    method, number = KCenter(), np.arange(200)
    turns = [*greedy_turns(method, rows, number, 30, 0)]
    whole = together(greedy_turns(method, rows, number, 30, 0, offers=1))
    assert np.concatenate([turn.number for turn in turns]).tolist() == whole.number.tolist()
    assert 1 < len(turns) < 30


def test_what_a_signal_costs_grows_with_the_index():
    flat = signal_costs.neighbors(10**7, 256, 50, "flat", 1, 1)
    listed = signal_costs.neighbors(10**7, 256, 50, "ivf", 1024, 32)
    packed = signal_costs.neighbors(10**7, 256, 50, "ivfpq", 1024, 32)
    assert 20 < flat.flops / listed.flops < 33 and packed.flops == listed.flops
    assert listed.memory - packed.memory > 0.9 * 10**7 * (4 * 256 - 32), "a copy of the rows"
    assert flat.memory < 1.2 * 10**7 * 4 * 256
    one = signal_costs.clusters(10**6, 64, 4096, 4096, 20)
    two = signal_costs.clusters(10**6, 64, 40_000, 4096, 20)
    assert two.flops < one.flops
