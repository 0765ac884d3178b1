"""Pools, selections, the shapes of a method, and randomness. Knows nothing of files or Ray.

One legend of letters everywhere: n rows (images), m dimensions, k budget, c classes, t draws.
"""
