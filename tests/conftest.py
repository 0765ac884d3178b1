"""One small local Ray for the whole session, and small pools to run on."""

import contextlib
import hashlib
import logging
import os
import re
from pathlib import Path

import pytest

# Set before Ray starts: the workers import the checkout, wherever a test changes directory to.
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [ROOT, os.environ.get("PYTHONPATH")]))

# For a store of the tests' own; whoever runs them keeps theirs to themselves.
os.environ |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
os.environ |= {"AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": os.devnull}

os.environ.setdefault("RAY_metrics_report_interval_ms", "1000")  # not ten seconds in every test
os.environ.setdefault("RAY_num_workers_soft_limit", "8")  # processes that have imported all
os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "600000")  # are used again
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")  # not 2 s, twice a training

# Compiled code is kept by file, and a file that calls another's is not compiled anew when that one
# changes: a cache of its own for each state of the sources.
_CORE = b"".join(p.read_bytes() for p in sorted(Path(ROOT, "coreset_ray", "core").glob("*.py")))
os.environ["NUMBA_CACHE_DIR"] = f"{ROOT}/.numba_cache/{hashlib.sha256(_CORE).hexdigest()[:12]}"

import azure_server  # noqa: E402 -- these import what they test, for which numba reads the above
import store_server  # noqa: E402

os.environ |= {"AZURE_STORAGE_ACCOUNT": azure_server.ACCOUNT, "AZURE_STORAGE_KEY": azure_server.KEY}


@pytest.fixture(scope="session")
def ray_local():
    """A local Ray of two CPUs, shut down at the end."""
    import ray

    ray.init(
        address="local",  # whatever else runs, or ran, on this machine
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    yield
    ray.shutdown()


@pytest.fixture(params=["here", pytest.param("by Ray Train", marks=pytest.mark.slow)])
def trainer(request, ray_local):
    """A test of a training runs in this process, and if slow ones are asked for, by Ray Train."""
    from local_training import in_this_process

    with in_this_process() if request.param == "here" else contextlib.nullcontext():
        yield


@pytest.fixture(scope="session")
def store():
    """An S3 server over HTTP."""
    with store_server.running() as store:
        yield store


@pytest.fixture
def proxy(store):
    """Before it, one that fails as told."""
    with store_server.proxied(store) as proxy:
        yield proxy


@pytest.fixture
def bucket(store, request):
    """A bucket of the test's own."""
    told = re.sub(r"[^a-z0-9]+", "-", f"{request.module.__name__}-{request.node.name}".lower())
    return store.bucket(f"b-{told[-50:].strip('-')}")


@pytest.fixture(autouse=True)
def _logging_as_before():
    """The command line sets up logging for its process, which here is the tests'."""
    before = logging.root.handlers[:], logging.root.level
    yield
    logging.root.handlers[:], logging.root.level = before
