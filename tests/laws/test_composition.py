"""The law of pairs: two methods, or two hooks, either run together and both count, or are refused with the reason."""

from __future__ import annotations

import itertools
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import flowhooks
from flowhooks.config import resolve_run
from flowhooks.errors import ConfigError
from flowhooks.hooks.registry import HOOKS
from flowhooks.kernel.plan import SLOTS
from flowhooks.kernel.session import Session
from tests.laws import composition
from tests.laws.cases import ADAPTERS, batch_for, shared_model, teacher

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

REWARDS = [{"type": "flowhooks.digits.rewards:Ink"}]
DRAWN = {"prompts": ["one", "a photo of two"], "num_inference_steps": 3}
#: Options of each method for a step on the tiny pipeline.
METHODS: dict[str, dict] = {
    "adjoint_matching": {**DRAWN, "rewards": REWARDS, "truncate": {"last_k": 2}, "anchor_weight": 0.0},
    "anyflow": {"target_mode": "flow_map"},
    "awm": {**DRAWN, "group_size": 2, "rewards": REWARDS, "clip_range": 0.1},
    "crd": {**DRAWN, "group_size": 2, "rewards": REWARDS},
    "dgpo": {**DRAWN, "group_size": 2, "rewards": REWARDS, "clip_range": 0.1, "reference_guidance": 2.0},
    "diffusion_nft": {**DRAWN, "group_size": 2, "rewards": REWARDS, "anchor_weight": 0.0},
    "dmd": {"jumps": 2, "critic_rank": 2, "policy_every": 1, "teacher_guidance": 3.0},
    "flow_dpo": {"norm_type": "mean", "beta": 50.0, "anchor_alpha": 0.0},
    "flow_grpo": {**DRAWN, "group_size": 2, "rewards": REWARDS, "anchor_weight": 0.0},
    "flow_opd": {**DRAWN, "teachers": {"b": "written by the test"}, "anchor_weight": 0.0},
    "ipo": {"norm_type": "mean", "beta": 50.0, "anchor_alpha": 0.0},
    "kto": {"label": None, "beta": 50.0, "anchor_alpha": 0.0},
    "linear_dpo": {"norm_type": "mean", "beta": 50.0, "anchor_alpha": 0.0},
    "mapo": {"beta": 50.0, "anchor_alpha": 0.0},
    "online_dpo": {**DRAWN, "group_size": 2, "rewards": REWARDS, "beta": 50.0, "anchor_alpha": 0.0},
    "self_flow": {"block_index": 0, "teacher_block_index": 1},
    "sft": {"weight": 0.5},
}
SLOT_WORDS = (*(f"slot {slot!r}" for slot in SLOTS), "target:main", "'sigma'", "r_sigma", "view:", "both write")
#: Method, and its hook -> one with the same declarations: whatever runs beside one of them runs beside the other.
LIKE = {**dict.fromkeys(("ipo", "kto", "linear_dpo"), "flow_dpo"), **dict.fromkeys(("awm", "crd"), "diffusion_nft")}


def by_another(first: str, second: str) -> bool:
    """Whether the pair of another method, or hook, tells of this one."""
    return any(LIKE.get(name, other) != other for name, other in ((first, second), (second, first)))


PAIRS = {(pair.first, pair.second): pair for pair in composition.pairs() if not by_another(pair.first, pair.second)}
RUNNING = [names for names, pair in PAIRS.items() if pair.plan is not None]
REFUSED = [names for names, pair in PAIRS.items() if pair.plan is None]


@pytest.fixture
def model():
    """One pipeline for all pairs: attaching leaves no trace."""
    return shared_model()


def document(methods: dict[str, dict]) -> dict:
    written = {name: dict(options) for name, options in methods.items()}
    if "flow_opd" in written:
        written["flow_opd"]["teachers"] = {"b": teacher()}
    return {
        "model": {"pipeline_arguments": {"max_sequence_length": 8}},
        "adapter": ADAPTERS["lora"],
        "method": written,
        "training": {"use_ema": True, "seed": 3, "train_batch_size": 2},
    }


