"""Latents, masks and text conditions, computed once and kept on disk.

An entry is named by the content of its file, how it is cut, the model, and the number type. Change any of them and
another entry is made; the old one is never read by mistake, nor removed.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from flowhooks.data.dataset import CachedDataset, Entries
from flowhooks.data.encode import Captions, Encoder, Masks, Pictures, told_at
from flowhooks.data.records import Audit
from flowhooks.data.sizes import latent_grids
from flowhooks.data.store import DamagedEntry, Store, entry_key
from flowhooks.errors import DataError, Problem

if TYPE_CHECKING:
    from flowhooks.probe import FlowModel


def build_cache(
    audit: Audit, model: FlowModel, cache_dir: Path | str, *, progress: bool = True, batch_size: int = 8
) -> CachedDataset:
    """Make every entry that is missing and check every entry that is there, `batch_size` at a time.

    Several processes may build one cache at once; it is quicker to let the first one finish before the others start.

    Raises DataError naming every image that cannot be decoded or that the model turns into NaN, every cache file that
    holds NaN, or the file that the disk refused.
    """
    entries = Entries(Store(Path(cache_dir).expanduser()))
    entries.store.sweep()
    records = audit.records
    sides = ((picture, record.geometry) for record in records for picture in (record.image, record.rejected) if picture)
    sizes = sorted({record.geometry.size for record in records})
    grids = latent_grids(model, sizes)
    latents = _fill(entries, Pictures(model), sides, progress, batch_size)
    told = (
        (told_at(model, "", size) for size in sizes),
        (told_at(model, record.caption, record.geometry.size) for record in records),
    )
    pairs = ((mask, record.geometry) for record in records for mask in record.masks)
    return CachedDataset(
        records=records,
        entries=entries,
        latents=latents,
        masks=_fill(entries, Masks(grids), pairs, progress, batch_size),
        captions=_fill(entries, Captions(model), chain(*told), progress, batch_size),
        grids=grids,
        provides=audit.provides,
    )


def _fill(entries: Entries, encoder: Encoder, items: Iterable[Any], progress: bool, batch_size: int) -> dict[Any, str]:
    abouts = {item: encoder.about(item) for item in dict.fromkeys(items)}
    keys = {item: entry_key(about) for item, about in abouts.items()}
    problems: list[Problem] = []
    # One content under several names is one entry.
    items_by_key = {key: item for item, key in keys.items()}
    waiting = [item for key, item in items_by_key.items() if not _is_there(entries, encoder.kind, key, problems)]
    with tqdm(total=len(waiting), desc=encoder.title, unit="", disable=not (progress and waiting)) as bar:
        for at in range(0, len(waiting), batch_size):
            chunk = waiting[at : at + batch_size]
            for item, tensors in encoder.encode(chunk):
                entries.add(encoder.kind, keys[item], tensors, abouts[item])
            bar.update(len(chunk))
    problems += encoder.problems
    if problems:
        raise DataError(problems)
    return keys


def _is_there(entries: Entries, kind: str, key: str, problems: list[Problem]) -> bool:
    try:
        return entries.find(kind, key) is not None
    except DamagedEntry as error:
        warnings.warn(f"the cache entry {error} is damaged; it is made again", stacklevel=4)
        return False
    except DataError as error:
        problems += error.problems
        return True
