"""How many threads compiled loops use; what they compute does not depend on it."""

import numba


def one_thread() -> None:
    """For a process beside which others work on the same machine, one for each of its cores."""
    numba.set_num_threads(1)
