"""Small runs of adjoint matching, and the same model as plain functions of a state."""

from __future__ import annotations

import torch

from flowhooks.rewards import PictureReward
from tests.hooks.adjoint_reference import regularizer_cost
from tests.hooks.test_on_policy import watched

STEPS = 5
ROLLOUT = {
    "type": "on_policy_rollout",
    "prompts": ["one", "one"],
    "sampler": "ode",
    "num_inference_steps": STEPS,
    "last_steps": 3,
    "weighting": "dt",
}
SCALE = 50.0


class Bright(PictureReward):
    """How bright a picture is, bent so that its gradient depends on the picture."""

    def __init__(self, *, name: str = "bright", kind: str = "fine"):
        super().__init__(name=name)
        self.kind = kind
        self.differentiable = kind != "undeclared"

    def score(self, pictures, prompts, records):
        if self.kind == "detached":
            pictures = pictures.detach()
        if self.kind == "flat":
            pictures = 0 * pictures
        return pictures.flatten(1).square().mean(1)


def target(kind: str = "fine", **options) -> dict:
    reward = {"type": "tests.hooks.adjoint_runs:Bright", "kind": kind}
    return {"type": "adjoint_target", "rewards": [reward], "reward_scale": SCALE, "clip_quantile": 1, **options}


def moved(session) -> None:
    """An adapter away from the base."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in session.parameters().values():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))


def run_through(session) -> list:
    with watched(session) as steps:
        for result in session.steps(None):
            result.loss.backward()
    return steps


class ByHand:
    """The same model as plain functions of a state, without the pipeline's loop."""

    def __init__(self, session, steps):
        self.session, self.model = session, session.model
        visit = steps[-1].views["main"].state.visit
        self.rollout, self.transitions = visit.rollout, visit.rollout.transitions
        self.condition = self.model.encode_prompts(list(visit.rollout.prompts))

    def velocity(self, x, index, role):
        sigma = torch.full((len(x),), self.transitions[index].start)
        with self.session.roles[role]():
            return self.model.predict(x, sigma, self.condition)

    def reward(self, latents):
        pixels = self.model.decode(latents, gradient=True) / 2 + 0.5
        return SCALE * pixels.clamp(0, 1).flatten(1).square().mean(1)

    def by(self, index):
        return self.transitions[index].end - self.transitions[index].start

    def lean(self):
        """g_{k+1} by k: the base's own steps from the policy's states, differentiated one at a time."""
        leaf = self.rollout.final.clone().requires_grad_()
        (costate,) = torch.autograd.grad(self.reward(leaf).sum(), leaf)
        found = {}
        for index in range(STEPS - 1, 1, -1):
            found[index] = costate
            leaf = self.rollout.states[index].clone().requires_grad_()
            after = leaf + self.by(index) * self.velocity(leaf, index, "reference")
            (costate,) = torch.autograd.grad(after, leaf, costate)
        return found

    def full(self, powers):
        """The same by back-propagation through the policy's rollout, the control's cost included."""
        found = {}
        for index in range(STEPS - 1, 1, -1):
            leaf = state = self.rollout.states[index + 1].clone().requires_grad_()
            gain = torch.zeros(len(state))
            for k in range(index + 1, STEPS):
                ours, theirs = (self.velocity(state, k, role) for role in ("policy", "reference"))
                gain = gain + self.by(k) * regularizer_cost(theirs - ours, powers)
                state = state + self.by(k) * ours
            (found[index],) = torch.autograd.grad((gain + self.reward(state)).sum(), leaf)
        return found

    def lookahead(self):
        found = {}
        for index in range(STEPS - 1, 1, -1):
            state = self.rollout.states[index]
            after = self.rollout.states[index + 1]
            step = self.transitions[index]
            leaf = (state - step.start * (after - state) / self.by(index)).requires_grad_()
            (gradient,) = torch.autograd.grad(self.reward(leaf).sum(), leaf)
            found[index] = (1 - step.end) * gradient
        return found
