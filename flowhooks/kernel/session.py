"""The engine. A step of any method is this, and nothing else::

    views     = {"main": View(clean, condition)}            what the batch holds
    views     = hook.views(step, views)                     chain    sigma and noise, the rejected side, masks
    target    = hook.target(step, view)   or  e - x0        one per view
    error     = (predict(view, role) - target) ** 2         each (view, role) is predicted once
    error     = hook.error(step, view, error)               chain    masks, weights
    score     = hook.reduce(step, view, error)              one      [B]; default: mean
    loss      = hook.objective(step)                        one      default: mean score of the policy on main
    loss     += every hook.penalty(step)                    sum
    metrics   = every hook.metrics(step)                    sum      only on logged steps

Only what a hook asks for is computed: a view nobody predicts costs no forward. A hook in the slot ``source`` stands
before all this: it draws, and each state it gives is a chunk that goes through the lines above on its own. Beside
it a hook in the slot ``data`` adds the batch of the data as one more chunk, with a loss of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from flowhooks.kernel.assembly import Assembly
from flowhooks.kernel.average import WeightAverage
from flowhooks.kernel.plan import POLICY
from flowhooks.kernel.random import Draws
from flowhooks.kernel.step import Model, Step
from flowhooks.kernel.trend import Trend
from flowhooks.kernel.view import Batch, Chunk, StepResult


class Session:
    """Hooks attached to a model. Made by :func:`flowhooks.attach`.

    Args:
        model: predicts velocities; see :class:`flowhooks.kernel.step.Model`.
        assembly: the hooks.
        roles: role name -> context manager, besides ``policy``.
        parameters: name -> what is trained, hook modules aside.
        seed: of every random number a step draws.
        rank, world_size: of this process.
        fresh: whether the policy starts equal to the reference (a new adapter).
        batch_views: run the views of one role in one forward; off trades speed for memory.
        batch_size: samples of a micro-batch on this process, for a run that draws them.
        all_reduce: sums a tensor over processes.
    """

    def __init__(
        self,
        *,
        model: Model,
        assembly: Assembly,
        roles: Mapping[str, Callable[[], AbstractContextManager]],
        parameters: Mapping[str, nn.Parameter],
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        fresh: bool = True,
        batch_views: bool = True,
        batch_size: int = 1,
        all_reduce: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    ):
        self.model = model
        self.assembly = assembly
        self.roles = {POLICY: nullcontext, **roles}
        self.seed = seed
        self.rank, self.world_size, self.all_reduce = rank, world_size, all_reduce
        self.batch_views, self.batch_size = batch_views, batch_size
        self.fresh = fresh
        self.micro_step = 0
        self.adapter: Any = None
        #: Draws with the pipeline and visits what it drew; of a run with a source.
        self.player: Any = None
        self.average: WeightAverage | None = None
        self._parameters = dict(parameters)
        self._trend = Trend()

    def step(self, batch: Batch, *, log: bool = True) -> StepResult:
        """Loss of one micro-batch, with gradient; the caller runs backward.

        Args:
            batch: latents and conditioning; see :class:`flowhooks.kernel.view.Batch`.
            log: compute metrics too. Without it the step never waits for the device.

        Raises:
            ValueError: the run draws its own samples, whose steps come in chunks; see :meth:`steps`.
        """
        if self.assembly.draws:
            raise ValueError("this run visits what it draws, state by state; use `for result in session.steps(batch)`")
        (result,) = self.steps(batch, log=log)
        return result

    def steps(self, batch: Batch | None, *, log: bool = True) -> Iterator[StepResult]:
        """As :meth:`step`, but yields one result for each chunk. Call ``backward()`` on each before you ask for the
        next: then one graph is alive at a time. The losses are shares, and their sum is the step's.

        Args:
            batch: None for a run that needs no data.
        """
        start = self._step(batch, self.micro_step, training=True)
        chunks = self.assembly.chunks(start)
        spent = start.forwards
        for chunk in chunks:
            step = self._step(chunk.batch, self.micro_step, training=True)
            step.forwards, spent = spent, 0
            yield self._run(step, chunk, log=log)
        self.micro_step += 1

    @torch.no_grad()
    def evaluate(self, batch: Batch, *, micro_step: int = 0) -> StepResult:
        """The same on held-out data: no gradient, the noise of a fixed micro-step, nothing counted, no hook's state
        changed."""
        step = self._step(batch, micro_step, training=False)
        (chunk,) = self.assembly.chunks(step)
        return self._run(step, chunk, log=True)

    def parameters(self) -> dict[str, nn.Parameter]:
        """Everything that is trained, by unique name."""
        own = {
            f"{key}.{name}": p
            for key, module in self.assembly.modules().items()
            for name, p in module.named_parameters()
        }
        return {**self._parameters, **own}

    def updated(self) -> None:
        """Call after each optimiser step: the average of the weights follows."""
        if self.average is not None:
            self.average.update()

    def averaged(self) -> AbstractContextManager[None]:
        """The role ``ema``: inside, the averaged weights are in place. Raises ValueError without an average."""
        if self.average is None:
            raise ValueError("this session keeps no average of its weights; set training.use_ema to true")
        return self.average.swapped()

    def warnings(self, metrics: Mapping[str, float]) -> list[str]:
        """What the hooks have to say, once they have seen the metrics of enough logged steps; call it after each."""
        self._trend.update(metrics)
        return self.assembly.warnings(self._trend)

    def state_dict(self) -> dict[str, Any]:
        """Cursor and hook state; weights are saved by their owners."""
        state: dict[str, Any] = {
            "micro_step": self.micro_step,
            "hooks": self.assembly.state_dict(),
            "trend": self._trend.state_dict(),
        }
        if self.average is not None:
            state["average"] = self.average.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.assembly.load_state_dict(state["hooks"])
        self.micro_step = int(state["micro_step"])
        if "trend" in state:  # of an earlier release it is not there
            self._trend.load_state_dict(state["trend"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])

    def _step(self, batch: Batch | None, micro_step: int, *, training: bool) -> Step:
        size = None if batch is None else batch.size
        return Step(
            assembly=self.assembly,
            model=self.model if size is None else self.model.at(*size),
            roles=self.roles,
            given=batch,
            draws=Draws(seed=self.seed, micro_step=micro_step, rank=self.rank, world_size=self.world_size),
            training=training,
            first=training and micro_step == 0,
            fresh=training and self.fresh and micro_step == 0,
            batch_views=self.batch_views,
            all_reduce=self.all_reduce,
        )

    def _run(self, step: Step, chunk: Chunk, *, log: bool) -> StepResult:
        if chunk.loss is not None:
            step.views = chunk.views
            terms = chunk.loss(step)
            return StepResult(
                loss=sum(terms.values(), start=torch.zeros((), device=self.model.device)),
                metrics={name: value.detach() for name, value in terms.items()} if log else {},
                passes=step.forwards,
                files=step.batch.files,
                added=True,
            )
        step.views = self.assembly.views(step, chunk.views)
        objective = self.assembly.objective(step)
        penalties = self.assembly.penalties(step)
        loss = sum(penalties.values(), start=objective)
        metrics, passes = {}, step.forwards
        if log:
            metrics = {"loss": loss.detach(), **{name: value.detach() for name, value in penalties.items()}}
            with torch.no_grad():
                metrics.update(self.assembly.metrics(step))
        return StepResult(
            loss=loss if chunk.share == 1 else chunk.share * loss,
            metrics=metrics,
            passes=passes,
            share=chunk.share,
            files=step.batch.files,
        )
