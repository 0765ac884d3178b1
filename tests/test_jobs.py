"""Pipelines as jobs of a real Ray head with its dashboard and token authentication."""

import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray_head
from pools import digits_pool, write_config

NAME = "--submission-id"
LINE = ("--", sys.executable, "-m")


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    with ray_head.running(tmp_path_factory.mktemp("head")) as head:
        yield head


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("jobs")
    train, _ = digits_pool(folder, shards=2, each=40)
    return write_config(folder, train)


def test_a_job_without_the_token_is_refused(head, config):
    told = head.job("submit", *LINE, "pipelines.plan", str(config), token="f" * 32)
    assert told.returncode != 0
    assert "401" in told.stderr + told.stdout or "nvalid" in told.stderr + told.stdout


def test_a_job_that_fails_says_so_and_is_not_taken_for_done(head, config):
    """A key misspelled: exit status and message come back, and Ray's state is FAILED."""
    line = (*LINE, "pipelines.embed", str(config), "select.budgte=5")
    told = head.job("submit", NAME, "wrong", *line)
    assert told.returncode != 0
    said = told.stdout + told.stderr  # submitting follows the log, to the end
    assert "select.budgte" in said and "failed" in said.lower()


@pytest.mark.slow
def test_the_chain_is_a_job(head, config):
    """Submitted, followed to success, its log read back, its files where they belong."""
    told = head.job("submit", NAME, "chain", *LINE, "pipelines.run", str(config))
    assert told.returncode == 0, told.stdout + told.stderr
    assert "succeeded" in told.stdout.lower()
    log = head.job("logs", "chain").stdout
    assert "80 images" in log and "Run " in log
    (manifest,) = Path(config.parent, "work").glob("selections/*/manifest.parquet")
    assert pq.read_table(manifest).num_rows == 16
