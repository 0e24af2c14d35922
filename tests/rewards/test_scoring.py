"""What is asked of a reward's answer, and what a gradient must be."""

from __future__ import annotations

import pytest
import torch

from flowhooks.errors import RewardError
from flowhooks.rewards import PictureReward, Reward, reward_gradient, scored, scored_with_gradient
from flowhooks.rewards.base import spread_frames

PROMPTS = ["one", "two"]
RECORDS = [{}, {}]


class Given(PictureReward):
    """Whatever a function makes of pictures."""

    def __init__(self, of, name="given", range=(None, None), differentiable=True, max_frames=8):
        super().__init__(name=name, max_frames=max_frames)
        self.of, self.range, self.differentiable = of, range, differentiable

    def score(self, pictures, prompts, records):
        return self.of(pictures)


def red(pictures):
    return pictures[:, 0].mean((1, 2))


def brightness(pictures):
    return pictures.mean((1, 2, 3))


def pixels(*shape):
    return torch.rand(shape or (2, 3, 6, 5))


def ask(*rewards, on=None, weights=None):
    return scored(rewards, weights or [1.0] * len(rewards), pixels() if on is None else on, PROMPTS, RECORDS)


def test_the_sum_is_weighted_and_each_is_told_by_name():
    on = pixels()
    total, each = ask(Given(red, "red"), Given(brightness, "bright"), on=on, weights=[2.0, -0.5])
    torch.testing.assert_close(total, 2 * on[:, 0].mean((1, 2)) - 0.5 * on.mean((1, 2, 3)))
    assert list(each) == ["red", "bright"]


def test_a_weight_of_zero_measures_only():
    on = pixels().requires_grad_()
    total, each = ask(Given(red, "red"), Given(brightness, "bright"), on=on, weights=[1.0, 0.0])
    assert torch.equal(total, each["red"])
    total.sum().backward()
    assert not on.grad[:, 1:].any()
    step = Given(lambda p: p.mean((1, 2, 3)).round(), "steps", differentiable=False)
    total, each, gradient = scored_with_gradient([Given(red), step], [1.0, 0.0], on.detach(), PROMPTS, RECORDS)
    torch.testing.assert_close(gradient, on.grad)
    assert set(each) == {"given", "steps"}


def test_the_graph_is_kept():
    on = pixels().requires_grad_()
    ask(Given(red), on=on)[0].sum().backward()
    assert on.grad[:, 0].all()


def test_half_precision_pixels_are_judged_in_fp32():
    seen = []
    ask(Given(lambda p: seen.append(p.dtype) or red(p)), on=pixels().bfloat16())
    assert seen == [torch.float32]


def test_a_class_of_ones_own_meets_the_protocol():
    assert isinstance(Given(red), Reward)


# Answers that are refused.


@pytest.mark.parametrize(("value", "word"), [(float("nan"), "nan"), (float("inf"), "inf")])
def test_a_value_that_is_not_finite_names_reward_and_prompt(value, word):
    spoiled = Given(lambda p: red(p) + torch.tensor([0.0, value]), "spoiled")
    with pytest.raises(RewardError, match=rf"'spoiled' gave {word} for prompt 'two' \(image 2 of 2\)"):
        ask(Given(brightness), spoiled)
    with pytest.raises(RewardError, match="'spoiled' gave"):
        reward_gradient(spoiled, pixels(), PROMPTS, RECORDS)


@pytest.mark.parametrize(
    ("bounds", "expected"), [((0.0, 1.0), r"in \[0, 1\]"), ((None, 1.0), "at most 1"), ((9.0, None), "at least 9")]
)
def test_a_value_outside_the_range_it_declares(bounds, expected):
    with pytest.raises(RewardError, match=f"'given' gave 2 for prompt 'one'.*{expected}"):
        ask(Given(lambda p: torch.full((2,), 2.0), range=bounds))


def test_rounding_is_not_held_to_the_range():
    ask(Given(lambda p: torch.tensor([1 + 1e-6, -1e-6]), range=(0.0, 1.0)))


