"""Columns of every signal for a made-up pool, as a pipeline would write them, and a view of them
that knows which may be looked at."""

from collections.abc import Iterator, Mapping

import numpy as np

from coreset_ray.core.pool import Pool

K, EPOCHS, CLASSES, RUNS, HIDDEN, PATTERNS = 5, 12, 4, 3, 6, 5


def pool_with_signals(embedding: np.ndarray, uid: np.ndarray, seed: int = 0) -> Pool:
    """Neighbours are those of the embedding; the rest is drawn."""
    rng = np.random.default_rng(seed)
    return Pool(uid, {"embedding": embedding, **neighbors(embedding), **drawn(len(uid), rng)})


def neighbors(embedding: np.ndarray) -> dict[str, np.ndarray]:
    """The K most similar rows by cosine, best first."""
    z = embedding.astype(np.float64)
    unit = z / np.maximum(np.abs(z).max(axis=1, keepdims=True), 1e-300)
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-300)
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, -np.inf)
    k = min(K, len(z) - 1)
    found = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    return {
        "knn.neighbor": found,
        "knn.similarity": np.take_along_axis(similarity, found, 1).astype(np.float32),
    }


def drawn(n: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Clusters, pseudo-labels, what a classifier's training leaves behind, what one says."""
    logits = np.cumsum(rng.normal(size=(n, EPOCHS, CLASSES)), axis=1)
    label = rng.integers(0, CLASSES, n)
    columns = {
        "clusters.cluster": rng.integers(0, 3, n).astype(np.int32),
        "clusters.distance": rng.random(n).astype(np.float32),
        "pseudo_labels.label": label.astype(np.int32),
        "pseudo_labels.confidence": rng.random(n).astype(np.float32),
        "pseudo_labels.agreement": rng.random(n).astype(np.float32),
        **dynamics(logits, label),
        **proxy(logits[:, -1], label, rng),
    }
    pattern = np.random.default_rng(n).normal(size=(n, PATTERNS, 4))
    pattern /= np.linalg.norm(pattern, axis=2, keepdims=True)
    return {**columns, "patterns.pattern": pattern.reshape(n, -1).astype(np.float32)}


def dynamics(logits: np.ndarray, label: np.ndarray) -> dict[str, np.ndarray]:
    """What is recorded of logits (n, t, c) in each epoch, for labels (n,): arrays (n, t)."""
    high = logits - logits.max(axis=2, keepdims=True)
    log_p = high - np.log(np.exp(high).sum(axis=2, keepdims=True))
    p, rows = np.exp(log_p), np.arange(len(label))
    target, others = p[rows, :, label], p.copy()
    others[rows, :, label] = -1
    hot = np.eye(p.shape[2])[label][:, None]
    step = np.abs(p[:, 1:] * (log_p[:, 1:] - log_p[:, :-1])).sum(axis=2)
    top = np.sort(p, axis=2)
    found = {
        "margin": target - others.max(axis=2),
        "correct": p.argmax(axis=2) == label[:, None],
        "error_norm": np.linalg.norm(p - hot, axis=2),
        "loss": -log_p[rows, :, label],
        "target_probability": target,
        "entropy": -(p * log_p).sum(axis=2),
        "confidence": top[..., -1],
        "runner_up": top[..., -2],
        "change": np.concatenate([np.zeros((len(label), 1)), step], axis=1),
    }
    return {
        f"dynamics.{n}": v if v.dtype == bool else v.astype(np.float32) for n, v in found.items()
    }


def proxy(logits: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """What is written of a classifier with these logits (n, c), its features drawn, and of other
    runs, their gradients drawn."""
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    feature = np.maximum(rng.normal(size=(len(label), HIDDEN)), 0)
    error = np.linalg.norm(p - np.eye(p.shape[1])[label], axis=1)
    norm = error * np.sqrt(np.square(feature).sum(axis=1) + 1)
    others = norm[:, None] * rng.uniform(0.5, 2, (len(label), RUNS - 1))
    found = {
        "probability": p,
        "feature": feature,
        "gradient_norm": np.concatenate([norm[:, None], others], axis=1),
        "perturbation": rng.exponential(size=len(label)) + 0.01,
    }
    told = {f"proxy.{name}": values.astype(np.float32) for name, values in found.items()}
    return {"proxy.label": label.astype(np.int32), **told}


def rearranged(of: Pool, order: np.ndarray) -> Pool:
    """The same rows in another order, neighbours still pointing at the rows they name."""
    moved = of.take(order)
    if "knn.neighbor" not in of.columns:
        return moved
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    neighbor = place[moved.columns["knn.neighbor"]]
    return Pool(moved.uid, {**moved.columns, "knn.neighbor": neighbor})


class OnlyThese(Mapping[str, np.ndarray]):
    """Columns of which a method may look only at those it needs; it may not even list others."""

    def __init__(self, columns: Mapping[str, np.ndarray], allowed: tuple[str, ...]) -> None:
        self.columns, self.allowed = columns, allowed

    def __getitem__(self, name: str) -> np.ndarray:
        assert name in self.allowed, f"looked at {name!r}, which is not in its needs"
        return self.columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.allowed)

    def __len__(self) -> int:
        return len(self.allowed)
