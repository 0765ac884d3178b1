"""Deep clustering: losses and heads against slow forms, and small real trainings."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from local_training import in_this_process, split
from pools import table_of

from coreset_ray.clustering.agreement import collapsed, contingency, labels_of, matched, usage
from coreset_ray.clustering.deep import DeepClustering, HeadSettings
from coreset_ray.clustering.diagnosis import clustering_scores
from coreset_ray.clustering.heads import Heads
from coreset_ray.clustering.labeler import Labeler, block_rows, head_probability, labeler_of
from coreset_ray.clustering.scan import scan_loss
from coreset_ray.clustering.temi import moved_marginal, temi_loss
from coreset_ray.distributed import deep_clusters
from coreset_ray.distributed.deep_clusters import load_labeler, train_heads
from coreset_ray.io.filesystem import locate
from coreset_ray.io.neighbor_rows import lay_neighbors
from coreset_ray.io.tables import write_table

H, B, C, M = 3, 5, 4, 7


def random_log(seed: int, *shape: int, scale: float = 2.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(*shape, generator=generator, dtype=torch.float64)
    return logits.log_softmax(-1)


def heads_of(count: int = H, *, hidden: tuple[int, ...] = (6, 5), seed: int = 0) -> Heads:
    mean, deviation = torch.linspace(-1, 1, M), torch.linspace(0.5, 2, M)
    return Heads(mean, deviation, C, count, hidden=hidden, seed=seed)


# ---- losses ------------------------------------------------------------------------------------


def slow_temi(student: np.ndarray, teacher: np.ndarray, marginal: np.ndarray, beta: float) -> list:
    """As printed, in loops; (h, 2, b, c) probabilities."""

    def pmi(h: int, i: int, view: int) -> float:
        ratios = [
            (student[h, view, i, c] * teacher[h, 1 - view, i, c]) ** beta / marginal[h, c]
            for c in range(C)
        ]
        return math.log(sum(ratios))

    weight = [
        sum(teacher[h, 0, i, c] * teacher[h, 1, i, c] for h in range(H) for c in range(C)) / H
        for i in range(B)
    ]
    return [
        sum(-0.5 * weight[i] * (pmi(h, i, 0) + pmi(h, i, 1)) for i in range(B)) / B
        for h in range(H)
    ]


@pytest.mark.parametrize("beta", [0.6, 1.0])
def test_temi_is_the_printed_formula(beta: float) -> None:
    student, teacher = random_log(0, H, 2, B, C), random_log(1, H, 2, B, C)
    marginal = random_log(2, H, C).exp()
    slow = slow_temi(student.exp().numpy(), teacher.exp().numpy(), marginal.numpy(), beta)
    np.testing.assert_allclose(temi_loss(student, teacher, marginal, beta=beta), slow, rtol=1e-12)


def test_scan_is_the_printed_formula() -> None:
    student = random_log(3, H, 2, B, C)
    p = student.exp().numpy()
    for weight in (0.0, 5.0):
        slow = []
        for h in range(H):
            mean = [sum(p[h, 0, i, c] for i in range(B)) / B for c in range(C)]
            alike = sum(math.log(sum(p[h, 0, i] * p[h, 1, i])) for i in range(B)) / B
            slow.append(-alike - weight * -sum(q * math.log(q) for q in mean))
        mean = student[:, 0].exp().mean(1)
        np.testing.assert_allclose(scan_loss(student, mean, entropy_weight=weight), slow, 1e-12)


def test_scan_s_gradient_is_that_of_the_entropy() -> None:
    logits = torch.randn(1, 2, B, C, dtype=torch.float64, requires_grad=True)
    student = logits.log_softmax(-1)
    (ours,) = torch.autograd.grad(scan_loss(student, student[:, 0].exp().mean(1)).sum(), logits)
    student = logits.log_softmax(-1)
    mean = student[:, 0].exp().mean(1)
    plain = -student.sum(1).logsumexp(-1).mean() + 5 * (mean * mean.log()).sum()
    torch.testing.assert_close(ours, torch.autograd.grad(plain, logits)[0])


def test_losses_stay_finite_where_probabilities_are_rounded_to_zero() -> None:
    student, teacher = random_log(4, H, 2, B, C, scale=400), random_log(5, H, 2, B, C, scale=400)
    student, teacher = student.float().requires_grad_(), teacher.float()
    marginal = teacher.exp().mean((1, 2)) * torch.tensor([1.0, 1.0, 1.0, 0.0])
    loss = temi_loss(student, teacher, marginal) + scan_loss(student, marginal)
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    assert loss.isfinite().all() and gradient.isfinite().all()


@pytest.mark.parametrize("clustering", ["temi", "scan"])
def test_halves_of_a_batch_make_the_gradient_of_the_whole(clustering: str) -> None:
    """What workers do: the marginal summed over them, gradients averaged."""
    settings = HeadSettings(clustering, C, H, (6, 5), temperature=0.5)  # type: ignore[arg-type]
    pairs = torch.randn(2, 10, M, generator=torch.Generator().manual_seed(0))
    alone = DeepClustering(settings, heads_of())
    expected = alone.step(pairs, 1e-3)
    halves = pairs[:, :4], pairs[:, 4:]
    sums: list[torch.Tensor] = []
    for half in halves:
        told = lambda here: (sums.append(here), here)[1]  # noqa: E731
        DeepClustering(settings, heads_of()).step(half, 1e-3, reduce=told)
    losses, gradients = [], []
    for half in halves:
        worker = DeepClustering(settings, heads_of())
        both = lambda here: sums[0] + sums[1]  # noqa: E731
        losses.append(worker.step(half, 1e-3, rows=10, workers=2, reduce=both))
        gradients.append([p.grad for p in worker.student.parameters()])
        torch.testing.assert_close(worker.marginal, alone.marginal)
    torch.testing.assert_close((losses[0] + losses[1]) / 2, expected)
    for p, a, b in zip(alone.student.parameters(), *gradients, strict=True):
        torch.testing.assert_close((a + b) / 2, p.grad, atol=1e-6, rtol=1e-4)


# ---- heads -------------------------------------------------------------------------------------


@pytest.mark.parametrize("hidden", [(), (6, 5)])
def test_a_batch_of_heads_is_a_loop_over_heads(hidden: tuple[int, ...]) -> None:
    heads, rows = heads_of(hidden=hidden, seed=3), torch.randn(B, M)
    for p in heads.parameters():
        torch.nn.init.normal_(p)
    logits = heads(rows)
    assert logits.shape == (H, B, C)
    x = (rows - heads.mean) / heads.deviation
    for h in range(H):
        if heads.offset is not None:
            single = x @ heads.last[h] + heads.offset[h]
        else:
            z = torch.nn.functional.gelu(x @ heads.weight[0][h] + heads.bias[0][h])
            z = z @ heads.weight[1][h] + heads.bias[1][h]
            z = z / z.norm(dim=1, keepdim=True)
            single = z @ (heads.last[h] / heads.last[h].norm(dim=0, keepdim=True))
        torch.testing.assert_close(logits[h], single, atol=1e-5, rtol=1e-5)


def test_initial_weights_are_a_function_of_the_seed() -> None:
    def first(seed: int) -> torch.Tensor:
        return heads_of(seed=seed).weight[0]

    state = torch.random.get_rng_state()
    assert torch.equal(first(1), first(1)) and not torch.equal(first(1), first(2))
    assert not torch.equal(first(1)[0], first(1)[1])
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_step_moves_teacher_and_marginal_as_told() -> None:
    settings = HeadSettings(classes=C, heads=H, hidden=(6, 5), teacher_momentum=0.75)
    clustering = DeepClustering(settings, heads_of())
    pairs, before = torch.randn(2, B, M), heads_of()
    batch = torch.stack([head_probability(before, x, 0.1) for x in pairs]).mean((0, 2))
    clustering.step(pairs, 1e-2)
    uniform = torch.full((H, C), 1 / C)
    torch.testing.assert_close(clustering.marginal, moved_marginal(uniform, batch))
    for start, student, teacher in zip(
        *(before.parameters(), clustering.student.parameters(), clustering.teacher.parameters()),
        strict=True,
    ):
        assert not torch.equal(start, student)
        torch.testing.assert_close(teacher, 0.75 * start + 0.25 * student)


def test_learning_rate_rises_and_falls() -> None:
    settings = HeadSettings(epochs=10, warmup_epochs=2, lr=1.0, final_lr=0.2)
    rates = [settings.learning_rate(step, 5) for step in range(50)]
    np.testing.assert_allclose(rates[:10], np.arange(1, 11) / 10)
    assert rates[10] == 1 and rates[30] == pytest.approx(0.6) and 0.2 < rates[-1] < 0.21


@pytest.mark.parametrize(
    "wrong",
    [
        *({"classes": 1}, {"heads": 0}, {"epochs": 0}, {"lr": -1.0}, {"lr": math.nan}),
        *({"temperature": 0.0}, {"beta": math.inf}, {"hidden": (3, 0)}, {"teacher_momentum": 1.0}),
        *({"clustering": "temy"}, {"label": "best"}, {"final_lr": 1.0}, {"batch_size": 1}),
    ],
)
def test_settings_outside_their_range_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
        HeadSettings(**wrong)


# ---- labels from many heads --------------------------------------------------------------------


def test_heads_that_number_clusters_differently_agree_once_matched() -> None:
    clear, rng = random_log(6, 40, C, scale=3).exp(), np.random.default_rng(0)
    order = np.stack([rng.permutation(C) for _ in range(6)])
    probability = torch.stack([clear[:, o] for o in order])
    table = torch.stack([contingency(part, 2) for part in probability.split(9, dim=1)]).sum(0)
    match = torch.from_numpy(matched(table.numpy()))
    aligned = probability.gather(2, match[:, None].expand_as(probability))
    torch.testing.assert_close(aligned, probability[2].expand_as(aligned))
    for by in ("mean", "best_head"):
        label, confidence, agreement = labels_of(aligned, by, 2)
        assert torch.equal(label, probability[2].argmax(-1)) and (agreement == 1).all()
        torch.testing.assert_close(confidence, probability[2].amax(-1))


def test_reordered_heads_answer_in_the_new_order() -> None:
    for hidden in ((), (6, 5)):
        heads, rows = heads_of(4, hidden=hidden), torch.randn(B, M)
        kept, order = torch.tensor([3, 1]), torch.tensor([[2, 0, 3, 1], [0, 1, 3, 2]])
        expected = heads(rows)[kept].gather(2, order[:, None].expand(2, B, C))
        torch.testing.assert_close(heads.reorder(kept, order)(rows), expected)


def test_collapsed_heads_are_found() -> None:
    spread = random_log(7, 1, 200, C).exp()
    one = torch.tensor([0.97, 0.01, 0.01, 0.01]).double().expand(1, 200, C)
    nearly = one.clone()
    nearly[0, :, :] = torch.tensor([0.9991, 0.0003, 0.0003, 0.0003])
    nearly[0, 0] = torch.tensor([0, 1, 0, 0])
    found = collapsed(*(a.numpy() for a in usage(torch.cat([spread, one, nearly]))))
    assert found.tolist() == [False, True, True]


def test_a_labeler_survives_its_file(tmp_path) -> None:
    settings = HeadSettings(classes=C, heads=H, hidden=(6, 5), label="best_head")
    labeler = Labeler(heads_of(), settings, 1)
    torch.save(labeler.state(), tmp_path / "heads.pt")
    again = labeler_of(torch.load(tmp_path / "heads.pt", weights_only=True))
    rows = np.random.default_rng(0).normal(size=(50, M)).astype(np.float32)
    for ours, theirs in zip(labeler.label(rows), again.label(rows), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert again.settings == settings and again.best == 1
    label, confidence, agreement = again.label(rows)
    assert (label.dtype, confidence.dtype, agreement.dtype) == (np.int32, np.float32, np.float32)
    probability = head_probability(again.heads, torch.from_numpy(rows), 0.1)
    np.testing.assert_array_equal(label, probability[1].argmax(-1))
    np.testing.assert_array_equal(
        again.counts(probability), np.bincount(label, minlength=C), strict=False
    )


def test_diagnosis_scores() -> None:
    truth = np.array(["a", "a", "b", "b", "c", "c"])
    scores = clustering_scores(np.array([7, 7, 3, 3, 5, 5]), truth)
    assert scores == {"acc": 1, "nmi": pytest.approx(1), "ari": 1}
    scores = clustering_scores(np.array([0, 0, 0, 1, 2, 3]), truth)  # four clusters, three classes
    assert scores["acc"] == pytest.approx(4 / 6) and 0 < scores["ari"] < scores["nmi"] < 1
    with pytest.raises(ValueError, match="3 labels and 6 true classes"):
        clustering_scores(truth[:3], truth)


# ---- on Ray ------------------------------------------------------------------------------------

ROWS, PARTS, K, CLASSES, WIDTH = 400, 3, 8, 4, 8
SMALL = HeadSettings(
    *("temi", CLASSES, 3, (16, 8)),
    epochs=8,
    batch_size=64,
    lr=1e-2,
    final_lr=1e-3,
    warmup_epochs=1,
    teacher_momentum=0.9,
)


def write_neighbors(folder, neighbor: np.ndarray, parts: dict[str, int]):
    signal, start = locate(str(folder)), 0
    for part, rows in parts.items():
        flat = pa.array(neighbor[start : start + rows].ravel(), pa.int64())
        column = pa.FixedSizeListArray.from_arrays(flat, neighbor.shape[1])
        write_table(signal / f"part-{part}.parquet", pa.table({"neighbor": column}))
        start += rows
    return signal


@pytest.fixture(scope="module")
def blobs(tmp_path_factory):
    """An embedding table, rows of its parts, neighbours, and true labels."""
    folder, rng = tmp_path_factory.mktemp("blobs"), np.random.default_rng(0)
    truth = rng.integers(0, CLASSES, ROWS)
    z = rng.normal(size=(CLASSES, WIDTH))[truth] * 3 + rng.normal(size=(ROWS, WIDTH))
    apart = ((z[:, None] - z) ** 2).sum(-1)
    np.fill_diagonal(apart, np.inf)
    table, parts = table_of(folder / "table", z, PARTS)
    signal = write_neighbors(folder / "knn", apart.argsort(axis=1)[:, :K], parts)
    return table, parts, signal, truth


def train(blobs, folder, settings=SMALL, **how: Any):
    table, parts, signal, _ = blobs
    how = {"scratch": str(folder / "scratch"), "storage_path": str(folder / "train"), **how}
    running, told = split({"name": "run", "checkpoint_every": 3, **how})
    out = locate(str(folder / "out"))
    return train_heads(table, parts, signal, settings, out, running=running, **told)


def labels(folder) -> pa.Table:
    return pa.concat_tables(pq.read_table(folder / f"part-p{i}.parquet") for i in range(PARTS))


@pytest.fixture(scope="module")
def trained(blobs, ray_local, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    with in_this_process():
        return folder, train(blobs, folder)


def test_labels_are_the_blobs(blobs, trained) -> None:
    folder, facts = trained
    found = labels(folder / "out")
    assert found.schema.names == ["uid", "label", "confidence", "agreement"]
    assert [str(t) for t in found.schema.types] == ["string", "int32", "float", "float"]
    assert clustering_scores(found["label"].to_numpy(), blobs[3])["acc"] > 0.9
    uid = pa.concat_tables(pq.read_table(blobs[0].part(p).path) for p in blobs[1])["uid"]
    assert found["uid"].to_pylist() == uid.to_pylist()
    for name in ("confidence", "agreement"):
        values = found[name].to_numpy()
        assert ((values > 0) & (values <= 1)).all()
    counts = np.bincount(found["label"].to_numpy(), minlength=CLASSES)
    assert facts["rows_of_label"] == counts.tolist() and facts["attempts"] == 1
    assert facts["best_head"] == int(np.argmin(facts["loss"])) and len(facts["loss"]) == 3
    z = np.stack(pq.read_table(blobs[0].part("p1").path)["embedding"].to_pylist())
    label = load_labeler(locate(str(folder / "out"))).label(z.astype(np.float32))[0]
    np.testing.assert_array_equal(label, pq.read_table(folder / "out/part-p1.parquet")["label"])


def test_what_is_there_is_not_made_again(blobs, trained, ray_local) -> None:
    folder, facts = trained
    before, out = labels(folder / "out"), folder / "out"
    marks = {p.name: p.stat().st_mtime_ns for p in out.iterdir()}
    (out / "part-p1.parquet").unlink()
    assert train(blobs, folder, name="never") == facts
    assert labels(out) == before
    now = {p.name: p.stat().st_mtime_ns for p in out.iterdir()}
    assert [name for name in sorted(now) if now[name] != marks[name]] == ["part-p1.parquet"]
    with pytest.raises(RuntimeError, match=r"heads\.pt was trained on other data or settings"):
        train(blobs, folder, replace(SMALL, seed=5))


def test_stopped_and_resumed_is_as_never_stopped(blobs, trained, trainer, tmp_path) -> None:
    folder, facts = trained
    assert train(blobs, tmp_path, stop_after=4) == {"epochs": 4, "written": False}
    assert not (tmp_path / "out").exists()
    assert train(blobs, tmp_path) == facts
    assert labels(tmp_path / "out") == labels(folder / "out")
    ours, theirs = (
        torch.load(at / "out" / "heads.pt", weights_only=True)["heads"] for at in (tmp_path, folder)
    )
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


@pytest.mark.slow
def test_two_workers_find_the_same_clusters(blobs, trained, ray_local, tmp_path) -> None:
    folder, facts = trained
    two = train(blobs, tmp_path, workers=2)
    np.testing.assert_allclose(two["loss"], facts["loss"], rtol=0.05)
    ours, alone = (labels(at / "out")["label"].to_numpy() for at in (tmp_path, folder))
    assert two["workers"] == 2 and clustering_scores(ours, alone)["acc"] > 0.98


def test_a_loss_that_is_not_finite_is_told(blobs, trainer, tmp_path) -> None:
    wild = replace(SMALL, clustering="scan", hidden=(), lr=1e38, final_lr=1e38, warmup_epochs=0)
    with pytest.raises(RuntimeError, match=r"loss was .* epoch 0, step \d .* 1e\+38; lower lr="):
        train(blobs, tmp_path, wild)


def test_collapse_is_tried_again_and_told(trainer, tmp_path, monkeypatch) -> None:
    """Images that are all the same have one cluster."""
    monkeypatch.setattr(deep_clusters, "_ATTEMPTS", 2)
    table, parts = table_of(tmp_path / "table", np.ones((40, 3)), 2)
    neighbor = (np.arange(40)[:, None] + [1, 2]) % 40
    same = table, parts, write_neighbors(tmp_path / "knn", neighbor, parts), None
    with pytest.raises(RuntimeError, match=r"with each of 2 seeds all 3 heads .*lower lr=0\.01"):
        train(same, tmp_path, replace(SMALL, epochs=1, warmup_epochs=0))
    assert sorted(p.name for p in (tmp_path / "train").iterdir()) == ["run-0", "run-1"]
    assert not list(tmp_path.glob("out/*"))


def test_wrong_arguments_are_refused(blobs, tmp_path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"settings": replace(SMALL, classes=ROWS + 1)}, "classes=401: the pool has 400 images"),
        ({"name": "a/b"}, "name='a/b'"),
        ({"workers": 0}, "workers=0"),
        ({"workers": 40}, "batch_size=64 over 40 workers"),
        ({"stop_after": 0}, "stop_after=0"),
    ]
    for wrong, message in cases:
        with pytest.raises(ValueError, match=message):
            train(blobs, tmp_path, **wrong)


def test_neighbours_that_do_not_fit_the_pool_are_named(tmp_path) -> None:
    parts, good = {"p0": 5, "p1": 7}, np.arange(24).reshape(12, 2) % 12
    signal = write_neighbors(tmp_path / "good", good, parts)
    laid = lay_neighbors(tmp_path / "laid", signal, parts)
    assert laid.dtype == np.int32
    np.testing.assert_array_equal(laid, good)
    for i, (change, message) in enumerate(
        [
            ({"p0": 5, "p2": 7}, "part-p2.parquet is not there"),
            ({"p0": 5, "p1": 8}, "part-p1.parquet has 7 rows where the pool has 8"),
            ({"p0": 5}, "part-p0.parquet names rows outside 0 … 4"),
        ]
    ):
        with pytest.raises(ValueError, match=message):
            lay_neighbors(tmp_path / f"laid{i}", signal, change)
    signal.fs.delete_file(f"{signal.path}/part-p1.parquet")
    write_neighbors(tmp_path / "good", good[5:, :1], {"p1": 7})
    with pytest.raises(ValueError, match=r"p1.parquet has not the 2 neighbours"):
        lay_neighbors(tmp_path / "laid9", signal, parts)


def test_blocks_fit_memory() -> None:
    wide = Heads(torch.zeros(2), torch.ones(2), 3000, 50, hidden=())
    assert block_rows(wide) == (1 << 23) // 150_000
