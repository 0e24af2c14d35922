"""Inspect the images of a data set one after another, and keep the faults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from flowhooks.data.assets import Asset, why
from flowhooks.data.files import Medium
from flowhooks.data.findings import Findings, count, some
from flowhooks.data.images import BadImage
from flowhooks.data.inspection import Picture, inspect_image, inspect_sound


@dataclass(frozen=True, slots=True)
class Fault:
    """Takes the place of an image that cannot be used, with the reason."""

    reason: str


class Inspector:
    """Remembers every image, so that one that is in several rows is read once.

    Args:
        medium: what the files are; videos are accepted beside images.
    """

    def __init__(self, medium: Medium = "image") -> None:
        self._medium: Medium = medium
        self._seen: dict[Asset, Picture | str] = {}
        self._faults: list[str] = []
        self._profiles: dict[str, str] = {}

    def look(self, asset: Asset | Fault, name: str) -> Picture | None:
        """Return what is known of an image, called `name` in messages; None if it cannot be used."""
        seen = asset.reason if isinstance(asset, Fault) else self._seen.get(asset)
        if seen is None:
            assert not isinstance(asset, Fault)
            seen = self._seen[asset] = _inspect(asset, self._medium)
        if isinstance(seen, str):
            self._faults.append(f"{name} {seen}")
            return None
        if seen.profile_fault is not None:
            self._profiles.setdefault(name, seen.profile_fault)
        return seen

    def report(self, where: str, found: Findings) -> None:
        """Report the faults since the last report as one problem at the JSON path `where`, and colour profiles that are
        ignored as a warning."""
        remedy = "replace them or take them out of the data set; nothing was changed"
        found.listing(where, self._faults, "files that cannot be used", remedy)
        if self._profiles:
            named = some([f"{name} ({fault})" for name, fault in self._profiles.items()])
            found.warnings.append(
                f"colour profiles that cannot be used ({len(self._profiles):,}): {named}; these files are read as sRGB"
            )
        self._faults, self._profiles = [], {}


def _inspect(asset: Asset, medium: Medium) -> Picture | str:
    try:
        return inspect_sound(asset) if medium == "sound" else inspect_image(asset, clips=medium == "video")
    except BadImage as error:
        return str(error)
    except OSError as error:
        return f"cannot be read ({why(error)})"


def note_copies(name: str, images: Mapping[str, Picture], found: Findings) -> None:
    """Note files that have the content of another file of the same set."""
    first: dict[str, str] = {}
    copies = []
    for stem, picture in images.items():
        original = first.setdefault(picture.digest, stem)
        if original != stem:
            copies.append(f"{stem} = {original}")
    if copies:
        found.notes.append(f"{name}: {count(len(copies), 'file')} with the content of another: {some(copies)}")
