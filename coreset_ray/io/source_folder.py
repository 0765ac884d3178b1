"""A folder of images as a source: class folders become `.cls`, original bytes stay untouched."""

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from coreset_ray.io.shards import IMAGE_EXTENSIONS
from coreset_ray.io.source_sample import (
    Sample,
    Source,
    Split,
    is_member_extension,
    read_bytes,
    safe_keys,
)

SPLIT_NAMES = ("train", "val", "test")


@dataclass(frozen=True)
class _Image:
    """An image that was found but not read: what its sample will hold."""

    key: str
    files: dict[str, Path]  # extension -> file
    label: int | None

    def read(self) -> Sample:
        members = {extension: read_bytes(path) for extension, path in self.files.items()}
        if self.label is not None:
            members["cls"] = str(self.label).encode()
        return Sample(self.key, members)


def folder_samples(root: str | Path) -> Iterator[Sample]:
    """The samples of `open_folder(root)`, split after split, in the order of their paths."""
    for split in open_folder(root).splits.values():
        yield from split


def open_folder(root: str | Path) -> Source:
    """Find the images below `root`; no image is read yet.

    Images directly in `root` have no class. Otherwise each direct sub-folder that holds images
    is a class, at any depth below it, and the index of its sorted name is the `.cls` member.
    Sub-folders named only train, val or test are splits, with one class index for all; without
    them everything is `train`. Other files of an image's stem travel with it. Hidden files are
    passed over; `ignored` counts the files that belong to no image.

    ValueError: a missing, unreadable or empty folder, images both with and without a class
    folder, a symbolic link that leaves `root`, two files for one member.
    """
    base = _existing(root)
    files = list(_files(base, base))
    images = [path for path in files if _extension(path) in IMAGE_EXTENSIONS]
    loose = any(len(path.parts) == 1 for path in images)
    names = () if loose else _split_names(base)
    depth = 1 if names else 0
    classes = _classes(base, images, depth)
    sidecars = _sidecars(files)

    found: dict[str, list[_Image]] = {name: [] for name in names or ("train",)}
    used: set[Path] = set()
    keys = safe_keys(path.with_suffix("").parts for path in images)
    for key, path in zip(keys, images, strict=True):
        beside = [path, *sidecars.get(path.with_suffix(""), ())]
        label = classes[path.parts[depth]] if classes else None
        members = _members(base, beside, labelled=label is not None)
        found[path.parts[0] if names else "train"].append(_Image(key, members, label))
        used.update(beside)
    for name, group in found.items():
        if not group:
            raise ValueError(
                f"no images in {str(base / name if names else base)!r}: a source holds files "
                f"ending in {', '.join(sorted(IMAGE_EXTENSIONS))}; remove the folder or fill it"
            )
    splits = {name: _split(group) for name, group in found.items()}
    return Source(splits, tuple(classes), ignored=len(files) - len(used))


def _split(images: list[_Image]) -> Split:
    return Split(len(images), lambda i: images[i].read())


def _existing(root: str | Path) -> Path:
    path = Path(root)
    if not path.is_dir():
        what = "is not a folder" if path.exists() else "does not exist"
        raise ValueError(f"source {str(root)!r} {what}: give a folder of images")
    return path.resolve()


def _files(folder: Path, base: Path) -> Iterator[Path]:
    """Every file below `folder`, relative to `base`, sorted, without hidden ones."""
    try:
        with os.scandir(folder) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
    except OSError as error:
        raise ValueError(
            f"cannot list {str(folder)!r} ({error.strerror}): check that you may read it"
        ) from error
    for entry in entries:
        path = Path(entry.path)
        if entry.name.startswith("."):
            continue
        if entry.is_symlink():
            _check_link(path, base)
        if entry.is_dir(follow_symlinks=False):
            yield from _files(path, base)
        elif entry.is_file():
            yield path.relative_to(base)


def _check_link(link: Path, base: Path) -> None:
    try:
        inside = link.resolve(strict=True).is_relative_to(base)
    except (OSError, RuntimeError):  # a link to nothing, a loop of links
        inside = False
    if not inside:
        raise ValueError(
            f"symbolic link {str(link)!r} leads out of the source {str(base)!r} or to nothing and "
            "is not followed: replace it by a copy, or remove it"
        )


def _split_names(base: Path) -> tuple[str, ...]:
    """The names of the split folders in `base`; none if any other folder lies beside them."""
    folders = {path.name for path in base.iterdir() if path.is_dir() and path.name[0] != "."}
    if not folders <= set(SPLIT_NAMES):
        return ()
    return tuple(name for name in SPLIT_NAMES if name in folders)


def _classes(base: Path, images: list[Path], depth: int) -> dict[str, int]:
    """Class name -> index, of folders `depth` below `base`; empty where there are no classes."""
    plain = [path for path in images if len(path.parts) == depth + 1]
    classed = [path for path in images if len(path.parts) > depth + 1]
    if plain and classed:
        raise ValueError(
            f"{str(base)!r} mixes images with and without a class folder (such as "
            f"{str(classed[0])!r} and {str(plain[0])!r}): move them all into class folders, or none"
        )
    return {name: i for i, name in enumerate(sorted({path.parts[depth] for path in classed}))}


def _sidecars(files: Iterable[Path]) -> dict[Path, list[Path]]:
    """Path without extension -> the files of that stem that are no images."""
    beside: dict[Path, list[Path]] = defaultdict(list)
    for path in files:
        extension = _extension(path)
        if extension not in IMAGE_EXTENSIONS and is_member_extension(extension):
            beside[path.with_suffix("")].append(path)
    return beside


def _members(base: Path, files: list[Path], *, labelled: bool) -> dict[str, Path]:
    members: dict[str, Path] = {}
    for path in files:
        extension = _extension(path)
        if extension in members or (labelled and extension == "cls"):
            other = members.get(extension, "its class folder")
            raise ValueError(
                f"{str(base / path)!r} and {str(other)!r} would both be the member "
                f"{extension!r} of one sample: rename or remove one"
            )
        members[extension] = base / path
    return members


def _extension(path: Path) -> str:
    return path.suffix.removeprefix(".").lower()
