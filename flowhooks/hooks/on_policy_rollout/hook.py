"""Trains on the student's own samples: a rollout of the stock pipeline, visited state by state (arXiv 2605.08063)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

from flowhooks.batch import Batch, NoCondition
from flowhooks.errors import ModelError
from flowhooks.hooks.on_policy_rollout import OnPolicyRolloutSpec
from flowhooks.hooks.prompted import Prompted
from flowhooks.kernel.plan import MAIN_VIEW
from flowhooks.kernel.session import Session
from flowhooks.kernel.step import Step
from flowhooks.kernel.view import Chunk, Sigma, View, ViewState
from flowhooks.sampling.prompts import Prompt, last_steps, visited_places
from flowhooks.sampling.rollout import PipelineSampler
from flowhooks.sampling.states import Rollout, RolloutState
from flowhooks.sampling.steps import ODE, SDE, Sampler, Transition
from flowhooks.transfer import picked, sent, whole_numbers

UNIFORM, KL, KL_NODT, X_T, X0, DT = "uniform", "kl", "kl_nodt", "x_t", "x0", "dt"


class RolloutSource(Protocol):
    """The part of the session's source that hooks which learn from rollouts use; see :class:`OnPolicyRollout`."""

    prompt_list: list[Prompt] | None
    group_size: int
    sampling: Sampler
    sigma_max: float | None
    early_visits: int
    from_the_end: bool
    player: PipelineSampler

    def end_of(self, rollout: Rollout) -> list[int]: ...


def visit_weight(kind: str, step: Transition, noise_level: float, steps: int) -> float:
    """Return the weight W of a visited step from s to n, one of ``steps``, with ``D = n - s``: ``uniform`` 1, ``kl``
    the factor ``w`` of the exact KL divergence of two SDE steps, ``kl_nodt`` ``|D| w``, ``x_t`` ``D^2``, ``x0``
    ``s^2``, ``dt`` ``steps |D|``, whose mean over all of them is 1."""
    by = step.end - step.start
    if kind == UNIFORM:
        return 1.0
    if kind == DT:
        return -by * steps
    if kind == X_T:
        return by**2
    if kind == X0:
        return step.start**2
    weight = Sampler(kind=SDE, noise_level=noise_level).step(0, step.start, step.end).kl_weight
    return weight if kind == KL else -by * weight


@dataclass(frozen=True, kw_only=True, eq=False)
class Visited:
    """A state of a rollout in the pipeline's own loop: predictions on it are guided as the pipeline guides them."""

    visit: RolloutState

    @property
    def shape(self) -> torch.Size:
        return self.visit.state.shape

    def noisy(self, time: Sigma) -> Tensor:
        return sent(self.visit.state, self.visit.player.model.device)

    def fits(self, other: ViewState) -> bool:
        return other is self

    def predict(self, model: Any, role: str, views: Sequence[View]) -> Sequence[Tensor]:
        return [self.visit.velocity(role)]


def visit_of(view: View) -> RolloutState:
    """Return the visited state of a view of a rollout."""
    assert isinstance(view.state, Visited), f"view {view.name!r} is no visited state"
    return view.state.visit


