"""Trains on the student's own samples: a rollout of the stock pipeline, visited state by state (arXiv 2605.08063)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

from flowhooks.batch import Batch, NoCondition
from flowhooks.errors import CheckpointError, ModelError
from flowhooks.hooks.asking import visited_velocity
from flowhooks.hooks.on_policy_rollout import OnPolicyRolloutSpec
from flowhooks.hooks.on_policy_rollout.kept import Drawn, DrawnPart, restored, rows_of
from flowhooks.hooks.prompted import Prompted
from flowhooks.kernel.plan import MAIN_VIEW, POLICY
from flowhooks.kernel.random import Draws
from flowhooks.kernel.session import Session
from flowhooks.kernel.step import Step
from flowhooks.kernel.view import Chunk, Sigma, View, ViewState
from flowhooks.sampling.prompts import Prompt, last_steps, visited_places
from flowhooks.sampling.rollout import PipelineSampler
from flowhooks.sampling.states import Rollout, RolloutState
from flowhooks.sampling.steps import FLOW, ODE, SDE, Sampler, Transition
from flowhooks.transfer import picked, sent, whole_numbers

UNIFORM, KL, KL_NODT, X_T, X0, DT = "uniform", "kl", "kl_nodt", "x_t", "x0", "dt"


class RolloutSource(Protocol):
    """The part of the session's source that hooks which learn from rollouts use; see :class:`OnPolicyRollout`."""

    prompt_list: list[Prompt] | None
    group_size: int
    updates_per_rollout: int
    sampling: Sampler
    sigma_max: float | None
    early_visits: int
    from_the_end: bool
    player: PipelineSampler

    def end_of(self, rollout: Rollout) -> list[int]: ...


def visit_weight(kind: str, step: Transition, noise_level: float, steps: int, noise_schedule: str = FLOW) -> float:
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
    noisy = Sampler(kind=SDE, noise_level=noise_level, noise_schedule=noise_schedule)
    weight = noisy.step(0, step.start, step.end).kl_weight
    return weight if kind == KL else -by * weight


@dataclass(frozen=True, kw_only=True, eq=False)
class Visited:
    """A state of a rollout in the pipeline's own loop: predictions on it are guided as the pipeline guides them.

    Args:
        part: what was drawn with it in one call; None where the visit was changed.
        together: all parts of the micro-batch on this process.
        update: how many updates have trained on the rollout.
    """

    visit: RolloutState
    part: DrawnPart | None = None
    together: Sequence[DrawnPart] = ()
    update: int = 0

    @property
    def shape(self) -> torch.Size:
        return self.visit.state.shape

    def noisy(self, time: Sigma) -> Tensor:
        return sent(self.visit.state, self.visit.player.model.device)

    def fits(self, other: ViewState) -> bool:
        return other is self

    def predict(self, model: Any, role: str, views: Sequence[View]) -> Sequence[Tensor]:
        return [self.visit.velocity(role)]


def visited(view: View) -> Visited:
    """Return the state of a view of a rollout."""
    assert isinstance(view.state, Visited), f"view {view.name!r} is no visited state"
    return view.state


def visit_of(view: View) -> RolloutState:
    """Return the visited state of a view of a rollout."""
    return visited(view).visit


