"""From scores, or from signals, to what is kept: one method a file."""
