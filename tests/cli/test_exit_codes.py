"""Usage errors, wrong runs and every other way to fail: exit codes and what is printed."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from flowhooks.cli import main
from flowhooks.commands import train as train_command
from flowhooks.commands.sample import MOST_PIXELS
from flowhooks.documents.schemas import schemas
from tests.cli.folders import COMMANDS


def test_without_a_command_the_help_is_printed_and_nothing_was_done(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["flowhooks"])
    for argv in ([], None):
        assert main(argv) == 2
        captured = capsys.readouterr()
        assert captured.out == "" and all(f"    {name} " in captured.err for name in COMMANDS)


@pytest.mark.parametrize(
    "argv, words",
    [
        (["chek"], "there is no command 'chek'; did you mean 'check'?"),
        (["zzz"], "there is no command 'zzz'; `flowhooks --help` lists them"),
        (["probe", "m", "--dtype", "bf61"], "did you mean 'bf16'?"),
        (["probe", "m", "--arguments", "{'a': 1}"], "single quotes"),
        (["probe", "m", "--arguments", "[1]"], "expected an object"),
        (["sample", "m"], "--prompt"),
        (["sample", "m", "--prompt", "a", "--steps", "0"], "expected at least 1, found 0"),
        (["sample", "m", "--prompt", "a", "--steps", "1000000000"], "expected at most 10,000, found 1000000000"),
        (["sample", "m", "--prompt", "a", "--seed", "99999999999999999999"], "expected at most 4,294,967,295"),
        (["sample", "m", "--prompt", "a", "--height", "100000"], "expected at most 16,384"),
        (["sample", "m", "--prompt", "a", "--guidance-scale", "nan"], "expected a finite number, found 'nan'"),
        (["merge", "a", "b", "--output", "c", "--method", "cat", "--weights", "inf"], "expected a finite number"),
        (["train", "run.json", "--resume", ""], "expected `latest` or a checkpoint-<step> folder"),
        (["export", "l", "--format", "a1111"], "invalid choice"),
        (["merge", "a", "b", "--output", "o"], "--method"),
        (["merge", "a", "b", "--method", "mean", "--output", "o"], "invalid choice"),
        (["merge", "--method", "cat", "--output", "o"], "ADAPTER"),
        (["check", "r", "--token", "hf_AbCdEfGh1234567890"], "unrecognized arguments: --token ***"),
    ],
)
def test_usage_errors_are_2(argv, words, capsys):
    with pytest.raises(SystemExit) as left:
        main(argv)
    assert left.value.code == 2
    err = capsys.readouterr().err
    assert words in err and "hf_AbCdEfGh" not in err


def test_a_wrong_run_is_2_one_line_each_and_a_traceback_only_on_request(tmp_path, capsys):
    path = tmp_path / "run.json"
    path.write_text('{"modle": {}, "training": {"seed": "1"}}')
    assert main(["check", str(path)]) == 2
    err = capsys.readouterr().err
    assert err.splitlines()[:2] == [
        f"{path}: $.modle: unknown key 'modle'; did you mean 'model'?",
        f"{path}: $.training.seed: expected an integer, found the string '1'; remove the quotes",
    ]
    assert "Traceback" not in err
    assert main(["check", str(path), "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_push_reads_the_run_for_what_is_not_given(tmp_path, capsys):
    assert main(["push", str(tmp_path)]) == 2
    assert "--repo-id" in capsys.readouterr().err


def _raises(error: BaseException):
    def run(args):
        raise error

    return run


@pytest.mark.parametrize(
    "error, code, words",
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(28, "No space left on device", "out/x"), 1, "out/x: No space left on device"),
        (ZeroDivisionError("by zero"), 1, "unexpected ZeroDivisionError: by zero"),
        (ValueError("hf_AbCdEfGh1234567890"), 1, "***"),
    ],
)
def test_every_way_to_fail_has_its_code(monkeypatch, capsys, error, code, words):
    monkeypatch.setattr(train_command, "run", _raises(error))
    assert main(["train", "run.json"]) == code
    err = capsys.readouterr().err
    assert words in err and "Traceback" not in err and "hf_AbCdEfGh" not in err


def test_ctrl_c_is_130_whatever_a_half_imported_package_makes_of_it(monkeypatch, capsys):
    def stumble(args):
        try:
            signal.raise_signal(signal.SIGINT)
            time.sleep(30)
        except KeyboardInterrupt:
            raise RecursionError("maximum recursion depth exceeded") from None

    # A process that is started in the background may ignore the signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        monkeypatch.setattr(train_command, "run", stumble)
        assert main(["train", "run.json"]) == 130
        assert capsys.readouterr().err == "interrupted\n"
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_sigterm_is_143_and_the_handler_of_before_comes_back(monkeypatch):
    def wait(args):
        threading.Timer(0.05, signal.pthread_kill, (threading.get_ident(), signal.SIGTERM)).start()
        time.sleep(30)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(train_command, "run", wait)
    with pytest.raises(SystemExit) as left:
        main(["train", "run.json"])
    assert left.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before


def test_sample_takes_the_sizes_that_validation_takes():
    properties = schemas()["run"]["properties"]["validation"]["properties"]
    assert {properties[key]["maximum"] for key in ("height", "width")} == {MOST_PIXELS}
