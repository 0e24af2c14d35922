"""Tell by their names which arguments of a pipeline's call take images. Free of torch."""

from __future__ import annotations


def takes_images(name: str) -> bool:
    """Return whether an argument of this name takes images of a sample: ``image``, ``last_image``. Those for an
    IP-Adapter do not count, which have an effect only where one is loaded."""
    return (name in ("image", "images") or name.endswith("_image")) and "ip_adapter" not in name
