"""One small local Ray for the whole session, and small pools to run on."""

import os

import pytest

# Set before Ray starts: the workers import the checkout, wherever a test changes directory to.
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [ROOT, os.environ.get("PYTHONPATH")]))


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
