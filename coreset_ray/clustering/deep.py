"""Deep clustering: what is set, and one step of training, for TEMI and SCAN alike."""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from coreset_ray.clustering.heads import Heads
from coreset_ray.clustering.scan import scan_loss
from coreset_ray.clustering.temi import moved_marginal, temi_loss
from coreset_ray.core.random import check_seed

Reduce = Callable[[torch.Tensor], torch.Tensor]  # the sum of a tensor over workers


@dataclass(frozen=True)
class HeadSettings:
    """How heads are trained; the defaults are TEMI's.

    clustering: `temi`, or `scan`, which as in its paper wants hidden=() and temperature=1.
    classes: c. hidden: widths of a head's layers. batch_size: pairs a step, over all workers.
    warmup_epochs: over which the learning rate rises to lr; it then falls as a cosine to final_lr.
    temperature: logits are divided by it, of student and teacher. teacher_momentum: of the mean
    over steps that the teacher is (TEMI). beta, marginal_momentum: see temi_loss. entropy_weight:
    see scan_loss. label: by the mean of matched heads, or by the head of least loss.

    Raises `ValueError` for a value outside its range.
    """

    __pydantic_config__: ClassVar[Mapping[str, Any]] = {"extra": "forbid"}  # no unknown settings

    clustering: Literal["temi", "scan"] = "temi"
    classes: int = 10
    heads: int = 50
    hidden: tuple[int, ...] = (512, 256)
    epochs: int = 200
    batch_size: int = 512
    lr: float = 1e-4
    final_lr: float = 1e-4
    warmup_epochs: int = 20
    weight_decay: float = 1e-4
    temperature: float = 0.1
    teacher_momentum: float = 0.996
    beta: float = 0.6
    marginal_momentum: float = 0.9
    entropy_weight: float = 5.0
    label: Literal["mean", "best_head"] = "mean"
    seed: int = 0

    def __post_init__(self) -> None:
        check_seed(self.seed)
        for name, choices in (("clustering", ("temi", "scan")), ("label", ("mean", "best_head"))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected {' or '.join(choices)}")
        for name, least in (
            *(("classes", 2), ("heads", 1), ("epochs", 1), ("batch_size", 2)),
            *(("warmup_epochs", 0), ("weight_decay", 0), ("entropy_weight", 0)),
        ):
            if not least <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least {least}")
        if any(width < 1 for width in self.hidden):
            raise ValueError(f"hidden={self.hidden}: expected widths from 1 up, or none")
        if not 0 <= self.final_lr <= self.lr < math.inf or self.lr == 0:
            raise ValueError(
                f"lr={self.lr}, final_lr={self.final_lr}: expected 0 ≤ final_lr ≤ lr, lr > 0"
            )
        for name in ("temperature", "beta"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)}: expected a number above 0")
        for name in ("teacher_momentum", "marginal_momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected [0, 1)")

    def learning_rate(self, step: int, steps: int) -> float:
        """At a step counted from 0, of so many an epoch."""
        rising, total = self.warmup_epochs * steps, self.epochs * steps
        if step < rising:
            return self.lr * (step + 1) / rising
        along = (step - rising) / max(1, total - rising)
        return self.final_lr + (self.lr - self.final_lr) * (1 + math.cos(math.pi * along)) / 2


class DeepClustering:
    """Student, teacher, marginal and optimiser. A step is a function of these and its arguments.

    parallel: what is called in the student's place, where gradients are averaged over workers.
    """

    def __init__(self, settings: HeadSettings, student: Heads) -> None:
        self.settings, self.student = settings, student
        self.parallel: nn.Module = student
        temi = settings.clustering == "temi"
        self.teacher = copy.deepcopy(student).requires_grad_(False) if temi else student
        heads, _, classes = student.last.shape
        self.marginal = student.last.new_full((heads, classes), 1 / classes)
        self.optimizer = torch.optim.AdamW(
            student.parameters(), settings.lr, weight_decay=settings.weight_decay, fused=True
        )

    def step(
        self,
        pairs: torch.Tensor,
        lr: float,
        *,
        rows: int | None = None,
        workers: int = 1,
        reduce: Reduce = lambda tensor: tensor,
    ) -> torch.Tensor:
        """One step on pairs (2, b, m) of neighbours; the loss of each head, (h,), no gradient.

        rows: pairs of all workers; reduce: their sum. The mean over workers of what is returned
        is the loss of the whole batch, and of gradients its gradient.
        """
        settings, b = self.settings, pairs.shape[1]
        student = self._log_probability(self.parallel, pairs)
        if settings.clustering == "temi":
            with torch.no_grad():
                teacher = self._log_probability(self.teacher, pairs)
            here = reduce(teacher.exp().sum((1, 2))) / (2 * (rows or b))
            self.marginal = moved_marginal(self.marginal, here, settings.marginal_momentum)
            loss = temi_loss(student, teacher, self.marginal, beta=settings.beta)
        else:
            self.marginal = reduce(student[:, 0].detach().exp().sum(1)) / (rows or b)
            loss = scan_loss(student, self.marginal, entropy_weight=settings.entropy_weight)
        loss = loss * (b * workers / (rows or b))
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad()
        loss.mean().backward()
        self.optimizer.step()
        if self.teacher is not self.student:
            self._follow()
        return loss.detach()

    @torch.no_grad()
    def _follow(self) -> None:
        """Moves the teacher a little towards the student."""
        parameters = self.teacher.parameters(), self.student.parameters()
        for teacher, student in zip(*parameters, strict=True):
            teacher.lerp_(student, 1 - self.settings.teacher_momentum)

    def _log_probability(self, heads: nn.Module, pairs: torch.Tensor) -> torch.Tensor:
        """(2, b, m) → (h, 2, b, c)."""
        with torch.autocast(pairs.device.type, torch.bfloat16, enabled=pairs.is_cuda):
            logits = heads(pairs.flatten(0, 1)).unflatten(1, (2, -1))
        return (logits.float() / self.settings.temperature).log_softmax(-1)

    def state(self) -> dict[str, Any]:
        return {
            "student": self.student.state_dict(),
            "teacher": self.teacher.state_dict(),
            "marginal": self.marginal,
            "optimizer": self.optimizer.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        self.student.load_state_dict(state["student"])
        self.teacher.load_state_dict(state["teacher"])
        self.marginal = state["marginal"].to(self.marginal.device)
        self.optimizer.load_state_dict(state["optimizer"])
