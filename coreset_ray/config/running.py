"""Sections on the cluster and on object stores."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from coreset_ray.config.section import Positive, Section, changed
from coreset_ray.core.address import endpoint_of


class WaitConfig(Section):
    """What the cluster has before a stage starts: an autoscaling one is asked for it, and stages
    that use no GPU wait for CPUs alone. minutes: after which the stage fails."""

    cpus: Positive = 1
    gpus: Annotated[int, Field(ge=0)] = 0
    minutes: Annotated[float, Field(gt=0)] = 30.0

    @property
    def cpus_alone(self) -> "WaitConfig":
        return self.model_copy(update={"gpus": 0})


class ComputeConfig(Section):
    """Speed only, but for train_workers: processes that share a training, each of which draws
    batches of its own, so that another number is another result. address: a Ray cluster (default:
    RAY_ADDRESS, else a running one, else a local Ray). encoders: encoder actors (default: as the
    GPUs, else the CPUs, allow).
    encoder_gpus: GPUs of one actor, a fraction puts several on a GPU. score_workers: processes
    that share the draws (default: one a CPU). row_shards: parts
    in which each of them holds the pool's rows, each in a process of its own. scratch: a folder
    of each machine for the pool's columns, $NAME/… where it lies elsewhere on each (default: in
    the workspace where that is a local folder). wait_for: nodes of a cluster that starts them on
    demand."""

    address: str | None = None
    wait_for: WaitConfig = WaitConfig()
    device: Literal["auto", "cpu", "cuda"] = "auto"
    batch_size: Positive = 64
    encoders: Positive | None = None
    encoder_gpus: Annotated[float, Field(gt=0, le=1)] = 1.0
    score_workers: Positive | None = None
    row_shards: Positive | None = None
    scratch: str | None = None
    train_workers: Positive = 1
    loader_workers: Annotated[int, Field(ge=0)] = 0


class StorageConfig(Section):
    """Object stores: for every path of this configuration that lies in one and does not say
    otherwise in its own query (s3://bucket/prefix?region=eu-west-1). endpoint: a server other than
    the provider's, such as http://minio:9000. region: of the buckets, by default found out.
    anonymous: without credentials; else they come from the environment or the platform, never
    from here. attempts: of a request that fails in a way that may pass, by default 8, with growing
    pauses. connect_timeout: seconds to a connection (10); request_timeout: seconds without a
    byte (30). None of it is part of what identifies a result."""

    endpoint: str | None = None
    region: Annotated[str, Field(pattern=r"^[A-Za-z0-9-]+$")] | None = None
    anonymous: bool = False
    attempts: Annotated[int, Field(ge=1, le=100)] | None = None
    connect_timeout: Annotated[float, Field(gt=0, le=3600)] | None = None
    request_timeout: Annotated[float, Field(gt=0, le=3600)] | None = None

    @model_validator(mode="after")
    def _endpoint_is_one(self) -> "StorageConfig":
        if self.endpoint is not None:
            endpoint_of(self.endpoint)
        return self

    def options(self) -> dict[str, str]:
        """What is set, as the query of a URI says it."""
        told = {k: getattr(self, k) for k in changed(self, tuple(type(self).model_fields))}
        return {
            k: "true" if v is True else f"{v:g}" if isinstance(v, float) else str(v)
            for k, v in told.items()
        }
