"""Trains on the student's own samples as they came out in the end: no states between, no likelihood, any solver."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from flowhooks.batch import Batch
from flowhooks.errors import CheckpointError
from flowhooks.hooks.decoding import Decoder, as_pictures
from flowhooks.hooks.ends import EndsSpec
from flowhooks.hooks.judging import Judges
from flowhooks.hooks.prompted import Prompted
from flowhooks.kernel.plan import MAIN_VIEW
from flowhooks.kernel.session import Session
from flowhooks.kernel.step import Step
from flowhooks.kernel.view import Chunk, Path, View, at_least_fp32
from flowhooks.sampling.prompts import Prompt
from flowhooks.sampling.steps import Sampler
from flowhooks.transfer import picked, sent


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoredBatch(Batch):
    """Holds generated samples and what they are worth.

    Args:
        rewards: ``[B]`` the weighted sum of the rewards of each sample, higher for better.
        group_size: samples of each prompt, which stand in a row.
    """

    rewards: Tensor
    group_size: int

    @property
    def groups(self) -> Tensor:
        """Return the rewards as ``[groups, group_size]``."""
        return self.rewards.unflatten(0, (-1, self.group_size))


@dataclass(frozen=True, kw_only=True, eq=False)
class Finals:
    """Holds what is kept of a rollout.

    Args:
        turn: number of the rollout, which tells its prompts.
        clean: ``[B, ...]`` final latents, of the sampler's space.
        rewards: ``[B]`` weighted sums.
        each: name of a reward -> its ``[B]`` values.
    """

    turn: int
    clean: Tensor
    rewards: Tensor
    each: Mapping[str, Tensor]

    def tensors(self) -> dict[str, Tensor]:
        """Return all it holds but its turn, by name."""
        return {"clean": self.clean, "rewards": self.rewards, **{f"each.{n}": v for n, v in self.each.items()}}

    @classmethod
    def of(cls, turn: int, tensors: Mapping[str, Tensor]) -> Finals:
        """Return what :meth:`tensors` came from."""
        each = {name.removeprefix("each."): value for name, value in tensors.items() if name.startswith("each.")}
        return cls(turn=turn, clean=tensors["clean"], rewards=tensors["rewards"], each=each)


class Ends(EndsSpec, Prompted):
    """Generates groups of samples, scores them, and yields them as one chunk of a :class:`ScoredBatch`.

    One rollout is drawn for each micro-batch of an update, and the next ``updates_per_rollout - 1`` updates train on
    these again. As long as they do, the final latents and the rewards of the samples of all processes are kept on the
    host, with nothing of the steps between; with ``updates_per_rollout`` 1 nothing is kept.

    Raises:
        ModelError: on attaching, a pipeline without ``encode_prompt`` or VAE.
        RewardFailure: in a step, a reward gives no number; every process raises it.
        CheckpointError: on resuming, with another number of samples.
    """

    health = "ends_reward"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.blocks = [dict(block) for block in self.rewards]
        #: Place of a micro-batch in its update -> the rollout that was drawn for it, of all processes, on the host.
        self._kept: dict[int, Finals] = {}
        self._values: dict[str, Tensor] = {}

    def made_sampler(self) -> Sampler:
        return Sampler(steps=self.num_inference_steps, arguments=dict(self.pipeline_arguments or {}))

    @contextmanager
    def attached(self, session: Session) -> Iterator[None]:
        model: Any = session.model
        self._decoder = Decoder(model, "`ends`")
        self._judges = Judges(self.blocks, model.device, self.group_size)
        self._accumulation = session.accumulation
        self._samples = session.batch_size * self.group_size * session.processes.world_size
        with super().attached(session), self._decoder.attached():
            self.player.prepare_conditions(self.prompt_list or ())
            yield

    def source(self, step: Step) -> list[Chunk]:
        if not step.training:
            raise ValueError("samples that a run generates cannot be held out; set validation.holdout to 0")
        cycle, place = divmod(step.draws.micro_step, self._accumulation * self.updates_per_rollout)
        slot = place % self._accumulation
        turn = cycle * self._accumulation + slot
        prompts = self.drawn_prompts(step, turn)
        condition = self._condition(step, prompts)
        kept = self._kept.get(slot)
        if place < self._accumulation or kept is None or kept.turn != turn:
            ends = self._drawn(step, prompts, condition, turn)
            if self.updates_per_rollout > 1:
                self._kept[slot] = _of_all(step, ends)
        else:
            ends = _of_this(step, kept)
        if place + self._accumulation >= self._accumulation * self.updates_per_rollout:
            self._kept.pop(slot, None)
        batch = self._batch(step, prompts, condition, ends)
        self._values = self._measured(batch, ends)
        return [Chunk(batch=batch, views={MAIN_VIEW: View.of(batch)})]

    def views(self, step: Step, views: dict[str, View]) -> dict[str, View]:
        """Gives every sample the noise and the level of the first of its group, where a group has one of each."""
        main = views[MAIN_VIEW]
        if self.noise == "sample":
            return views
        assert isinstance(main.state, Path) and main.noise is not None
        firsts = [i - i % self.group_size for i in range(len(main.noise))]
        state = replace(main.state, noise=picked(main.noise, firsts))
        time = replace(main.timed, level=picked(main.level, firsts))
        return {**views, MAIN_VIEW: replace(main, state=state, time=time)}

    def metrics(self, step: Step) -> dict[str, Tensor]:
        return dict(self._values)

    def state_dict(self) -> dict[str, Any]:
        return {"kept": [{"slot": slot, "turn": ends.turn, **ends.tensors()} for slot, ends in self._kept.items()]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for each in state["kept"]:
            tensors = {name: value for name, value in each.items() if name not in ("slot", "turn")}
            if len(tensors["clean"]) != self._samples:
                raise CheckpointError(
                    f"the checkpoint keeps a rollout of {len(tensors['clean'])} samples, and this run draws "
                    f"{self._samples}; resume with the `train_batch_size`, `group_size` and processes that it was "
                    "written by"
                )
            self._kept[int(each["slot"])] = Finals.of(int(each["turn"]), tensors)

    @torch.no_grad()
    def _drawn(self, step: Step, prompts: Sequence[Prompt], condition: Any, turn: int) -> Finals:
        """Samples and scores this process's rows."""
        first = step.draws.rank * len(prompts)
        seeds = [step.draws.seed_of("rollout", first + i) for i in range(len(prompts))]
        rows: dict[int, Tensor] = {}
        with step.session.roles[self.sampled_by]():
            for some in self.together(prompts):
                texts, images = [prompts[i].text for i in some], dict(prompts[some[0]].images)
                finals = self.player.ends(texts, [seeds[i] for i in some], self.sampling, images)
                rows |= dict(zip(some, at_least_fp32(finals), strict=True))
                step.forwards += self.sampling.steps
        clean = torch.stack([rows[i] for i in range(len(prompts))])
        pixels = as_pictures(self._decoder.frames(clean, condition=condition))
        seen = Batch(clean=clean, condition=condition, mask=self._mask(step), **_told(prompts))
        total, each = self._judges.scored(step, pixels, seen)
        return Finals(turn=turn, clean=clean, rewards=total, each=each)

    def _batch(self, step: Step, prompts: Sequence[Prompt], condition: Any, ends: Finals) -> ScoredBatch:
        return ScoredBatch(
            clean=ends.clean,
            condition=condition,
            size=(self.player.size["height"], self.player.size["width"]),
            files=tuple(prompt.text for prompt in prompts),
            rewards=ends.rewards,
            group_size=self.group_size,
            **_told(prompts),
        )

    def _condition(self, step: Step, prompts: Sequence[Prompt]) -> Any:
        """Returns the condition of the prompts as in training on data: without guidance."""
        if self.prompt_list is None:
            assert step.given is not None
            return step.given.condition.take([i // self.group_size for i in range(len(prompts))])
        groups = [self.player.condition(p).take([0] * self.group_size) for p in prompts[:: self.group_size]]
        return groups[0].join(groups[1:])

    def _mask(self, step: Step) -> Tensor | None:
        """Returns the masks ``[B, 1, h, w]`` of the data's samples, for rewards that compare; None without."""
        mask = None if self.prompt_list is not None or step.given is None else step.given.mask
        return (
            None if mask is None else picked(mask, [i // self.group_size for i in range(len(mask) * self.group_size)])
        )

    def _measured(self, batch: ScoredBatch, ends: Finals) -> dict[str, Tensor]:
        named = {f"ends_reward_{name}": value.mean() for name, value in ends.each.items()}
        spread = batch.groups.std(1, correction=0).mean()
        return {"ends_reward": batch.rewards.mean(), "ends_reward_spread": spread, **named}


def _told(prompts: Sequence[Prompt]) -> dict[str, Any]:
    """Return what a batch tells of its prompts."""
    return {
        "prompts": tuple(prompt.text for prompt in prompts),
        "records": tuple(prompt.record for prompt in prompts),
        "references": tuple(prompt.images for prompt in prompts) if prompts[0].images else (),
    }


def _of_all(step: Step, ends: Finals) -> Finals:
    """Return the samples of all processes, on the host, so that one checkpoint holds those of all."""
    draws = step.draws

    def gathered(value: Tensor) -> Tensor:
        if draws.world_size == 1:
            return value.detach().cpu()
        room = value.new_zeros(draws.world_size * len(value), *value.shape[1:])
        room[draws.rank * len(value) : (draws.rank + 1) * len(value)] = value
        return step.all_reduce(room).cpu()

    return Finals.of(ends.turn, {name: gathered(value) for name, value in ends.tensors().items()})


def _of_this(step: Step, ends: Finals) -> Finals:
    """Return the samples of this process, on the device."""
    device = step.model.device
    mine = {name: sent(step.draws.local_rows(value), device) for name, value in ends.tensors().items()}
    return Finals.of(ends.turn, mine)


def scored_batch(step: Step) -> ScoredBatch:
    """Return the batch of the step, which a hook in the slot ``source`` has scored."""
    assert isinstance(step.batch, ScoredBatch), "the hook that reads rewards must need 'ends'"
    return step.batch
