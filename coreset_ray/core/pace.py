"""How often sums are committed: often enough that a crash costs little, seldom enough that
committing does."""

COMMIT_SECONDS = 5.0  # between commits, or ten times what one takes


def pause_after(seconds: float) -> float:
    """Seconds to wait after a commit that took so many."""
    return max(COMMIT_SECONDS, 10 * seconds)


def share_left(seconds: float) -> float:
    """Part of the time that is left for drawing when a commit takes so many seconds."""
    return 1 - seconds / (pause_after(seconds) + seconds)
