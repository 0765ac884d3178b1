"""The images that are chosen already, which a configuration names."""

import pyarrow as pa

from coreset_ray.config import Config
from coreset_ray.io.filesystem import locate
from coreset_ray.io.tables import read_table
from pipelines.inputs import uri_of


def kept_already(config: Config) -> tuple[str, ...]:
    """Their uids, in their order; one that is named again counts once. `ValueError` where
    select.keep is no manifest."""
    told = config.select.keep
    if told is None:
        return ()
    place = locate(uri_of(config, told))
    if not place.exists():
        raise ValueError(f"select.keep={told!r} does not exist: give a manifest.parquet")
    try:
        uids = read_table(place, ["uid"])["uid"].to_pylist()
    except (pa.ArrowInvalid, KeyError) as error:
        raise ValueError(
            f"select.keep={told!r} is no manifest: give a Parquet file with a column uid, such as "
            "the manifest.parquet of a selection"
        ) from error
    return tuple(dict.fromkeys(uids))
