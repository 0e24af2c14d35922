"""Rollouts as the source of a step, teachers as its targets: on tiny pipelines, against passes made by hand."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import flowhooks
from flowhooks.config import resolve_run
from flowhooks.errors import CheckpointError, ConfigError, FlowhooksError
from flowhooks.hooks.asking import visited_velocity
from flowhooks.hooks.planning import step_cost
from flowhooks.sampling.prompts import Prompt, read_prompts, visited_places
from tests.families import learnt
from tests.families.checks import pairs
from tests.sampling.test_rollout import GUIDED

PROMPTS = [{"prompt": "one", "task": "a"}, {"prompt": "a photo of two", "task": "b"}]
ROLLOUT = {"type": "on_policy_rollout", "prompts": PROMPTS, "num_inference_steps": 4, "visits": 2}


def teachers(model, folder: Path) -> dict[str, str]:
    """Two adapters of other ranks, off the base."""
    found = {}
    for seed, name in enumerate("ab"):
        with flowhooks.attach(model, {"adapter": {"rank": 2 + seed}, "hooks": []}) as session:
            generator = torch.Generator().manual_seed(seed)
            with torch.no_grad():
                for p in session.parameters().values():
                    p.add_(0.1 * torch.randn(p.shape, generator=generator))
            session.adapter.save(folder / name, {})
        found[name] = str(folder / name)
    return found


def document(*hooks: dict, batch_size: int = 2, **more) -> dict:
    return {"adapter": {"rank": 4}, "hooks": list(hooks), "training": {"train_batch_size": batch_size}, **more}


def teaching(model, folder: Path, **more) -> dict:
    return {"type": "teacher_velocity", "teachers": teachers(model, folder), **more}


@contextmanager
def watched(session):
    """Every chunk's step."""
    steps, gather = [], session.assembly.penalties
    session.assembly.penalties = lambda step: steps.append(step) or gather(step)
    yield steps
    session.assembly.penalties = gather


@pytest.mark.parametrize("name", GUIDED)
def test_the_loss_is_the_distance_from_each_prompts_teacher(name, tmp_path):
    """On six pipelines, with guidance: a loop of one's own, and the velocities by visits of single samples."""
    model = learnt(name)
    rollout = {**ROLLOUT, "pipeline_arguments": GUIDED[name]}
    with flowhooks.attach(model, document(rollout, teaching(model, tmp_path))) as session:
        with watched(session) as steps:
            results = []
            for result in session.steps(None):
                result.loss.backward()
                results.append(result)
        assert sum(result.share for result in results) == pytest.approx(1)
        assert any(p.grad is not None and p.grad.any() for p in session.parameters().values())
        assert session.micro_step == 1
        for step, result in zip(steps, results, strict=True):
            visit, expected = step.views["main"].state.visit, []
            for row, prompt in enumerate(step.batch.prompts):
                task = {"one": "a", "a photo of two": "b"}[prompt]
                with torch.no_grad():
                    ours = visit.take([row]).velocity("policy")
                theirs = visited_velocity(step, f"adapter:{task}", visit.take([row]))
                expected.append((ours - theirs).square().mean())
            loss = float(torch.stack(expected).mean())
            assert float(result.loss.detach()) == pytest.approx(result.share * loss, rel=2e-3)


