"""Typed, frozen configuration of a run, read strictly from YAML.

Keys are grouped by what they change: `compute` changes only speed, but for the number of training
workers, and `storage` only how files are reached; both stay out of every fingerprint, but for that
number in those of trainings. Everything else may change an answer.
"""

from coreset_ray.config.choice import FilterConfig
from coreset_ray.config.judging import CompareConfig, ContinualConfig, EvaluateConfig, ProbeConfig
from coreset_ray.config.pool import PoolConfig
from coreset_ray.config.reading import load
from coreset_ray.config.record import fingerprint, plain
from coreset_ray.config.running import ComputeConfig, WaitConfig
from coreset_ray.config.signals import KnnConfig
from coreset_ray.config.whole import Config

__all__ = [
    "CompareConfig",
    "ComputeConfig",
    "Config",
    "ContinualConfig",
    "EvaluateConfig",
    "FilterConfig",
    "KnnConfig",
    "PoolConfig",
    "ProbeConfig",
    "WaitConfig",
    "fingerprint",
    "load",
    "plain",
]
