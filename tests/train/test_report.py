"""What is told of a run: a summary, and then a bar or lines that tell the same."""

from __future__ import annotations

import io
import re
from contextlib import redirect_stderr

from flowhooks.train import train
from flowhooks.train.report import Progress

VALUES = {"loss": 0.69314, "learning_rate": 1e-4, "seconds_per_step": 2.0, "flow_dpo_implicit_accuracy": 0.625}
HEALTH = {"flow_dpo_implicit_accuracy": "implicit accuracy"}


def said(*, bar: bool, main: bool = True, health=HEALTH, values=VALUES) -> str:
    with redirect_stderr(io.StringIO()) as told:
        progress = Progress(total=2000, health=health, bar=bar, main=main)
        with progress.open(98):
            progress.advance()
            progress.tell(100, values)
    return told.getvalue()


def test_a_line_for_each_logged_step():
    assert said(bar=False) == (
        "step 100/2,000  loss 0.6931  implicit accuracy 0.625  rate 0.0001  2 s/step  1:03:20 left\n"
    )


def test_the_bar_tells_the_same():
    told = said(bar=True)
    assert "99/2000" in told and "loss=0.6931, implicit accuracy=0.625, rate=0.0001" in told and "left" not in told


def test_one_process_speaks():
    assert said(bar=False, main=False) == said(bar=True, main=False) == ""


def test_a_method_without_a_health_value_of_its_own_has_its_loss():
    assert "loss 0.6931  rate" in said(bar=False, health={}) == said(bar=False, health={"other": "other"})


def test_a_run_begins_with_what_it_is_about_to_do(new_run, capfd):
    sections = {"training": {"max_train_steps": 3, "log_every_steps": 1}, "validation": {"holdout": 1}}
    train(new_run(**sections), progress=False)
    lines = capfd.readouterr().err.splitlines()
    begins = {line.split(": ")[0]: line for line in lines if re.match(r"[a-z]+: ", line)}
    assert list(begins) == ["cache", "device", "trains", "data", "steps"]
    assert re.search(
        r"cpu, [\d.]+ GB of [\d.]+ GB of memory free; weights in fp32, mixed precision no", begins["device"]
    )
    assert re.fullmatch(r"trains: lora in 18 layers: [\d,]+ parameters", begins["trains"])
    assert begins["data"] == "data: 5 samples, 1 held out, batches of 2"
    assert begins["steps"] == "steps: 3, 1.2 epochs; an epoch is 2.5 steps"
    assert [line.split("  ")[0] for line in lines if line.startswith("step ")] == ["step 1/3", "step 2/3", "step 3/3"]
    assert all("implicit accuracy" in line and "s/step" in line for line in lines if line.startswith("step "))
