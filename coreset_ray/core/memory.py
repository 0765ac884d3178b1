"""How much the memory of this process grows while something is done."""

import re
from pathlib import Path

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Growth:
    """Watches this process from here on: `bytes` is the most that was resident at one time beyond
    what was when it began, None where the system does not tell (it is Linux that does).

    What the process held before, and took up again, is no growth; code that is loaded meanwhile is.
    """

    def __init__(self) -> None:
        self._told = True
        self.reset()
        self._before = _kilobytes("VmRSS")

    def reset(self) -> None:
        """Forgets the peak: `bytes` tells the most from now on, beyond the same beginning."""
        try:
            _RESET.write_text("5")
        except OSError:
            self._told = False

    @property
    def bytes(self) -> int | None:
        peak = _kilobytes("VmHWM") if self._told else None
        if peak is None or self._before is None:
            return None
        return 1024 * max(0, peak - self._before)


def _kilobytes(name: str) -> int | None:
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) if found else None
