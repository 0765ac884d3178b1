"""The only place with Ray. Knows shapes of methods, never a method by name."""

from coreset_ray.telemetry.logs import set_up_worker

set_up_worker()  # every worker of a run imports this package before it does anything for us
