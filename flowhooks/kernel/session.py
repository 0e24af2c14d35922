"""Run the step of any method, which is this and nothing else::

    views     = {"main": View(clean, condition)}            what the batch holds
    views     = hook.views(step, views)                     chain    sigma and noise, the rejected side, masks
    target    = hook.target(step, view)   or  e - x0        one per view
    error     = (predict(view, role) - target) ** 2         each (view, role) is predicted once
    error     = hook.error(step, view, error)               chain    masks, weights
    score     = hook.reduce(step, view, error)              one      [B]; default: mean
    loss      = hook.objective(step)                        one      default: mean score of the policy on main
    loss     += every hook.penalty(step)                    sum
    metrics   = every hook.metrics(step)                    sum      only on logged steps

Only what a hook uses is computed: a view that no hook predicts costs no forward. A hook in the slot ``source`` runs
before all this: it samples, and each state it returns is a chunk that goes through the lines above on its own. Beside
it a hook in the slot ``data`` adds the batch of the data as one more chunk, with a loss of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from flowhooks.distributed import ALONE, Processes
from flowhooks.errors import CheckpointError
from flowhooks.kernel.assembly import Assembly
from flowhooks.kernel.hook import Alarm
from flowhooks.kernel.plan import MAIN_VIEW, POLICY
from flowhooks.kernel.random import Draws
from flowhooks.kernel.step import Model, Step
from flowhooks.kernel.view import Batch, Chunk, StepResult, View
from flowhooks.trend import Trend

Playing = Callable[[], AbstractContextManager[None]]


class Roles(dict[str, Playing]):
    """Maps a role name to the context manager under which the model plays it; ``policy`` is the model as it stands."""

    @contextmanager
    def registered(self, name: str, playing: Playing) -> Iterator[None]:
        """Add this role inside the block. Raises ValueError if another one has the name."""
        if name in self:
            raise ValueError(f"two hooks give the role {name!r}")
        self[name] = playing
        try:
            yield
        finally:
            del self[name]


class Session:
    """Trains a model with hooks attached. Made by :func:`flowhooks.attach`.

    Args:
        model: predicts velocities; see :class:`flowhooks.kernel.step.Model`.
        assembly: the hooks.
        roles: role name -> context manager, besides ``policy``; hooks register others.
        parameters: name -> trained parameter, without those of hook modules.
        adapter: the trained adapter; None for a network that is trained as a whole.
        training_adapter: a frozen adapter that is on in every forward of the loss, and in nothing that is sampled; see
            :class:`flowhooks.adapters.training.TrainingAdapter`. None: there is none.
        seed: seed of every random number that a step draws.
        processes: the processes that share a batch.
        batch_views: run the views of one role in one forward; off trades speed for memory.
        batch_size: samples of a micro-batch on this process, for a run that samples its own data.
        prompt_cache: keeps on disk what prompts of a run that samples are encoded to, for hooks; see
            :class:`flowhooks.sampling.encoded.PromptKeeper`. None: they stay in memory.
    """

    def __init__(
        self,
        *,
        model: Model,
        assembly: Assembly,
        roles: Mapping[str, Playing],
        parameters: Mapping[str, nn.Parameter],
        adapter: Any = None,
        training_adapter: Any = None,
        seed: int = 0,
        processes: Processes = ALONE,
        batch_views: bool = True,
        batch_size: int = 1,
        prompt_cache: Any = None,
    ):
        self.model, self.assembly = model, assembly
        self.adapter, self.training_adapter = adapter, training_adapter
        self.roles = Roles({POLICY: nullcontext, **roles})
        self.seed, self.processes = seed, processes
        self.batch_views, self.batch_size = batch_views, batch_size
        self.prompt_cache = prompt_cache
        #: Counts what torch compiles of the network's blocks; None where they are not compiled.
        self.compilation: Any = None
        self.micro_step = 0
        self._parameters = dict(parameters)
        self._trend = Trend()

    @property
    def source(self) -> Any:
        """Return the hook that samples the training data, which has attributes for hooks that learn from it; None if
        the run trains on data."""
        return self.assembly.owner("source")

    def step(self, batch: Batch, *, log: bool = True) -> StepResult:
        """Return the loss of one micro-batch, with gradient; the caller runs backward.

        Args:
            batch: latents and conditioning; see :class:`flowhooks.kernel.view.Batch`.
            log: compute metrics too. Without it the step never waits for the device.

        Raises:
            ValueError: the run trains on its own samples, and its steps have several chunks; see :meth:`steps`.
        """
        if self.source is not None:
            raise ValueError("this run visits its rollouts state by state; use `for result in session.steps(batch)`")
        (result,) = self.steps(batch, log=log)
        return result

    def steps(self, batch: Batch | None, *, log: bool = True) -> Iterator[StepResult]:
        """Run a step like :meth:`step`, but yield one result for each chunk. Call ``backward()`` on each before you
        request the next: then one graph is alive at a time. The losses are shares, and their sum is the step's loss.

        Args:
            batch: None for a run that needs no data.
        """
        start = self._step(batch, self.micro_step, self.processes, training=True)
        chunks = self._chunks(start)
        spent = start.forwards
        for chunk in chunks:
            step = self._step(chunk.batch, self.micro_step, self.processes, training=True)
            step.forwards, spent = spent, 0
            yield self._run(step, chunk, log=log)
        self.micro_step += 1

    @torch.no_grad()
    def evaluate(self, batch: Batch, *, micro_step: int = 0, processes: Processes | None = None) -> StepResult:
        """Run a step on held-out data: without gradient, with the noise of a fixed micro-step, without counting it or
        changing any hook's state.

        Args:
            processes: the processes that share the batch; default: those of the session.
        """
        step = self._step(batch, micro_step, processes or self.processes, training=False)
        (chunk,) = self._chunks(step)
        return self._run(step, chunk, log=True)

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return everything that is trained, by unique name."""
        modules = self.assembly.modules().items()
        own = {f"{key}.{name}": p for key, module in modules for name, p in module.named_parameters()}
        return {**self._parameters, **own}

    def updated(self) -> None:
        """Tell the hooks that an optimiser step is done, so that the average of the weights, for example, follows. Call
        it after each."""
        for hook in self.assembly.hooks:
            hook.updated()

    def with_training_adapter(self, on: bool) -> AbstractContextManager[None]:
        """Switch the training adapter on or off inside the block, if there is one."""
        return nullcontext() if self.training_adapter is None else self.training_adapter.switched(on)

    def warnings(self, metrics: Mapping[str, float]) -> list[str]:
        """Return the warnings of the hooks, once they have the metrics of enough logged steps; call it after each."""
        self._trend.update(metrics)
        return [said for hook in self.assembly.hooks for said in hook.warnings(self._trend.means(hook.patience))]

    @property
    def watched(self) -> bool:
        """Return whether a hook may ask for the end of the run."""
        return any(hook.watches for hook in self.assembly.hooks)

    def alarm(self, metrics: Mapping[str, float]) -> Alarm | None:
        """Return the alarm of the hooks, a final one before others, from the metrics of a logged step; call it after
        each. It is for the loop to act on."""
        found = [hook.alarm(metrics) for hook in self.assembly.hooks if hook.watches]
        return max((each for each in found if each), key=lambda alarm: alarm.final, default=None)

    def state_dict(self) -> dict[str, Any]:
        """Return the step counter and hook state; weights are saved by their owners."""
        return {
            "micro_step": self.micro_step,
            "hooks": self.assembly.state_dict(),
            "trend": self._trend.state_dict(),
            **self._held(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned, in this or an earlier release.

        Raises:
            CheckpointError: it was trained beside another training adapter.
        """
        held = {key: state[key] for key in ("training_adapter",) if key in state}
        if held != self._held():
            raise CheckpointError(
                f"the training adapter is {self._held() or 'none'}, and the state was saved with {held or 'none'}; "
                "give the file and the strength that it was trained with"
            )
        hooks = self.assembly.hooks
        self.assembly.load_state_dict({h.type: state[h.former] for h in hooks if h.former in state} | state["hooks"])
        self.micro_step = int(state["micro_step"])
        if "trend" in state:
            self._trend.load_state_dict(state["trend"])

    def _held(self) -> dict[str, Any]:
        """Return what a state keeps of the training adapter; nothing where there is none, as in earlier releases."""
        return {} if self.training_adapter is None else {"training_adapter": self.training_adapter.identity}

    def _step(self, batch: Batch | None, micro_step: int, processes: Processes, *, training: bool) -> Step:
        numbered = {"micro_step": micro_step, "rank": processes.rank, "world_size": processes.world_size}
        return Step(
            session=self,
            model=self.model if batch is None or batch.size is None else self.model.at(*batch.size),
            given=batch,
            draws=Draws(seed=self.seed, **numbered),
            all_reduce=processes.all_reduce,
            training=training,
        )

    def _chunks(self, step: Step) -> list[Chunk]:
        """Return the chunks of a step in order: those of the rollout, then the data that is trained on beside it."""
        beside = self.assembly.owner("data")
        if self.source is None:
            return [Chunk(batch=step.batch, views={MAIN_VIEW: View.of(step.batch)})]
        return self.source.source(step) + ([] if beside is None else [beside.data(step)])

    def _run(self, step: Step, chunk: Chunk, *, log: bool) -> StepResult:
        """Execute the lines at the top of this file."""
        if chunk.loss is None:
            step.views = self.assembly.chain("views", chunk.views, step)
            objective = self._objective(step)
            terms = self.assembly.penalties(step)
        else:
            step.views, objective = chunk.views, torch.zeros((), device=step.model.device)
            terms = chunk.loss(step)
        loss, passes = sum(terms.values(), start=objective), step.forwards
        metrics = {name: value.detach() for name, value in terms.items()} if log else {}
        if log and chunk.loss is None:
            with torch.no_grad():
                metrics = {"loss": loss.detach(), **metrics, **self.assembly.metrics(step)}
        return StepResult(
            loss=loss if chunk.share == 1 else chunk.share * loss,
            metrics=metrics,
            passes=passes,
            share=chunk.share,
            files=step.batch.files,
            added=chunk.loss is not None,
        )

    def _objective(self, step: Step) -> Tensor:
        """Return a scalar loss; by default the mean score of the policy on the main view."""
        owner = self.assembly.owner("objective")
        if owner is None:
            return step.mean(step.score(MAIN_VIEW), step.views[MAIN_VIEW].weight)
        return owner.objective(step)
