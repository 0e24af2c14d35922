"""Read images that a user names beside prompts, such as those of validation, as arguments of the pipeline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flowhooks.data.assets import FileAsset, why
from flowhooks.data.images import BadImage
from flowhooks.data.records import Reference
from flowhooks.data.transform import load_picture
from flowhooks.errors import ConfigError, Problem
from flowhooks.reading import user_path
from flowhooks.sampling.prompts import Given, by_argument


def open_images(given: Given, argument: str, where: str | None = None) -> dict[str, Any]:
    """Return pipeline argument -> image, or a list of several.

    Args:
        argument: the pipeline argument that is meant where none is named.
        where: JSON path that messages name.

    Raises:
        ConfigError: a file cannot be read as an image.
    """
    found: dict[str, Any] = {}
    for name, paths in by_argument(given, argument).items():
        images = [_opened(user_path(path), where) for path in paths]
        found[name] = images[0] if len(images) == 1 else images
    return found


def _opened(path: Path, where: str | None) -> Any:
    try:
        return load_picture(FileAsset(path).read(), None)
    except BadImage as error:
        raise ConfigError(Problem(str(error), str(path), where)) from None
    except OSError as error:
        raise ConfigError(Problem(f"cannot be read: {why(error)}", str(path), where)) from None


class NamedImages(Mapping[str, Any]):
    """Maps pipeline arguments to images of these files, or to lists of several; each is opened when it is asked for.

    Args:
        argument: the pipeline argument of those that name none.
        where: what messages name.
    """

    def __init__(self, given: Given, argument: str, where: str):
        self._named, self._where = by_argument(given, argument), where

    def __getitem__(self, argument: str) -> Any:
        return open_images({argument: self._named[argument]}, argument, self._where)[argument]

    def __iter__(self) -> Iterator[str]:
        return iter(self._named)

    def __len__(self) -> int:
        return len(self._named)


class ShownImages(Mapping[str, Any]):
    """Maps pipeline arguments to the images of a sample's references, or to lists of several; each is opened when it is
    asked for.

    Args:
        references: of the sample.
        argument: the pipeline argument of those that name none.
    """

    def __init__(self, references: Sequence[Reference], argument: str):
        self._by_argument: dict[str, list[Reference]] = {}
        for each in references:
            self._by_argument.setdefault(each.argument or argument, []).append(each)

    def __getitem__(self, argument: str) -> Any:
        images = [
            each.text if each.image is None else load_picture(each.image.asset.read(), each.geometry)
            for each in self._by_argument[argument]
        ]
        return images[0] if len(images) == 1 else images

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_argument)

    def __len__(self) -> int:
        return len(self._by_argument)
