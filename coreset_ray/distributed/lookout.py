"""A thread that looks at the cluster now and then while a run lasts."""

import logging
import threading
from abc import ABC, abstractmethod

_log = logging.getLogger(__name__)
_GRACE = 2.0  # seconds for a look that is under way


class Lookout(ABC):
    """Looks every so many seconds, for the length of a `with` block."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.end = seconds, threading.Event()
        self.thread = threading.Thread(target=self._run, name=type(self).__name__, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.end.set()
        self.thread.join(_GRACE)

    @abstractmethod
    def once(self) -> None:
        """One look."""

    def _run(self) -> None:
        while not self.end.wait(self.seconds):
            try:
                self.once()
            except Exception as error:  # the run itself meets what is wrong with the cluster
                _log.debug("the cluster did not answer: %s", error)
