"""What hooks that generate samples share: which prompts a process samples, and which of them in one call."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from flowhooks.data.given_images import NamedImages
from flowhooks.data.sampler import batch_plan
from flowhooks.errors import ModelError
from flowhooks.hooks.prompted_spec import PromptedSpec
from flowhooks.kernel.hook import Hook
from flowhooks.kernel.session import Session
from flowhooks.kernel.step import Step
from flowhooks.probe.recorder import freed_once
from flowhooks.probe.references import picture_argument
from flowhooks.sampling.encoded import EncodedPrompts
from flowhooks.sampling.prompts import Prompt, by_task, read_prompts
from flowhooks.sampling.rollout import PipelineSampler
from flowhooks.sampling.steps import Sampler


class Prompted(PromptedSpec, Hook, ABC):
    """Owns the prompts and the pipeline's sampler. A subclass has the slot, and says by :meth:`made_sampler` how it
    samples.

    Raises:
        ModelError: on attaching, a pipeline without ``encode_prompt``.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        #: How the pipeline is called and stepped.
        self.sampling = self.made_sampler()
        #: The prompts to sample, None for those of the data.
        self.prompt_list = None if self.prompts is None else read_prompts(self.prompts)
        self._tasks = by_task(self.prompt_list, self.task_column) if self.prompt_list is not None else []
        self._shapes: dict[str, Any] = {}

    @abstractmethod
    def made_sampler(self) -> Sampler:
        """Return how the pipeline is called and stepped, by the options."""

    @contextmanager
    def attached(self, session: Session) -> Iterator[None]:
        model: Any = session.model
        if self.prompt_list is not None:
            self.prompt_list = [_with_images(prompt, model) for prompt in self.prompt_list]
            self._tasks = by_task(self.prompt_list, self.task_column)
        self.player = PipelineSampler(model, EncodedPrompts(model.pipe, session.prompt_cache))
        self._shapes = self.player.prepare(self.prompt_list or (), self.sampling)
        self._batch_size = session.batch_size
        yield

    def drawn_prompts(self, step: Step, turn: int) -> list[Prompt]:
        """Return the prompts of this process's rows, each repeated for every member of its group.

        Args:
            turn: counts rollouts from 0.
        """
        if self.prompt_list is None:
            if step.given is None or not step.given.prompts:
                raise ValueError("the batch holds no `prompts`; give them to Batch(prompts=...) or to the hook")
            records = step.batch.records or ({},) * len(step.batch.prompts)
            shown = step.batch.references or ({},) * len(step.batch.prompts)
            prompts = [Prompt(*each) for each in zip(step.batch.prompts, records, shown, strict=True)]
        else:
            draws, task = step.draws, self._tasks[turn % len(self._tasks)]
            plan = batch_plan(
                len(task), self._batch_size, draws.seed, draws.world_size, draws.rank, turn // len(self._tasks)
            )
            prompts = [task[i] for i in next(plan)]
        return [prompt for prompt in prompts for _ in range(self.group_size)]

    def together(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Return rows that can be sampled in one call. Rows of one prompt with references are sampled apart from
        others: pipelines take the references of one sample."""
        groups: dict[Any, list[int]] = {}
        with freed_once(self.player.model.pipe):
            for i, prompt in enumerate(prompts):
                key = i // self.group_size if prompt.images else self._shape(prompt.text)
                groups.setdefault(key, []).append(i)
        return list(groups.values())

    def _shape(self, prompt: str) -> Any:
        if prompt not in self._shapes:
            self._shapes[prompt] = self.player.shapes(prompt, self.sampling)
        return self._shapes[prompt]


def _with_images(prompt: Prompt, model: Any) -> Prompt:
    """Return the prompt with the images that its row names, by pipeline argument.

    Raises:
        ModelError: the model was probed without references.
    """
    if prompt.given is None:
        return prompt
    named = model.contract.references
    if not named:
        raise ModelError(
            f"the prompt {prompt.text!r} names references, and {model.contract.pipeline} was probed without; name "
            "their arguments in `references` of `probe`"
        )
    argument = named[0] if len(named) == 1 else picture_argument(model.pipe)
    return replace(prompt, images=NamedImages(prompt.given, argument, f"the prompt {prompt.text!r}"))
