"""Scorers: one method a file, found by looking in this folder."""
