"""Options and declarations that hooks which generate samples share. Free of torch; their class is in ``prompted``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from flowhooks.documents.spec import option
from flowhooks.hooks.spec import HookSpec
from flowhooks.sampling.prompts import by_task, read_prompts


class PromptedSpec(HookSpec):
    """Generates samples of prompts, in groups of one prompt. A source derives from it, beside its own folder."""

    words = {"needs": "`data:image` (without `prompts`)"}

    prompts: str | Sequence[Any] | None = option(
        "A `.jsonl` file of objects with the key `prompt` and columns beside it, a text file with one prompt a "
        "line, or a list of either; relative to the working directory. `images` beside a prompt names its references, "
        "relative to the file. `null` takes the captions and references of the data.",
        default=None,
        format="path",
        items={"type": ["string", "object"]},
        minItems=1,
        minLength=1,
    )
    task_column: str | None = option(
        "A column of the prompts. Micro-batches take turns in its values; `null` mixes tasks.",
        default=None,
        minLength=1,
    )
    group_size: int = option("Images of each prompt.", default=1, minimum=1, maximum=65_536)

    @property
    def of_data(self) -> set[str]:
        """What the hook needs of the data."""
        return set() if self.prompts is not None else {"data:image"}

    def faults(self) -> Iterator[tuple[str, str]]:
        if self.prompts is None and self.task_column is not None:
            yield (
                "task_column",
                "names a column of `prompts`, which this run has none of; name `prompts`, or leave it out",
            )

    def refusal(self) -> str | None:
        if self.prompts is None:
            return None
        try:
            by_task(read_prompts(self.prompts), self.task_column)
        except ValueError as error:
            return str(error)
        return None
