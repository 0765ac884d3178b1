"""Embeddings row after row in one file."""

from pathlib import Path

import numpy as np
import pytest
from pools import table_of

from coreset_ray.distributed.trial import write_rows
from coreset_ray.io.embedding_rows import lay_rows


def test_rows_are_those_of_the_parts_with_their_moments(tmp_path: Path) -> None:
    z = np.random.default_rng(0).normal(1e4, 2, (5000, 33)).astype(np.float32)
    z[:, 4], z[:, 5] = 0.1, 0
    table, parts = table_of(tmp_path / "table", z, 7)
    laid = lay_rows(tmp_path / "rows", table, parts)
    np.testing.assert_array_equal(laid.rows, z)
    exact = z.astype(np.float64)
    np.testing.assert_allclose(laid.mean, exact.mean(axis=0), rtol=1e-6)
    varying = [d for d in range(33) if d not in (4, 5)]
    np.testing.assert_allclose(laid.deviation[varying], exact.std(axis=0)[varying], rtol=1e-6)
    assert laid.deviation[4] == laid.deviation[5] == 1


def test_a_file_is_written_once(tmp_path: Path) -> None:
    z = np.random.default_rng(0).normal(size=(50, 3))
    table, parts = table_of(tmp_path / "table", z, 2)
    first = lay_rows(tmp_path / "rows", table, parts, "float16")
    assert first.rows.dtype == np.float16
    table.part("p0").fs.delete_file(table.part("p0").path)
    np.testing.assert_array_equal(lay_rows(tmp_path / "rows", table, parts).rows, first.rows)


def test_bad_parts_are_named(tmp_path: Path) -> None:
    table, parts = table_of(tmp_path / "table", np.ones((40, 3)), 2)
    write_rows(table, "p1", np.ones((20, 4), np.float32))
    with pytest.raises(ValueError, match=r"'p1' holds embeddings of 4 .* 'p0' has 3"):
        lay_rows(tmp_path / "rows", table, parts)
    bad = np.ones((20, 3), np.float32)
    bad[7, 2] = np.nan
    write_rows(table, "p1", bad)
    with pytest.raises(ValueError, match="part 'p1': embedding row 7"):
        lay_rows(tmp_path / "rows", table, parts)