@pytest.mark.parametrize(
    "answer",
    [lambda p: p.mean(), lambda p: p.mean((2, 3)), lambda p: torch.zeros(2, dtype=torch.int), lambda p: [0.0, 0.0]],
)
def test_an_answer_of_another_form(answer):
    with pytest.raises(RewardError, match="reward 'given' gave .*expected floating-point"):
        ask(Given(answer))


def test_pictures_that_are_at_fault_are_not_blamed_on_the_reward():
    for spoil in (-0.9, 1.4, float("nan")):
        on = pixels()
        on[1, 2, 3, 3] = spoil
        with pytest.raises(RewardError, match=r"the image of prompt 'two' reaches from .*\[0, 1\]"):
            ask(Given(brightness), on=on)


@pytest.mark.parametrize(
    ("on", "message"),
    [
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), "floating-point"),
        (torch.zeros(2, 1, 4, 4), r"\[B, 3, H, W\]"),
        (torch.zeros(2, 4, 4), r"\[B, 3, H, W\]"),
        (torch.zeros(3, 3, 4, 4), "3 images, 2 prompts and 2 records"),
    ],
)
def test_arguments_that_do_not_belong_together(on, message):
    with pytest.raises(ValueError, match=message):
        ask(Given(brightness), on=on)


def test_names_and_weights_are_one_for_each():
    with pytest.raises(ValueError, match="different names"):
        ask(Given(red), Given(brightness))
    with pytest.raises(ValueError, match="2 weights for 1"):
        ask(Given(red), weights=[1.0, 2.0])


# Gradients.


def test_the_gradient_is_that_of_the_weighted_sum():
    on = pixels().double()
    rewards = [Given(lambda p: p.square().mean((1, 2, 3)), "square"), Given(red, "red")]
    total, each, gradient = scored_with_gradient(rewards, [3.0, -2.0], on, PROMPTS, RECORDS)
    expected = 6 * on / on[0].numel()
    expected[:, 0] -= 2 / on[0, 0].numel()
    torch.testing.assert_close(gradient, expected)
    torch.testing.assert_close(total.double(), 3 * each["square"] - 2 * each["red"])
    assert not gradient.requires_grad and not total.requires_grad


def test_the_gradient_does_not_need_gradients_to_be_on():
    with torch.no_grad():
        assert reward_gradient(Given(red), pixels(), PROMPTS, RECORDS)[:, 0].all()


def test_a_reward_that_is_not_differentiable_is_refused_by_name():
    with pytest.raises(RewardError, match="'steps' is not differentiable.*weight 0"):
        reward_gradient(Given(red, "steps", differentiable=False), pixels(), PROMPTS, RECORDS)


@pytest.mark.parametrize(
    "broken",
    [
        lambda p: red((p * 255).to(torch.uint8) / 255),
        lambda p: red(p.detach()),
        lambda p: torch.from_numpy(p.detach().numpy()).mean((1, 2, 3)),
        lambda p: torch.ones(2, requires_grad=True),
    ],
)
def test_no_graph_to_the_pixels(broken):
    with pytest.raises(RewardError, match="'broken' declares a gradient, but no graph leads.*uint8"):
        reward_gradient(Given(broken, "broken"), pixels(), PROMPTS, RECORDS)


@pytest.mark.parametrize("flat", [lambda p: red((p * 255).round() / 255), lambda p: red(p).clamp(max=0.0)])
def test_a_gradient_of_zero(flat):
    with pytest.raises(RewardError, match="gradient of reward 'flat' is zero in every pixel.*its values are"):
        reward_gradient(Given(flat, "flat"), pixels(), PROMPTS, RECORDS)


def test_one_picture_may_have_no_gradient():
    weight = torch.tensor([0.0, 1.0])
    gradient = reward_gradient(Given(lambda p: weight * red(p)), pixels(), PROMPTS, RECORDS)
    assert not gradient[0].any() and gradient[1].any()


def test_a_gradient_that_is_not_finite():
    on = pixels()
    on[1, 0, 0, 0] = 0
    with pytest.raises(RewardError, match="gradient of reward 'root' is not finite for prompt 'two'"):
        reward_gradient(Given(lambda p: p[:, 0, 0, 0].sqrt(), "root"), on, PROMPTS, RECORDS)


