"""The rewards of the digits: ink on paper, and whether a judge reads the digit."""

from __future__ import annotations

import pytest
import torch

from flowhooks.digits.judge import Judge, JudgeNetwork
from flowhooks.digits.rewards import Ink, Legibility
from flowhooks.digits.scans import caption, load_scans
from flowhooks.errors import RewardError
from flowhooks.rewards import build_reward, reward_gradient, scored


def scans(count=6):
    """Pictures ``[count, 3, 32, 32]`` in [0, 1], their captions and digits."""
    papers, digits = load_scans()
    pixels = torch.from_numpy(papers[:count]).float()[:, None].expand(-1, 3, -1, -1) / 255
    return pixels, [caption(int(digit)) for digit in digits[:count]], torch.from_numpy(digits[:count])


@pytest.fixture
def judge():
    return Judge(JudgeNetwork(), torch.zeros(32), torch.eye(32), {})


def test_ink_is_the_mean_darkness():
    pixels, prompts, _ = scans()
    ink = build_reward({"type": "flowhooks.digits.rewards:Ink"})
    total, _ = scored([ink], [1.0], pixels, prompts, [{}] * 6)
    torch.testing.assert_close(total, 1 - pixels.mean((1, 2, 3)))
    flat = torch.stack([torch.ones(3, 4, 4), torch.zeros(3, 4, 4)])
    assert Ink()(flat, prompts[:2], [{}] * 2).tolist() == [0, 1]


def test_bolder_strokes_have_more_ink():
    pixels, prompts, _ = scans()
    bolder = 1 - torch.nn.functional.max_pool2d(1 - pixels, 3, 1, 1)
    assert (Ink()(bolder, prompts, [{}] * 6) > Ink()(pixels, prompts, [{}] * 6)).all()


def test_the_gradient_of_ink_is_the_same_everywhere():
    pixels, prompts, _ = scans()
    gradient = reward_gradient(Ink(), pixels, prompts, [{}] * 6)
    torch.testing.assert_close(gradient, torch.full_like(pixels, -1 / pixels[0].numel()))


def test_legibility_is_the_judges_log_probability(judge):
    pixels, prompts, digits = scans()
    values = Legibility(judge=judge)(pixels, prompts, [{}] * 6)
    expected = -torch.nn.functional.cross_entropy(judge.network(pixels * 2 - 1)[0], digits, reduction="none")
    torch.testing.assert_close(values, expected.detach())


def test_a_temperature_softens_the_judge(judge):
    pixels, prompts, digits = scans()
    values = Legibility(judge=judge, temperature=4.0)(pixels, prompts, [{}] * 6)
    logits = judge.network(pixels * 2 - 1)[0]
    torch.testing.assert_close(values, -torch.nn.functional.cross_entropy(logits / 4, digits, reduction="none"))
    with pytest.raises(ValueError, match="temperature"):
        Legibility(judge=judge, temperature=0.0)


def test_the_gradient_of_legibility_is_that_of_finite_differences(judge):
    pixels, prompts, _ = scans()
    reward, on = Legibility(judge=judge), pixels.double() * 0.5 + 0.25
    reward.network.double()
    gradient, direction = reward_gradient(reward, on, prompts, [{}] * 6), torch.randn_like(on)
    with torch.no_grad():
        ahead, behind = (reward(on + step * direction, prompts, [{}] * 6).sum() for step in (1e-5, -1e-5))
    assert float((gradient * direction).sum()) == pytest.approx(float((ahead - behind) / 2e-5), rel=1e-5)


def test_the_judge_is_neither_trained_nor_changed(judge):
    reward = Legibility(judge=judge)
    reward_gradient(reward, *scans()[:2], [{}] * 6)
    assert not any(p.requires_grad or p.grad is not None for p in reward.network.parameters())
    assert all(p.requires_grad for p in judge.network.parameters())
    for name, value in judge.network.state_dict().items():
        assert torch.equal(reward.network.state_dict()[name], value)


def test_without_another_it_is_the_embedded_judge(judge, monkeypatch):
    monkeypatch.setattr("flowhooks.digits.rewards.ensure_judge", lambda: judge)
    pixels, prompts, _ = scans()
    block = {"type": "flowhooks.digits.rewards:Legibility", "name": "reads"}
    torch.testing.assert_close(
        build_reward(block)(pixels, prompts, [{}] * 6), Legibility(judge=judge)(pixels, prompts, [{}] * 6)
    )


def test_what_it_cannot_judge(judge):
    pixels, prompts, _ = scans()
    with pytest.raises(RewardError, match="knows prompts such as 'a handwritten seven'; 'a cat' names no digit"):
        Legibility(judge=judge)(pixels, [*prompts[:5], "a cat"], [{}] * 6)
    with pytest.raises(RewardError, match="32 x 32 pixels, got 16 x 32"):
        Legibility(judge=judge)(pixels[:, :, :16], prompts, [{}] * 6)
