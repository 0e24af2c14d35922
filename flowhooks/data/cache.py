"""Compute latents, masks and text conditions once and keep them on disk.

An entry is named by the content of its file, its crop, the model, and the number type. If any of them changes,
another entry is made; the old one is neither read by mistake nor removed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from flowhooks.data.dataset import CachedDataset
from flowhooks.data.encode import CaptionEncoder, Encoder, Masks, Pictures, caption_key
from flowhooks.data.encode_references import ReferenceEncoder
from flowhooks.data.records import Audit, distinct_captions
from flowhooks.data.shards import entry_key, shard_groups, shard_name
from flowhooks.data.store import CHECKED_BYTES, Entries, Entry, Store
from flowhooks.errors import DataError, ModelError, Problem
from flowhooks.reading import user_path

if TYPE_CHECKING:
    from flowhooks.data.shards import ShardEntry
    from flowhooks.probe import FlowModel


def build_cache(
    audit: Audit,
    model: FlowModel,
    cache_dir: Path | str,
    *,
    progress: bool = True,
    batch_size: int = 8,
    rebuild: bool = False,
    unprompted: bool = False,
    together: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> CachedDataset:
    """Make every missing entry, `batch_size` at a time.

    Any number of processes may build one cache at once: each makes entries that no other is making, and waits for the
    rest. Killed processes leave nothing to clean up, and the cache that is finished after them is the same to the last
    byte.

    Args:
        rebuild: make every entry of `audit` again, in a folder beside the old ones, which are replaced when all are
            there. A killed rebuild continues where it stopped.
        unprompted: let conditions hold what they are without their captions, for guidance inside a step.
        together: context manager that all processes of a run leave together, or none.

    Raises DataError naming every image that cannot be decoded or that the model turns into NaN, or the file that the
    disk refused.
    """
    records = audit.records
    sides = (side for record in records for side in record.sides)
    grids = latent_grids(model, sorted({record.geometry.size for record in records}))
    sized_captions = (
        caption_key(model, caption, record.geometry.size)
        for record in records
        for caption in distinct_captions([record])
    )
    pairs = ((mask, record.geometry) for record in records for mask in record.masks)
    wanted = [
        Wanted(Pictures(model), sides),
        Wanted(Masks(grids), pairs),
        Wanted(CaptionEncoder(model), () if model.contract.entangled else sized_captions),
    ]
    shown = ReferenceEncoder(model, unprompted) if model.contract.references else None
    if shown is not None:
        wanted.append(Wanted(shown, shown.items(records)))
    places = build_entries(
        wanted, cache_dir, progress=progress, batch_size=batch_size, rebuild=rebuild, together=together
    )
    latents, masks, captions, *more = wanted
    entries = Entries(places)
    if shown is not None:
        shown.learn_layouts(more[0].keys, places[shown.kind], entries)
    return CachedDataset(
        records=records,
        entries=entries,
        latents=latents.keys,
        masks=masks.keys,
        captions=captions.keys,
        grids=grids,
        provides=audit.provides,
        references=None if shown is None else more[0].keys,
        argument="" if shown is None else shown.argument,
        unprompted=() if shown is None else shown.unprompted,
    )


def build_entries(
    wanted: Sequence[Wanted],
    cache_dir: Path | str,
    *,
    progress: bool,
    batch_size: int,
    rebuild: bool,
    together: Callable[[], AbstractContextManager[None]],
) -> dict[str, dict[str, ShardEntry]]:
    """Make every missing entry of each kind, and return kind -> key -> its place.

    Args and errors: see :func:`build_cache`.
    """
    store = Store(user_path(cache_dir))
    work = Store(store.folder / "rebuilding") if rebuild else store
    with together():
        found = [work.find(each.encoder.kind, each.items, check=CHECKED_BYTES) for each in wanted]
        # A complete folder is only read: it may belong to somebody else, or be on a read-only disk.
        if any(each.items.keys() - there.keys() for each, there in zip(wanted, found, strict=True)):
            work.sweep()
        places = {
            each.encoder.kind: _filled(work, each, there, progress, batch_size)
            for each, there in zip(wanted, found, strict=True)
        }
    if rebuild:
        with together():
            store.replace(work)
            places = {each.encoder.kind: store.find(each.encoder.kind, each.items) for each in wanted}
    return places


def latent_grids(
    model: FlowModel, sizes: Iterable[tuple[int, int, int]]
) -> dict[tuple[int, int, int], tuple[int, ...]]:
    """Return height, width and frames of samples -> (h, w) of their latents, or (t,); the model then knows these sizes.

    Raises DataError naming every size that the pipeline refuses or rounds to another.
    """
    grids, problems = {}, []
    for height, width, frames in sizes:
        try:
            grids[height, width, frames] = _fitting(model.at(height, width, frames))
        except (ValueError, ModelError) as error:  # the pipeline's own check of its arguments, and ours
            if model.sound is not None:
                message = f"clips of {model.sound.seconds(width):g} s: {error}; set `duration` to a length it makes"
                problems.append(Problem(f"the pipeline refuses {message}"))
                continue
            what = f"videos of {frames} frames of {width}x{height}" if frames > 1 else f"images of {width}x{height}"
            remedy = "set `num_frames` or `resolution`" if frames > 1 else "set `resolution`"
            problems.append(
                Problem(
                    f"the pipeline refuses {what}: {error}; {remedy} to a size it takes; where sizes follow the "
                    "aspect, `resolution_multiple` is what their edges are rounded to"
                )
            )
    if problems:
        raise DataError(problems)
    return grids


def _fitting(model: FlowModel) -> tuple[int, ...]:
    if model.sound is not None:
        from flowhooks.probe.sound import verify_length

        verify_length(model)
    else:
        from flowhooks.probe.pictures import verify_size

        verify_size(model)
    return model.layout(**model.size).mask_grid


class Wanted:
    """Holds the items of one kind, their keys, and what is known of each entry."""

    def __init__(self, encoder: Encoder, items: Iterable[Any]):
        self.encoder = encoder
        abouts = {item: encoder.about(item) for item in dict.fromkeys(items)}
        self.keys = {item: entry_key(about) for item, about in abouts.items()}
        # One content under several names is one entry.
        self.items = {key: item for item, key in self.keys.items()}
        self.abouts = {key: abouts[item] for key, item in self.items.items()}

    def lots(self, there: Mapping[str, Any]) -> list[tuple[str, ...]]:
        """Return the missing keys in the portions that become shards. Images of one size are next to each other."""
        missing = self.items.keys() - there.keys()
        return shard_groups(sorted(missing, key=lambda key: (_size(self.abouts[key]), key)))


def _size(about: Mapping[str, Any]) -> tuple[int, ...]:
    geometry = about.get("geometry", {})
    return len(geometry.get("shown", ())), geometry.get("height", 0), geometry.get("width", 0)


def _filled(
    store: Store, wanted: Wanted, places: dict[str, ShardEntry], progress: bool, batch_size: int
) -> dict[str, ShardEntry]:
    """Make the entries that are not in `places`, and return the place of every entry."""
    encoder = wanted.encoder
    todo = wanted.lots(places)
    if not todo:
        return places
    with tqdm(total=sum(map(len, todo)), desc=encoder.title, unit="", disable=not progress) as bar:
        # First the shards that no other process is making; then wait for the others, and make what they leave unmade.
        for wait in (False, True):
            todo = [lot for lot in todo if not _made(store, wanted, lot, wait, batch_size, bar)]
    if encoder.problems:
        raise DataError(encoder.problems)
    return store.find(encoder.kind, wanted.items)


def _made(store: Store, wanted: Wanted, lot: Sequence[str], wait: bool, batch_size: int, bar: tqdm) -> bool:
    """Make a shard, unless it exists already. Returns False if another process is making it."""
    kind, name = wanted.encoder.kind, shard_name(lot)
    claim = store.claim(kind, name, wait=wait)
    if claim is None:
        return False
    with claim:
        if store.path(kind, name).exists():
            bar.update(len(lot))
            return True
        entries: dict[str, Entry] = {}
        for at in range(0, len(lot), batch_size):
            chunk = [wanted.items[key] for key in lot[at : at + batch_size]]
            entries |= {wanted.keys[item]: tensors for item, tensors in wanted.encoder.encode(chunk)}
            bar.update(len(chunk))
        # A shard with a missing entry would have another name; its entries are made again when the fault is fixed.
        if len(entries) == len(lot):
            store.write(claim, kind, entries, wanted.abouts)
    return True