# Video.


def test_a_video_is_the_mean_over_evenly_spread_frames():
    clip = pixels(2, 3, 9, 6, 5)
    _, each = ask(Given(red, max_frames=3), on=clip)
    torch.testing.assert_close(each["given"], clip[:, 0, [0, 4, 8]].mean((1, 2, 3)))


def test_frames_keep_their_prompt():
    seen = []

    class Asked(Given):
        def score(self, pictures, prompts, records):
            seen.extend(zip(prompts, (r["n"] for r in records), pictures[:, 0, 0, 0].tolist(), strict=True))
            return red(pictures)

    clip = torch.zeros(2, 3, 2, 4, 4)
    clip[0, :, 1], clip[1, :, 0], clip[1, :, 1] = 0.25, 0.5, 0.75
    scored([Asked(red)], [1.0], clip, PROMPTS, [{"n": 1}, {"n": 2}])
    assert seen == [("one", 1, 0.0), ("one", 1, 0.25), ("two", 2, 0.5), ("two", 2, 0.75)]


@pytest.mark.parametrize(
    ("count", "most", "frames"),
    [(1, 8, [0]), (5, 8, [0, 1, 2, 3, 4]), (81, 3, [0, 40, 80]), (81, 1, [40]), (10, 4, [0, 3, 6, 9])],
)
def test_spread_frames(count, most, frames):
    assert spread_frames(count, most) == frames


# Rewards of several numbers, and rewards that raise.


class Several(Given):
    """Redness and brightness, of which it makes one value."""

    numbers = {"red": 2.0, "bright": -1.0}

    def __call__(self, pixels, prompts, records):
        return {"red": red(pixels), "bright": brightness(pixels)}


def test_several_numbers_are_summed_and_told_by_name():
    on = pixels()
    total, each = ask(Several(None, "both"), on=on, weights=[0.5])
    torch.testing.assert_close(each["both"], 2 * red(on) - brightness(on))
    torch.testing.assert_close(total, 0.5 * each["both"])
    torch.testing.assert_close(each["both.red"], red(on))
    torch.testing.assert_close(each["both.bright"], brightness(on))
    _, each, gradient = scored_with_gradient([Several(None, "both")], [1.0], on, PROMPTS, RECORDS)
    assert set(each) == {"both", "both.red", "both.bright"} and gradient.any()


def test_numbers_are_those_that_have_a_weight():
    class Other(Several):
        numbers = {"green": 1.0}

    with pytest.raises(RewardError, match="'both' gave the numbers 'red', 'bright', and its `numbers` name 'green'"):
        ask(Other(None, "both"))


def raising(times, error):
    def score(pictures):
        if times:
            times.pop()
            raise error
        return red(pictures)

    return Given(score, "shaky")


def test_what_a_reward_raises_names_it():
    with pytest.raises(RewardError, match=r"^reward 'shaky' \(.*test_scoring:Given\) raised KeyError: 'x'") as caught:
        ask(raising([1], KeyError("x")))
    assert isinstance(caught.value.__cause__, KeyError)


def test_only_a_reward_that_says_so_is_asked_again(monkeypatch, capsys):
    waited = []
    monkeypatch.setattr("flowhooks.rewards.attempts.time.sleep", waited.append)
    with pytest.raises(RewardError):
        ask(raising([1], OSError("gone")))
    assert not waited
    shaky = raising([1, 1, 1], OSError("gone"))
    shaky.retryable = True
    ask(shaky)
    assert waited == [1.0, 2.0, 4.0]
    assert "reward 'shaky': OSError: gone; asking again in 4 s, 3 of 3" in capsys.readouterr().err
    shaky = raising([1] * 4, OSError("gone"))
    shaky.retryable = True
    with pytest.raises(RewardError, match="raised OSError: gone"):
        ask(shaky)
    refused = raising([1], RewardError("a record lacks a column"))
    refused.retryable, before = True, len(waited)
    with pytest.raises(RewardError, match="^a record lacks a column$"):
        ask(refused)
    assert len(waited) == before, "an error of flowhooks does not pass"