class OnPolicyRollout(OnPolicyRolloutSpec, Prompted):
    """Generates images with the student and yields each visited state as a chunk with the view ``main``.

    A rollout is drawn for each micro-batch of an update. With ``updates_per_rollout`` K above 1 the next K - 1 updates
    visit it again; as long as they do, the states that are visited, those after them, and the velocities there are
    kept, on the device unless ``offload_states`` is on. They tell mean and log density of the steps before the first.

    Raises:
        ModelError: on attaching, a pipeline without ``encode_prompt``; in a step, no state to visit.
        CheckpointError: on resuming between updates, with another number of samples.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.from_the_end = self.last_steps is not None or self.sigma_max is not None
        #: Place of a micro-batch in its update -> what was drawn for it, and what a checkpoint held of that.
        self._kept: dict[int, Drawn] = {}
        self._saved: dict[int, Mapping[str, Any]] = {}

    def made_sampler(self) -> Sampler:
        return Sampler(
            kind=self.sampler,
            steps=self.num_inference_steps,
            noise_level=self.noise_level,
            noise_schedule=self.noise_schedule,
            window=None if self.window is None else (self.window[0], self.window[1]),
            arguments=dict(self.pipeline_arguments or {}),
        )

    @contextmanager
    def attached(self, session: Session) -> Iterator[None]:
        model: Any = session.model
        layout = model.layout(**model.size)
        self._partly = bool(model.contract.references) and (layout.seen is not None or not layout.vae.whole)
        self._accumulation, self._processes, self._device = session.accumulation, session.processes, model.device
        self._samples = session.batch_size * self.group_size * session.processes.world_size
        with super().attached(session):
            yield

    def source(self, step: Step) -> list[Chunk]:
        if not step.training:
            raise ValueError("samples that a run generates cannot be held out; set validation.holdout to 0")
        period = self._accumulation * self.updates_per_rollout
        cycle, place = divmod(step.draws.micro_step, period)
        update, slot = divmod(place, self._accumulation)
        turn = cycle * self._accumulation + slot
        prompts = self.drawn_prompts(step, turn)
        drawn = self._known(step, prompts, slot, turn)
        if drawn is None or not update:
            drawn = self._drawn(step, prompts, turn)
        if place + self._accumulation < period:
            self._kept[slot] = drawn
        else:
            self._kept.pop(slot, None)
        chunks: list[Chunk] = []
        for part in drawn.parts:
            if self.from_the_end:
                places = self._from_the_end(part.rollout, step)
            else:
                places = dict.fromkeys(drawn.visited(update, self._count(drawn.order)), 1.0)
            chunks += self._chunks(part, drawn.parts, places, update, len(part.rows) / len(prompts), step)
        if not chunks:
            raise ModelError("no visited step calls the trained network; visit other steps")
        return chunks

    def state_dict(self) -> dict[str, Any]:
        if self.updates_per_rollout == 1:
            return {}
        kept = {slot: drawn.state(self._processes, self._device) for slot, drawn in self._kept.items()}
        return {"kept": [{"slot": slot, **state} for slot, state in {**self._saved, **kept}.items()]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._kept.clear()
        self._saved = {int(each["slot"]): each for each in state.get("kept", ())}
        for each in self._saved.values():
            if rows_of(each) != self._samples:
                raise CheckpointError(
                    f"the checkpoint keeps a rollout of {rows_of(each)} samples, and this run draws {self._samples}; "
                    "resume with the `train_batch_size`, `group_size` and processes that it was written by"
                )

    def sampler_at(self, micro_step: int) -> Sampler:
        """Return how a rollout of a micro-step is sampled. ``window`` moves on every ``window_every`` optimiser steps,
        until it holds the last steps; one of a single step stops before the very last, to which no noise is added."""
        if self.window_every is None or self.sampling.window is None:
            return self.sampling
        first, last = self.sampling.window
        width, steps = last - first, self.sampling.steps
        most = max(first, min(steps - width, steps - 2))
        first = min(first + micro_step // self._accumulation // self.window_every, most)
        return replace(self.sampling, window=(first, first + width))

    def _known(self, step: Step, prompts: Sequence[Prompt], slot: int, turn: int) -> Drawn | None:
        """Return what an earlier update drew for this place, or a checkpoint held of it; None where neither did."""
        saved, known = self._saved.pop(slot, None), self._kept.get(slot)
        if known is None and saved is not None and int(saved["turn"]) == turn:

            def again(micro_step: int, order: Sequence[int]) -> list[DrawnPart]:
                draws = replace(step.draws, micro_step=micro_step)
                return self._parts_drawn(step, draws, prompts, (), ())

            known = restored(saved, again, step.draws.local_rows, "cpu" if self.offload_states else self._device)
        return None if known is None or known.turn != turn else known

    def _drawn(self, step: Step, prompts: Sequence[Prompt], turn: int) -> Drawn:
        """Samples this process's rows, and keeps what the updates of the rollout visit."""
        sampler = self.sampler_at(step.draws.micro_step)
        stochastic = None if self.sampler == ODE else sampler.window
        order = visited_places(sampler.steps, self.train_fraction, stochastic)
        if self.from_the_end:
            keep = keep_velocities = list(range(sampler.steps))
        else:
            shuffled = torch.randperm(len(order), generator=step.draws.shared("visits"))
            order = [order[int(i)] for i in shuffled]
            keep_velocities = order[: self._count(order) * self.updates_per_rollout]
            keep = sorted({index for place in keep_velocities for index in (place, place + 1)})
            # A loss with a training adapter needs to know what the images were sampled by, and later updates what the
            # steps were before the first.
            beside = step.session.training_adapter is not None and self.sampler != ODE
            if not beside and self.updates_per_rollout == 1:
                keep_velocities = []
        parts = self._parts_drawn(step, step.draws, prompts, keep, keep_velocities)
        step.forwards += len(parts) * sampler.steps
        if self.updates_per_rollout > 1 and step.session.training_adapter is not None:
            parts = [self._scored(step, part, keep_velocities) for part in parts]
        return Drawn(turn=turn, micro_step=step.draws.micro_step, order=order, parts=parts)

    def _scored(self, step: Step, part: DrawnPart, places: Sequence[int]) -> DrawnPart:
        """Returns the part with the velocities that a loss sees at these states: with the training adapter on."""
        found: dict[int, Tensor] = {}
        for place in places:
            visit = RolloutState(player=self.player, rollout=part.rollout, index=place)
            found[place] = visited_velocity(step, POLICY, visit)
        return replace(part, rollout=replace(part.rollout, scored=found))

    def _parts_drawn(
        self, step: Step, draws: Draws, prompts: Sequence[Prompt], keep: Sequence[int], keep_velocities: Sequence[int]
    ) -> list[DrawnPart]:
        """Samples this process's rows by the seeds of ``draws``, as many together as can be.

        Args:
            keep, keep_velocities: as :meth:`PipelineSampler.draw` takes them.
        """
        first = draws.rank * len(prompts)
        seeds = [draws.seed_of("rollout", first + i) for i in range(len(prompts))]
        starts = [seeds[i - i % self.group_size] if self.shared_start else seeds[i] for i in range(len(prompts))]
        found = []
        for rows in self._parts(prompts, step):
            some = [prompts[i] for i in rows]
            rollout = self.player.draw(
                [prompt.text for prompt in some],
                [starts[i] for i in rows],
                self.sampler_at(draws.micro_step),
                keep=keep,
                keep_velocities=keep_velocities,
                images=dict(some[0].images),
                noise_seeds=[seeds[i] for i in rows],
            )
            batch = self._batch(rollout, some, rows, step)
            if self.from_the_end:
                rollout = rollout.keep_steps(list(self._from_the_end(rollout, step)))
            found.append(
                DrawnPart(rows=rows, rollout=rollout.parked() if self.offload_states else rollout, batch=batch)
            )
        return found

    def _count(self, places: Sequence[int]) -> int:
        """Return how many of these places an update visits."""
        return min(self.visits or len(places), len(places))

    def end_of(self, rollout: Rollout) -> list[int]:
        """Return the indices of the steps that ``last_steps`` or ``sigma_max`` select."""
        return last_steps([step.start for step in rollout.transitions], self.last_steps, self.sigma_max)

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

    def _batch(self, rollout: Rollout, prompts: Sequence[Prompt], rows: Sequence[int], step: Step) -> Batch:
        mask = None if self.prompt_list is not None or step.given is None else step.given.mask
        return Batch(
            clean=sent(rollout.final, step.model.device),
            condition=self._condition(prompts),
            # Of the samples of the data, for rewards that compare.
            mask=None if mask is None else picked(mask, [i // self.group_size for i in rows]),
            files=tuple(prompt.text for prompt in prompts),
            prompts=tuple(prompt.text for prompt in prompts),
            records=tuple(prompt.record for prompt in prompts),
            references=tuple(prompt.images for prompt in prompts) if prompts[0].images else (),
            size=(self.player.size["height"], self.player.size["width"]),
        )

    def _chunks(
        self,
        part: DrawnPart,
        together: Sequence[DrawnPart],
        places: Mapping[int, float],
        update: int,
        share: float,
        step: Step,
    ) -> list[Chunk]:
        """Returns one chunk for each visited state.

        Args:
            places: index of a step -> how many unvisited states it represents.
            share: this part's share of the batch.
        """
        low, high = step.model.sigma_range
        found, batch, sampler = [], part.batch, part.rollout.sampler
        total = sum(places.values())
        for place, count in places.items():
            visit = RolloutState(player=self.player, rollout=part.rollout, index=place)
            sigma = visit.transition.start
            if not low <= sigma <= high:
                continue
            view = View(
                name=MAIN_VIEW,
                state=Visited(visit=visit, part=part, together=together, update=update),
                time=Sigma(level=torch.full((len(part.rows),), sigma, device=step.model.device)),
                condition=batch.condition,
            )
            weight = visit_weight(
                self.weighting, visit.transition, sampler.noise_level, sampler.steps, sampler.noise_schedule
            )
            found.append(Chunk(batch=batch, views={MAIN_VIEW: view}, share=share * count * weight / total))
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