def test_states_and_their_order_depend_on_the_seed_alone(tmp_path):
    model = learnt("sd3")
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(7)
        hook = teaching(model, tmp_path / str(len(found)))
        with flowhooks.attach(model, document(ROLLOUT, hook), seed=seed) as session:
            with watched(session) as steps:
                list(session.steps(None))
            found.append([step.views["main"].noisy for step in steps])
    assert all(torch.equal(a, b) for a, b in zip(found[0], found[1], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(found[0], found[2], strict=True))


def test_forwards_are_counted(tmp_path):
    model = learnt("sd3")
    hook = teaching(model, tmp_path)
    with flowhooks.attach(model, document(ROLLOUT, hook, {"type": "anchor_regularizer", "weight": 0.1})) as session:
        calls = []
        handle = model.transformer.register_forward_pre_hook(lambda *_: calls.append(1))
        passes = sum(result.passes for result in session.steps(None, log=False))
        handle.remove()
        plan = session.assembly.plan
    assert passes == len(calls) == 4 + 2 * (1 + 1 + 2)
    cost = step_cost(plan)
    assert (cost.rollout, cost.chunks, cost.queries, len(plan.passes)) == (4, 2, 2, 2)


def test_the_anchor_may_be_a_teacher_that_nothing_is_routed_to(tmp_path):
    model = learnt("sd3")
    hook = teaching(model, tmp_path, routes={"a": "a", "b": "a"})
    anchor = {"type": "anchor_regularizer", "role": "adapter:b", "weight": 0.5}
    with flowhooks.attach(model, document(ROLLOUT, hook, anchor)) as session:
        with watched(session) as steps:
            results = list(session.steps(None))
        step = steps[0]
        distance = (step.predict("main") - step.predict("main", "adapter:b")).square().mean()
        assert float(results[0].metrics["anchor_adapter_b_loss"]) == pytest.approx(0.5 * float(distance), rel=1e-5)


def test_the_anchor_pulls_to_the_midpoint():
    """The minimum of ``|v - t|^2 + l |v - a|^2`` is ``(t + l a) / (1 + l)``, as the two losses are weighed here."""
    student = torch.zeros(1, 5, dtype=torch.float64, requires_grad=True)
    teacher, anchor, weight = torch.randn(1, 5).double(), torch.randn(1, 5).double(), 0.3
    middle = (teacher + weight * anchor) / (1 + weight)
    loss = lambda v: (v - teacher).square().mean() + weight * (v - anchor).square().mean()  # noqa: E731
    (gradient,) = torch.autograd.grad(loss(student + middle), student)
    assert torch.allclose(gradient, torch.zeros_like(gradient), atol=1e-12)


def test_weights_of_states_are_shares_of_the_loss(tmp_path):
    model = learnt("sd3")
    hook = teaching(model, tmp_path)
    shares = {}
    for weighting in ("uniform", "x0"):
        with flowhooks.attach(model, document({**ROLLOUT, "weighting": weighting}, hook)) as session:
            with watched(session) as steps:
                shares[weighting] = [result.share for result in session.steps(None)]
            sigmas = [float(step.views["main"].level[0]) for step in steps]
    assert shares["uniform"] == [0.5, 0.5]
    assert shares["x0"] == pytest.approx([0.5 * sigma**2 for sigma in sigmas])


def test_a_task_at_a_time_takes_turns(tmp_path):
    model = learnt("sd3")
    with flowhooks.attach(model, document({**ROLLOUT, "task_column": "task"}, teaching(model, tmp_path))) as session:
        seen = [list(session.steps(None))[0].files for _ in range(4)]
    assert seen == [("one", "one"), ("a photo of two", "a photo of two")] * 2


def test_prompts_of_the_data_are_drawn(tmp_path):
    model = learnt("sd3")
    batch = pairs(model)
    given = flowhooks.Batch(
        clean=batch.clean,
        condition=batch.condition,
        prompts=("a photo of two", "one"),
        records=({"task": "b"}, {"task": "a"}),
    )
    rollout = {key: value for key, value in ROLLOUT.items() if key != "prompts"}
    with flowhooks.attach(model, document(rollout, teaching(model, tmp_path))) as session:
        results = list(session.steps(given))
        assert results[0].files == ("a photo of two", "one")
        with pytest.raises(ValueError, match="holds no `prompts`"):
            list(session.steps(batch))
        with pytest.raises(ValueError, match="use `for result in session.steps"):
            session.step(given)


@pytest.mark.parametrize("estimator", ["direct", "pg_logratio"])
def test_training_closes_the_gap(estimator, tmp_path):
    model = learnt("sd3")
    torch.manual_seed(0)
    hook = teaching(model, tmp_path, estimator=estimator)
    with flowhooks.attach(model, document(ROLLOUT, hook)) as session:
        optimizer = torch.optim.AdamW(session.parameters().values(), lr=5e-3)
        gaps = []
        for _ in range(30):
            for result in session.steps(None):
                result.loss.backward()
                gaps.append(float(result.metrics["flow_opd_gap"]))
            optimizer.step()
            optimizer.zero_grad()
    ratio = sum(gaps[-10:]) / sum(gaps[:10])
    assert ratio < (0.8 if estimator == "direct" else 1.0)


def test_teachers_are_in_no_list_of_weights(tmp_path):
    model = learnt("sd3")
    hook = teaching(model, tmp_path)
    with flowhooks.attach(model, document()) as session:
        plain = sorted(session.parameters())
        state = sorted(model.transformer.state_dict())
    with flowhooks.attach(model, document(ROLLOUT, hook)) as session:
        assert sorted(session.parameters()) == plain
        assert sorted(model.transformer.state_dict()) == state
        assert {"adapter:a", "adapter:b"} <= set(session.roles)
    assert not [role for role in session.roles if role.startswith("adapter:")]


def test_a_teacher_that_changed_stops_a_resumed_run(tmp_path):
    model = learnt("sd3")
    hook = teaching(model, tmp_path)
    with flowhooks.attach(model, document(ROLLOUT, hook)) as session:
        state = session.state_dict()
        session.load_state_dict(state)
    other = {**hook, "teachers": {"a": hook["teachers"]["b"], "b": hook["teachers"]["b"]}}
    with (
        flowhooks.attach(model, document(ROLLOUT, other)) as session,
        pytest.raises(CheckpointError, match="the teacher 'a' .* is not the file that the checkpoint was"),
    ):
        session.load_state_dict(state)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"routes": {"a": "c"}}, "`routes` lead to 'c', which is none of the teachers"),
        ({"route": "tests.nowhere:function"}, "`route` 'tests.nowhere:function' cannot be imported"),
        ({"task_column": "kind"}, "has no column 'kind' to route it by"),
        ({"routes": {"a": "a"}}, "its task 'b' leads to no teacher"),
    ],
)
def test_routes_to_nowhere(changes, message, tmp_path):
    model = learnt("sd3")
    with (
        pytest.raises(FlowhooksError, match=message),
        flowhooks.attach(model, document(ROLLOUT, teaching(model, tmp_path, **changes)), allow_imports=True),
    ):
        pass


