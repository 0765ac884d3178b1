"""One file for each arrow of the data flow. Wiring only: no arithmetic.

Each runs as `python -m pipelines.NAME CONFIG [key=value …]` and as `coreset-ray NAME …`.
"""