def moved(session: Session) -> None:
    """Put the adapter off its start, so that every part of it has a gradient."""
    session.adapter.fresh = False
    with torch.no_grad():
        for name, parameter in session.parameters().items():
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def step(model, methods: dict[str, dict]) -> tuple[float, dict[str, float], dict[str, torch.Tensor]]:
    """The total of a step, its metrics, and the gradient of everything that is trained."""
    torch.manual_seed(0)
    with flowhooks.attach(model, document(methods)) as session:
        moved(session)
        total, metrics = 0.0, {}
        for result in session.steps(batch_for(0)):
            result.loss.backward()
            total += float(result.loss.detach())
            metrics |= {name: float(value) for name, value in result.metrics.items()}
        found = session.parameters().items()
        return total, metrics, {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in found}


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest difference of two gradients, of the parameters that both have."""
    return max(float((one[name] - other[name]).abs().max()) for name in one.keys() & other.keys())


def test_every_method_is_in_the_law():
    assert set(METHODS) == set(composition.METHODS)


@pytest.mark.parametrize(("name", "other"), LIKE.items())
def test_what_is_like_another_declares_the_same(name, other):
    one, same = (HOOKS[each].declaration(composition_options(each)) for each in (name, other))
    assert {**one, "excludes": set(one["excludes"])} == {**same, "excludes": set(same["excludes"])}


@pytest.mark.parametrize(("first", "second"), RUNNING)
def test_both_losses_are_in_the_total_with_a_gradient_from_each(model, first, second):
    both = {name: METHODS[name] for name in (first, second)}
    total, metrics, gradient = step(model, both)
    # The second without its loss: `sft` left out, and the alignment of Self-Flow, whose noise levels stay, weighed 0.
    added, without = ("sft_loss", [first]) if second == "sft" else ("alignment_loss", [first, second])
    less = {name: METHODS[name] if name == first else {**METHODS[name], "weight": 0} for name in without}
    rest, _, of_the_rest = step(model, less)
    assert metrics[added] > 0
    assert total == pytest.approx(rest + metrics[added], rel=1e-5)
    assert apart(gradient, of_the_rest) > 1e-6
    # The gradient of the second is not all there is.
    assert max(float(value.abs().max()) for value in of_the_rest.values()) > 1e-6


@pytest.mark.parametrize("other", ["flow_dpo", "flow_grpo"])
def test_what_sft_adds_is_the_gradient_of_plain_flow_matching(model, other):
    """Beside pairs on the prediction that is made anyway, beside a rollout on a chunk of its own: the same noise."""
    _, _, plain = step(model, {"sft": {}})
    _, _, alone = step(model, {other: METHODS[other]})
    _, _, both = step(model, {other: METHODS[other], "sft": {"weight": 0.5}})
    for name, value in plain.items():
        torch.testing.assert_close(both[name] - alone[name], 0.5 * value, rtol=2e-3, atol=2e-6)


@pytest.mark.parametrize(("first", "second"), REFUSED)
def test_what_is_refused_is_refused_in_words_of_the_user(first, second):
    with pytest.raises(ConfigError) as caught:
        list(iter([composition.plan_run(resolve_run(document_of(first, second), Path("run.json")), composition.DATA)]))
    (problem,) = caught.value.problems
    assert f"`{first}`" in problem.message and f"`{second}`" in problem.message
    assert problem.path in (f"$.method.{first}", f"$.method.{second}")
    assert not any(word in problem.message for word in SLOT_WORDS), problem.message
    assert "`adapter.init_from`" in problem.message
    named = set(HOOKS) - set(METHODS)
    assert not any(f"`{hook}`" in problem.message or f"'{hook}'" in problem.message for hook in named)


def document_of(first: str, second: str) -> dict:
    return {
        "method": {name: dict(composition.REQUIRED.get(name, {})) for name in (first, second)},
        "adapter": {"rank": 4},
        "training": {"use_ema": True},
    }


#: Options of hooks for a step on the tiny pipeline, where their defaults are not enough.
OPTIONS: dict[str, dict] = {
    "weight_average": {"decay": 0.9},
    "adapter_gate": {"sigma": 0.9},
    "adjoint_target": {"rewards": REWARDS},
    "anchor_regularizer": {"weight": 0.1},
    "distribution_matching": {"jumps": 1, "critic_rank": 2},
    "feature_alignment": {"block_index": 0, "teacher_block_index": 1, "weight": 0.2},
    "ends": {**DRAWN, "group_size": 2, "rewards": REWARDS, "noise": "group"},
    "flow_grpo": {"rewards": REWARDS},
    "kto": {"label": None},
    "on_policy_rollout": {
        "prompts": ["one", "a photo of two"],
        "num_inference_steps": 3,
        "sampler": "sde",
        "visits": 1,
        "group_size": 2,
    },
    "target_replacer": {"target_mode": "flow_map"},
    "teacher_velocity": {"teachers": {"b": "written by the test"}},
}
#: Of hooks that only a sampler without chance goes with.
ODE = {"sampler": "ode", "visits": None, "sigma_max": 0.9, "weighting": "dt"}


def related(one: str, other: str) -> bool:
    """Whether two hooks write or read the same thing, or one reads what the other writes."""
    touched = [set(), set()]
    for found, name in zip(touched, (one, other), strict=True):
        declared = HOOKS[name].declaration(composition_options(name))
        found |= {s.split(":")[0] for s in declared.get("slots", ()) if SLOTS[s.split(":")[0]] != "sum"}
        for key in ("needs", "wants", "gives"):
            found |= set(declared.get(key, ()))
        found |= {f"view:{view}" for view, _ in declared.get("passes", ())}
    return bool(touched[0] & touched[1])


def composition_options(name: str) -> dict:
    return flowhooks.config.resolve_hook(block(name), name).options


def block(name: str, beside: str = "") -> dict:
    options = dict(OPTIONS.get(name, {}))
    if name == "teacher_velocity":
        options["teachers"] = {"b": teacher()}
    if name == "on_policy_rollout" and beside in ("adjoint_target", "adapter_gate"):
        options |= ODE
    if name == "flow_matching_loss" and beside == "on_policy_rollout":
        options["prediction"] = "data"
    return {"type": name, **options}


#: Hooks that say what to learn from a drawn sample.
TRAINING = {"adjoint_target", "flow_grpo", "teacher_velocity"}
#: Hooks that learn from scored samples or pairs of them, one of them like all others.
PAIRED = {"flow_dpo", "kto", "mapo", "diffusion_nft", "dgpo"}
#: Those of scored samples, which need no pair.
SCORED = {"diffusion_nft", "dgpo"}
HOOK_PAIRS = [pair for pair in itertools.combinations(HOOKS, 2) if related(*pair) and not by_another(*pair)]


def blocks(first: str, second: str) -> list[dict]:
    found = [block(first, second), block(second, first)]
    drawing = {"adjoint_target", "adapter_gate", "flow_grpo"} & {first, second}
    if drawing and "on_policy_rollout" not in (first, second):
        found.append(block("on_policy_rollout", min(drawing)))
    if {"ends", "best_and_worst", *SCORED} & {first, second}:
        # Pairs of generated samples, and what learns from them.
        pairs = set() if SCORED & {first, second} else {"best_and_worst"}
        more = {"ends", *pairs, *(set() if (TRAINING | PAIRED) & {first, second} else {"flow_dpo"})}
        found += [block(name) for name in sorted(more - {first, second})]
    if {"on_policy_rollout", "adapter_gate"} & {each["type"] for each in found} and not TRAINING & {first, second}:
        # What is drawn is trained on by somebody.
        found.append(block("adjoint_target" if "adapter_gate" in (first, second) else "teacher_velocity"))
    return found


@pytest.mark.parametrize(("first", "second"), HOOK_PAIRS)
def test_two_hooks_run_and_both_are_asked_or_are_refused_by_name(model, first, second):
    written = {
        "model": {"pipeline_arguments": {"max_sequence_length": 8}},
        "adapter": ADAPTERS["lora"],
        "hooks": blocks(first, second),
        "training": {"use_ema": True, "seed": 3, "train_batch_size": 2},
    }
    torch.manual_seed(0)
    try:
        attached = flowhooks.attach(model, written)
        session = attached.__enter__()
    except ConfigError as error:
        text = str(error)
        assert "cannot be in one run with" in text or "wait for each other" in text, text
        assert f"`{first}`" in text or f"`{second}`" in text, text
        assert not any(word in text for word in SLOT_WORDS), text
        return
    try:
        asked: set[str] = set()
        for key, hook in zip(session.assembly.keys, session.assembly.hooks, strict=True):
            for slot in ("source", "data", "views", "target", "error", "reduce", "objective", "penalty"):
                watch(hook, slot, key, asked)
        batch = replace(batch_for(0), prompts=("one", "a photo of two"))
        for result in session.steps(batch, log=False):
            result.loss.backward()
            assert bool(result.loss.isfinite())
        silent = {each for each in (first, second) if each not in asked and has_loss_slot(each)}
        assert not silent, f"{silent} did nothing"
    finally:
        attached.__exit__(None, None, None)


def watch(hook, slot: str, key: str, asked: set[str]) -> None:
    method = getattr(hook, slot, None)
    if method is None:
        return

    def watched(*args, **kwargs):
        found = method(*args, **kwargs)
        if found is not None and found != {}:
            asked.add(key)
        return found

    setattr(hook, slot, watched)


def has_loss_slot(name: str) -> bool:
    """Whether a hook has a slot that a step must come by; others only attach something."""
    slots = {slot.split(":")[0] for slot in HOOKS[name].declaration(composition_options(name)).get("slots", ())}
    return bool(slots - {"metrics"})


def test_the_page_is_what_the_plan_says():
    page = Path(__file__).parents[2] / "docs" / "compose.md"
    assert page.read_text(encoding="utf-8") == composition.page(), (
        "run python -m tests.laws.composition > docs/compose.md"
    )