def by_length(prompt: str, record: dict) -> str:
    return "a" if len(prompt) < 5 else "base"


def test_a_function_routes_and_the_base_teaches(tmp_path):
    model = learnt("sd3")
    hook = teaching(model, tmp_path, route="tests.hooks.test_on_policy:by_length")
    with flowhooks.attach(model, document(ROLLOUT, hook), allow_imports=True) as session:
        with watched(session) as steps:
            results = list(session.steps(None))
        rows = dict(zip(steps[0].batch.prompts, range(2), strict=True))
        target, view = steps[0].target("main"), steps[0].views["main"]
        base = visited_velocity(steps[0], "reference", view.state.visit)
        assert torch.allclose(target[rows["a photo of two"]], base[rows["a photo of two"]], atol=1e-5)
        assert torch.isnan(results[0].metrics["flow_opd_gap_b"])


def test_files_of_prompts(tmp_path):
    text, lines = tmp_path / "p.txt", tmp_path / "p.jsonl"
    text.write_text("one\n\n  two \n", encoding="utf-8")
    lines.write_text("\n".join(json.dumps(each) for each in PROMPTS), encoding="utf-8")
    assert read_prompts(str(text)) == [Prompt("one"), Prompt("two")]
    assert read_prompts(str(lines)) == [Prompt("one", {"task": "a"}), Prompt("a photo of two", {"task": "b"})]
    assert read_prompts(["one", PROMPTS[0]]) == [Prompt("one"), Prompt("one", {"task": "a"})]


