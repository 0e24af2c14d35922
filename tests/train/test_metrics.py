from __future__ import annotations

import json
import math

import pytest
import torch

from flowhooks.kernel.view import StepResult
from flowhooks.train.metrics import History, MetricWindow, WarnOnce, mean_over_processes


def result(loss, **metrics):
    values = {name: torch.tensor(value) for name, value in metrics.items()}
    return StepResult(loss=torch.tensor(loss), metrics=values, passes=1)


def test_the_first_the_last_and_every_nth_step_are_logged():
    window = MetricWindow(every=4, last=10)
    assert [step for step in range(1, 11) if window.due(step)] == [1, 4, 8, 10]


def test_means_leave_out_nan_and_the_window_starts_anew():
    window = MetricWindow(every=2, last=10)
    window.add(result(1.0))
    window.add(result(3.0, margin=math.nan, drift=math.nan))
    window.add(result(5.0, margin=2.0, drift=math.nan))
    window.step()
    values = window.fetch()
    assert values["loss"] == 3.0 and values["margin"] == 2.0 and math.isnan(values["drift"])
    assert values["seconds_per_step"] > 0
    window.add(result(7.0))
    assert {k: v for k, v in window.fetch().items() if k != "seconds_per_step"} == {"loss": 7.0}


def test_weights_of_unequal_batches_count():
    measured = {"a": [torch.tensor(1.0), torch.tensor(4.0)], "b": [torch.tensor(2.0), torch.tensor(math.nan)]}
    assert mean_over_processes(measured, {"a": [2.0, 1.0], "b": [2.0, 1.0]}) == {"a": 2.0, "b": 2.0}
    # One that only some batches have goes by the sizes of those.
    some = {"a": [torch.tensor(1.0), torch.tensor(4.0)], "b": [torch.tensor(3.0)]}
    assert mean_over_processes(some, {"a": [2.0, 1.0], "b": [1.0]}) == {"a": 2.0, "b": 3.0}
    assert mean_over_processes({"a": [torch.tensor(math.inf)]}) == {"a": math.inf}


def test_history_is_standard_json_and_drops_what_a_resumed_run_writes_again(tmp_path):
    history = History(tmp_path, 0)
    for step in (1, 2, 3):
        history.append(step, {"loss": math.nan if step == 2 else step / 2})
    with history.file.open("a") as stream:
        stream.write('{"step": 4, "lo')
    History(tmp_path, 2)
    lines = [json.loads(line, parse_constant=pytest.fail) for line in history.file.read_text().splitlines()]
    assert lines == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": None}]
    History(tmp_path, 0)
    assert history.file.read_text() == ""


def test_a_warning_is_said_once_whatever_its_numbers(capsys):
    voice = WarnOnce(main=True)
    for value in (0.031, 0.012):
        voice.say(f"the factor {value} is below 0.05")
    voice.say("something else")
    WarnOnce(main=False).say("nobody hears this")
    said = capsys.readouterr().err
    assert said.count("the factor") == 1 and "something else" in said and "nobody" not in said
