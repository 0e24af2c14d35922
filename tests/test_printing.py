"""Names are printed so that a terminal shows them and does nothing else."""

from __future__ import annotations

import ast
import json
import sys
import warnings
from pathlib import Path

import pytest

import flowhooks
from flowhooks.cli import main
from flowhooks.errors import FlowhooksWarning, Problem
from flowhooks.printing import printable
from flowhooks.train.metrics import WarnOnce
from tests.cli.folders import BLOCKS, make_run

PACKAGE = Path(flowhooks.__file__).parent
EVIL = "\x1b[2J\x1b]0;owned\x07"


@pytest.mark.parametrize("mark", ["\x1b", "\r", "\x08", "\x00", "\x7f", "\x9b", "\u202e", "\u2028", "\ud800"])
def test_what_a_terminal_would_act_on_becomes_its_escape(mark):
    told = printable(f"a{mark}b")
    assert mark not in told and told.startswith("a\\") and told.isprintable()


def test_words_of_all_languages_and_lines_stay():
    text = "Größe, 写真, שלום\n\tsecond line"
    assert printable(text) == text


def test_a_line_break_in_a_file_name_makes_no_line():
    assert "\n" not in str(Problem("no", f"a\nok{EVIL}.json", "$.a"))


def test_errors_are_printed_escaped(tmp_path, capsys):
    run = make_run(tmp_path, **{EVIL: 1})
    assert main(["check", str(run)]) == 2
    assert main(["check", str(tmp_path / f"{EVIL}.json")]) == 2
    with pytest.raises(SystemExit):
        main([EVIL])
    err = capsys.readouterr().err
    assert "\x1b" not in err and "\\x1b[2J" in err


def test_lines_of_a_command_are_printed_escaped(tmp_path, capsys):
    name = f"win{EVIL}"
    run = make_run(tmp_path)
    blocks = [{**BLOCKS[0], "id": name}, *({**b, "source_dataset_id": name} for b in BLOCKS[1:])]
    (tmp_path / "data.json").write_text(json.dumps(blocks))
    assert main(["check", str(run)]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\\x1b[2J" in out


def test_a_line_break_in_a_name_makes_no_line_of_a_command(tmp_path, capsys):
    blocks = [{**BLOCKS[0], "id": "w\nok"}, *({**b, "source_dataset_id": "w\nok"} for b in BLOCKS[1:])]
    run = make_run(tmp_path, output_dir=str(tmp_path / "o\nok"))
    (tmp_path / "data.json").write_text(json.dumps(blocks))
    for command in ("check", "explain", "inspect"):
        output = ["--output", str(tmp_path / "page\nok")] if command == "inspect" else []
        assert main([command, str(run), *output]) == 0
        out = capsys.readouterr().out
        assert out.splitlines().count("ok") == (command == "check")
        assert command == "explain" or "\\nok" in out


def test_a_line_break_in_an_error_is_no_line_of_ours(tmp_path, capsys):
    assert main(["sample", str(tmp_path / "no\nok"), "--prompt", "a", "--output", str(tmp_path / "a.png")]) != 0
    assert "ok" not in capsys.readouterr().err.splitlines()
    assert str(Problem("of a\nok", "f", "$")) == "f: $: of a\\nok"


def test_everything_is_printed_by_the_printer():
    """A `print` elsewhere would let a line break in a name through; these two print to the screen on their own."""
    own = {"cli.py", "printing.py"}
    found = {
        str(file.relative_to(PACKAGE))
        for file in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    }
    assert found == own


def test_warnings_are_printed_escaped(tmp_path, capsys, monkeypatch):
    def warn(args):
        for category in (FlowhooksWarning, UserWarning):
            sys.stderr.write(warnings.formatwarning(f"of {EVIL}", category, "somewhere.py", 1))
        WarnOnce(True).say(f"said {EVIL}")
        return 0

    monkeypatch.setattr("flowhooks.commands.env.run", warn)
    assert main(["env"]) == 0
    err = capsys.readouterr().err
    assert "\x1b" not in err
    assert all(words in err for words in ("warning: of \\x1b", "UserWarning: of \\x1b", "warning: said \\x1b"))
