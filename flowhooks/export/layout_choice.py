"""Choose how the keys of an exported file are made, by what programs make of such a file."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from flowhooks.adapters.names import first_few
from flowhooks.errors import AdapterError
from flowhooks.naming import Family, Reading, families, family_of, fits

COMFYUI, DIFFUSERS, MUSUBI, SCRIPTS, LYCORIS = "ComfyUI", "Diffusers", "musubi-tuner", "sd-scripts", "LyCORIS"
#: Version of ComfyUI that DoRA was tried in.
COMFYUI_OF_DORA = "0.8.0"


@dataclass(frozen=True, kw_only=True)
class LayoutChoice:
    """Chooses the layout of a file in a dialect.

    Args:
        dialect: one of `flowhooks.export.DIALECTS`.
        kind: class name of the network that the file is for; None if it is not known.
        network: names of that network's layers; none if they are not known.
        layers: Diffusers' names of the layers that it changes.
        prefix: what Diffusers calls that network in its files.
        plain: whether all changes are LoRA.
        leave_out: whether layers that a program would drop are going to be left out.
        dora: whether changes are by a DoRA, which each program reads in the file that is made for it alone.
    """

    dialect: str
    kind: str | None
    network: Collection[str]
    layers: Sequence[str]
    prefix: str
    plain: bool
    leave_out: bool
    dora: bool = False

    @property
    def own(self) -> str:
        """Return Diffusers' own layout."""
        return f"{self.prefix}.diffusers"

    @property
    def family(self) -> Family | None:
        return family_of(self.kind, self.network)

    def layout(self) -> tuple[str, list[Reading]]:
        """Return the layout to write, and what each program that reads it makes of these layers. Raises `AdapterError`
        where the program that it is for would drop one."""
        layers = self.layers
        if self.dialect == "diffusers" or (self.dialect == "portable" and self._unknown() and self.plain):
            own = [] if self.family is None else fits(self.family, self.own, layers)
            # Others drop its magnitudes.
            own = [each for each in own if each.tool == DIFFUSERS or not self.dora]
            return self.own, own or [Reading(tool=DIFFUSERS, lost=())]
        if self.dialect == "lycoris":
            found = [] if self.family is None or self.dora else fits(self.family, "lycoris.diffusers", layers)
            return "lycoris.diffusers", [Reading(tool=LYCORIS, lost=()), *found]
        family = self.known_family()
        self._require_names(family)
        if self.dialect == "portable":
            return self._portable(family, layers)
        name = self._one(family)
        readings = fits(family, name, layers)
        if self.dialect == "comfyui" or not self.plain:
            # The layouts of other programs have no alphas, and no other kinds were tried there.
            readings = [each for each in readings if each.tool == COMFYUI]
        self._require_kept([each for each in readings if each.tool in self.meant_for()], name)
        return name, readings

    def meant_for(self) -> tuple[str, ...]:
        """Return the programs that a dialect is for, whose dropping a layer is an error."""
        if self.dialect == "portable":
            return COMFYUI, DIFFUSERS
        if self.dialect == "kohya":
            scripts = self.plain and self.family is not None and SCRIPTS in self.family.reads["lora_unet.native"]
            return (SCRIPTS if scripts else COMFYUI,)
        return {"comfyui": (COMFYUI,), "musubi": (MUSUBI,), "diffusers": (DIFFUSERS,), "lycoris": (LYCORIS,)}[
            self.dialect
        ]

    def _unknown(self) -> bool:
        return self.kind is not None and self.family is None

    def _one(self, family: Family) -> str:
        """Return the layout of a dialect that has one."""
        if self.dialect != "musubi":
            return {"comfyui": "diffusion_model.native", "kohya": "lora_unet.native"}[self.dialect]
        found = _of_musubi(family)
        if found is None:
            known = ", ".join(other.classes[0] for other in families().values() if _of_musubi(other))
            raise AdapterError(f"format 'musubi' is known for {known}; this file is for {self.kind}")
        return found

    def _portable(self, family: Family, layers: Sequence[str]) -> tuple[str, list[Reading]]:
        """Return the first layout of those that are right in most programs, ComfyUI among them."""
        names = family.portable if self.plain else ("diffusion_model.native",)
        choices = [(name, fits(family, name, layers)) for name in names]
        if not self.plain:
            choices = [(name, [each for each in found if each.tool == COMFYUI]) for name, found in choices]
        if self.leave_out:
            return choices[0]
        right = [
            (sum(not each.lost for each in found), -place, name, found)
            for place, (name, found) in enumerate(choices)
            if any(each.tool == COMFYUI and not each.lost for each in found)
        ]
        if not right:
            self._require_kept([each for each in choices[0][1] if each.tool == COMFYUI], choices[0][0])
        _, _, name, found = max(right)
        return name, found

    def _require_kept(self, readings: Sequence[Reading], layout: str) -> None:
        lost = [layer for each in readings for layer in each.lost]
        if lost and not self.leave_out:
            raise AdapterError(
                f"{readings[0].tool} would drop {first_few(lost)} of a file in layout `{layout}`. Leave "
                f"{'it' if len(lost) == 1 else 'them'} out with `--leave-out`, use format 'diffusers' for Diffusers, "
                "or train without in `adapter.target_modules`."
            )

    def known_family(self) -> Family:
        if self.kind is None:
            raise AdapterError(
                f"its header does not name the network that it is for, which format {self.dialect!r} needs. Give the "
                "pipeline's folder with `--model`."
            )
        if self.family is None:
            known = ", ".join(sorted(kind for family in families().values() for kind in family.classes))
            raise AdapterError(
                f"format {self.dialect!r} needs the model's original layer names, which are known for {known}; this "
                f"file is for {self.kind}. Use format 'diffusers', or 'lycoris'."
            )
        return self.family

    def _require_names(self, family: Family) -> None:
        unknown = [layer for layer in self.layers if family.place(layer) is None]
        if unknown:
            raise AdapterError(
                f"No original name is known for layer {first_few(unknown)} of {self.kind}. Train without it in "
                "`adapter.target_modules`, or use format 'diffusers'."
            )


def _of_musubi(family: Family) -> str | None:
    layouts = (name for name, tools in family.reads.items() if name.startswith("lora_unet.") and MUSUBI in tools)
    return next(layouts, None)
