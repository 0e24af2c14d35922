"""Names are printed so that a terminal shows them and does nothing else."""

from __future__ import annotations

import json
import sys
import warnings

import pytest

from flowhooks.cli import main
from flowhooks.errors import FlowhooksWarning, Problem
from flowhooks.printing import printable
from flowhooks.train.metrics import Voice
from tests.cli.folders import BLOCKS, make_run

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


def test_warnings_are_printed_escaped(tmp_path, capsys, monkeypatch):
    def warn(args):
        for category in (FlowhooksWarning, UserWarning):
            sys.stderr.write(warnings.formatwarning(f"of {EVIL}", category, "somewhere.py", 1))
        Voice(True).say(f"said {EVIL}")
        return 0

    monkeypatch.setattr("flowhooks.commands.env.run", warn)
    assert main(["env"]) == 0
    err = capsys.readouterr().err
    assert "\x1b" not in err
    assert all(words in err for words in ("warning: of \\x1b", "UserWarning: of \\x1b", "warning: said \\x1b"))