class OnPolicyRollout(OnPolicyRolloutSpec, Prompted):
    """Generates images with the student and yields each visited state as a chunk with the view ``main``.

    Raises:
        ModelError: on attaching, a pipeline without ``encode_prompt``; in a step, no state to visit.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.from_the_end = self.last_steps is not None or self.sigma_max is not None
        stochastic = None if self.sampler == ODE else self.sampling.window
        self.places = visited_places(self.num_inference_steps, self.train_fraction, stochastic)
        self.visit_count = min(self.visits or len(self.places), len(self.places))

    def made_sampler(self) -> Sampler:
        return Sampler(
            kind=self.sampler,
            steps=self.num_inference_steps,
            noise_level=self.noise_level,
            window=None if self.window is None else (self.window[0], self.window[1]),
            arguments=dict(self.pipeline_arguments or {}),
        )

    @contextmanager
    def attached(self, session: Session) -> Iterator[None]:
        model: Any = session.model
        layout = model.layout(**model.size)
        self._partly = bool(model.contract.references) and (layout.seen is not None or not layout.vae.whole)
        with super().attached(session):
            yield

    def source(self, step: Step) -> list[Chunk]:
        if not step.training:
            raise ValueError("samples that a run generates cannot be held out; set validation.holdout to 0")
        prompts = self.drawn_prompts(step, step.draws.micro_step)
        draws = step.draws
        first = draws.rank * len(prompts)
        seeds = [draws.seed_of("rollout", first + i) for i in range(len(prompts))]
        chunks: list[Chunk] = []
        for rows in self._parts(prompts, step):
            some = [prompts[i] for i in rows]
            request = [prompt.text for prompt in some], [seeds[i] for i in rows], self.sampling
            images = dict(some[0].images)
            if self.from_the_end:
                every = range(self.sampling.steps)
                rollout = self.player.draw(*request, keep=every, keep_velocities=every, images=images)
                places = self._from_the_end(rollout, step)
                rollout = rollout.keep_steps(list(places))
            else:
                places = {place: 1.0 for place in self._at_random(step)}
                # A loss with a training adapter needs to know what the images were sampled by.
                beside = step.session.training_adapter is not None and self.sampler != ODE
                rollout = self.player.draw(
                    *request,
                    keep=_kept(list(places)),
                    keep_velocities=list(places) if beside else (),
                    images=images,
                )
            step.forwards += self.sampling.steps
            rollout = rollout.parked() if self.offload_states else rollout
            mask = None if self.prompt_list is not None or step.given is None else step.given.mask
            if mask is not None:
                mask = picked(mask, [i // self.group_size for i in rows])
            chunks += self._chunks(rollout, some, places, len(rows) / len(prompts), step, mask)
        if not chunks:
            raise ModelError("no visited step calls the trained network; visit other steps")
        return chunks

    def end_of(self, rollout: Rollout) -> list[int]:
        """Return the indices of the steps that ``last_steps`` or ``sigma_max`` select."""
        return last_steps([step.start for step in rollout.transitions], self.last_steps, self.sigma_max)

    def _at_random(self, step: Step) -> list[int]:
        order = torch.randperm(len(self.places), generator=step.draws.shared("visits"))[: self.visit_count]
        return sorted(self.places[int(i)] for i in order)

    def _from_the_end(self, rollout: Rollout, step: Step) -> dict[int, float]:
        """Return the indices of the steps at the end and of some before them, each with how many steps it
        represents."""
        end = self.end_of(rollout)
        if not end:
            starts = ", ".join(f"{each.start:.3g}" for each in rollout.transitions)
            raise ModelError(f"no step starts at or below `sigma_max` {self.sigma_max}; they start at {starts}")
        order = torch.randperm(end[0], generator=step.draws.shared("visits"))[: self.early_visits]
        early = sorted(int(i) for i in order)
        return {**{place: end[0] / len(early) for place in early}, **{place: 1.0 for place in end}}

    def _chunks(
        self,
        rollout: Rollout,
        prompts: Sequence[Prompt],
        places: Mapping[int, float],
        part: float,
        step: Step,
        mask: Tensor | None,
    ) -> list[Chunk]:
        """Yields one chunk for each visited state.

        Args:
            part: this group's fraction of the batch.
            places: index of a step -> how many unvisited states it represents.
            mask: ``[B, 1, h, w]`` of the samples of the data, for rewards that compare; None without.
        """
        device = step.model.device
        batch = Batch(
            clean=sent(rollout.final, device),
            condition=self._condition(prompts),
            mask=mask,
            files=tuple(prompt.text for prompt in prompts),
            prompts=tuple(prompt.text for prompt in prompts),
            records=tuple(prompt.record for prompt in prompts),
            references=tuple(prompt.images for prompt in prompts) if prompts[0].images else (),
            size=(self.player.size["height"], self.player.size["width"]),
        )
        low, high = step.model.sigma_range
        found = []
        total = sum(places.values())
        for place, count in places.items():
            visit = RolloutState(player=self.player, rollout=rollout, index=place)
            sigma = visit.transition.start
            if not low <= sigma <= high:
                continue
            view = View(
                name=MAIN_VIEW,
                state=Visited(visit=visit),
                time=Sigma(level=torch.full((len(prompts),), sigma, device=device)),
                condition=batch.condition,
            )
            weight = visit_weight(self.weighting, visit.transition, self.sampling.noise_level, self.sampling.steps)
            found.append(Chunk(batch=batch, views={MAIN_VIEW: view}, share=part * count * weight / total))
        return found

    def _condition(self, prompts: Sequence[Prompt]) -> Any:
        """Returns what tells the numbers that the network sees and what the VAE gets beside them, where a frame is
        given: the condition of the references, which all of a group share. Others need none."""
        first = prompts[0]
        if not self._partly:
            return NoCondition(len(prompts))
        model: Any = self.player.model
        if model.contract.entangled:
            one = model.encode_conditions([first.text], [first.images])
        else:
            one = model.encode_references([first.images])
        return one.take([0] * len(prompts))

    def _parts(self, prompts: Sequence[Prompt], step: Step) -> list[list[int]]:
        """Return rows that are sampled together; with several processes, in parts of the same sizes on each."""
        found = self.together(prompts)
        return found if step.draws.world_size == 1 else _parts_of_all(found, step)


def _parts_of_all(groups: Sequence[Sequence[int]], step: Step) -> list[list[int]]:
    """Cut the groups wherever a group of any process ends.

    Samples of one group go through the step as chunks, in which hooks exchange sums between processes. So every process
    must have the same number of chunks, and each chunk the same number of samples, for a mean over processes to be
    right. Images of one prompt stay together, since every process generates the same number of each.
    """
    rows = [i for group in groups for i in group]
    ends = [0] * (len(rows) + 1)
    for end in accumulate(len(group) for group in groups):
        ends[end] = 1
    cuts = [0, *step.all_reduce(whole_numbers(ends, step.model.device)).nonzero().flatten().tolist()]
    return [rows[start:end] for start, end in pairwise(cuts)]


def _kept(places: Sequence[int]) -> list[int]:
    """Return the states at which visits start and end."""
    return sorted({index for place in places for index in (place, place + 1)})
