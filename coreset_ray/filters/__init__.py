"""Filters that leave images out before a method chooses, one a file."""
