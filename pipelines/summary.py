"""Where the time of a run went → runs/RUN/summary.json."""

import logging
from typing import Any

from coreset_ray.config import Config
from coreset_ray.telemetry.run import Run
from coreset_ray.telemetry.summary import in_words, summary
from coreset_ray.version import __version__
from pipelines.inputs import workspace_of

_log = logging.getLogger(__name__)


def write_summary(config: Config, run: Run, status: str) -> str:
    """Keeps the record of a run in its workspace, and says in the log that it does; returns it in
    words. What a run did is not lost with its record: a store that fails here is only warned of.
    """
    told: dict[str, Any] = summary(run, status) | {"version": __version__}
    try:
        place = workspace_of(config).summary(run.id)
        place.write_json(told)
        _log.info("run %s %s, in %s", run.id, status, place.uri, extra={"summary": told})
    except (OSError, ValueError) as error:
        _log.warning("the summary of run %s was not kept: %s", run.id, error)
    return in_words(told)