def test_prompts_name_references_relative_to_their_file(tmp_path):
    rows = [
        {"prompt": "one", "images": "a.png", "task": "a"},
        {"prompt": "two", "images": ["b.png", "~/c.png"]},
        {"prompt": "three", "images": {"image": "a.png", "last_image": ["b.png"]}},
        {"prompt": "four", "images": None},
    ]
    file = tmp_path / "p.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    first, second, third, fourth = read_prompts(str(file))
    assert first == Prompt("one", {"task": "a"}, given=str(tmp_path / "a.png"))
    assert second.given == [str(tmp_path / "b.png"), str(Path.home() / "c.png")]
    assert third.given == {"image": str(tmp_path / "a.png"), "last_image": [str(tmp_path / "b.png")]}
    assert fourth == Prompt("four")
    assert read_prompts([rows[0]])[0].given == "a.png", "relative to the working directory"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.jsonl", b'{"prompt": "a", "images": 3}', "line 1: 'images' names the references of a prompt: .*found 3"),
        ("p.jsonl", b'{"prompt": "a", "images": {"image": {}}}', "an object of either by pipeline argument; found"),
        ("p.txt", b"\n \n", "holds no prompt"),
        ("p.jsonl", b'{"prompt": "a"}\n{"prmpt": "b"}', "line 2: expected a prompt"),
        ("p.jsonl", b"{", "line 1: is no JSON"),
        ("p.txt", b"\xff\xfe", "is UTF-16; save the file as UTF-8"),
        (None, b"", "cannot be read"),
    ],
)
def test_bad_files_of_prompts(tmp_path, name, content, message):
    file = tmp_path / (name or "nowhere.txt")
    if name:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_prompts(str(file))
    hook = {"type": "on_policy_rollout", "prompts": str(file)}
    with pytest.raises(ConfigError, match=message), flowhooks.attach(learnt("sd3"), document(hook)):
        pass


def test_the_last_step_is_left_out():
    assert visited_places(10, 0.99, None) == list(range(9))
    assert visited_places(10, 1.0, None) == list(range(10))
    assert visited_places(10, 0.5, (2, 8)) == [2, 3, 4]
    assert visited_places(4, 0.01, None) == [0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise_level": 0.0}, "noise_level"),
        ({"window": [3, 2]}, "window"),
        ({"sampler": "dpm"}, "sampler"),
        ({"train_fraction": 0.0}, "train_fraction"),
        ({"visits": 0}, "visits"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ConfigError, match=message), flowhooks.attach(learnt("sd3"), document({**ROLLOUT, **options})):
        pass


def test_a_hold_out_of_what_is_drawn_is_refused():
    with pytest.raises(ConfigError, match=r"\$\.validation\.holdout: samples that a run generates cannot be held out"):
        resolve_run({"hooks": [ROLLOUT], "validation": {"holdout": 2}}, Path("run.json"))


def test_a_teacher_of_another_model_is_refused(tmp_path):
    hook = teaching(learnt("flux"), tmp_path)
    with pytest.raises(FlowhooksError, match="a"), flowhooks.attach(learnt("sd3"), document(ROLLOUT, hook)):
        pass


def test_nothing_is_shown_where_the_expert_is_never_asked(tmp_path):
    """Two experts: visits outside the trained one's range are left out; none left is an error."""

    model = learnt("wan-two-experts")
    low, _ = model.sigma_range
    hook = {
        "type": "teacher_velocity",
        "teachers": {"a": teachers(model, tmp_path)["a"]},
        "routes": {"a": "a", "b": "a"},
    }
    with flowhooks.attach(model, document({**ROLLOUT, "visits": 3}, hook)) as session:
        with watched(session) as steps:
            results = list(session.steps(None))
        assert all(float(step.views["main"].level[0]) >= low for step in steps)
        assert len(results) <= 3
