"""Names of layers in other tools, as data: ``names.json``. Free of torch.

A family of networks is added there, and by a row in ``tests/naming``.
"""

from __future__ import annotations

from flowhooks.naming.layouts import LAYOUTS, NETWORKS, FileLayout, Reading, fits, tool_version, verified_on
from flowhooks.naming.rules import (
    Family,
    NativePlace,
    TimeEmbedding,
    families,
    family_of,
    places_of,
    refused_pipelines,
    tencent_name,
)

__all__ = [
    "LAYOUTS",
    "NETWORKS",
    "Family",
    "FileLayout",
    "NativePlace",
    "Reading",
    "TimeEmbedding",
    "families",
    "family_of",
    "fits",
    "places_of",
    "refused_pipelines",
    "tencent_name",
    "tool_version",
    "verified_on",
]
