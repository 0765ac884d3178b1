"""The batches of an epoch where all must be of one size."""

import numpy as np

from coreset_ray.models.images import OwnedBatches


class FullBatches(OwnedBatches):
    """The same without a last batch that is not full, whose rows differ from epoch to epoch: every
    worker's share of a batch is as large, as losses need that compare images across workers.

    batch_size: rows of a batch, over all workers; a multiple of them, at most all rows.
    """

    def __init__(
        self, rows: int, batch_size: int, *, seed: int, worker: int = 0, workers: int = 1
    ) -> None:
        if batch_size % workers:
            raise ValueError(
                f"batch_size={batch_size} over {workers} workers: each takes as many images; make "
                "it a multiple"
            )
        if batch_size > rows:
            raise ValueError(f"batch_size={batch_size} of {rows} images: lower it")
        super().__init__(rows, batch_size, seed=seed, worker=worker, workers=workers)

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        order, share = np.concatenate(self.own), self.batch_size // self.workers
        count = self.rows // self.batch_size
        self.own = [order[i * share : (i + 1) * share] for i in range(count)]
        self._sizes = [self.batch_size] * count
