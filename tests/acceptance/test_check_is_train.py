"""`check` says what `train` will say: the same problems in the same words, for every reason to refuse a run."""

from __future__ import annotations

import ast
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from huggingface_hub import constants

import flowhooks
from flowhooks.checks import machine
from tests.acceptance.refusal_makers import Refusal
from tests.acceptance.refusals import REFUSALS
from tests.acceptance.user import Outcome, User, assert_one_error

pytestmark = pytest.mark.slow

PACKAGE = Path(flowhooks.__file__).parent
#: What refuses a run before weights load, file by file. The rest of config/ and data/ is behind the two calls that both
#: commands share, `load_run` and `examine`.
REFUSING = [
    *sorted((PACKAGE / "checks").glob("*.py")),
    PACKAGE / "config" / "rules.py",
    PACKAGE / "data" / "holdout.py",
]
#: Places that no case reaches -> where they are tested, or what they are.
ELSEWHERE = {
    "checks/machine.py: _place_problems: yield Problem(f'{place} cannot be written": "root may write everywhere",
    "checks/sizes.py: size_problems: yield Problem(message, file, f'{place}.num_frames')": "tests/checks/test_sizes.py",
    "checks/pipeline.py: model_notices: ": "tests/checks/test_hub.py",
    "checks/hub.py: ": "tests/checks/test_hub.py",
    "checks/machine.py: machine_warnings: ": "tests/checks/test_machine.py",
    "checks/optimizers.py: optimizer_warnings: ": "tests/checks/test_optimizers.py",
    "checks/machine.py: compiler_refusal: return f": "tests/checks/test_machine.py",
    "checks/machine.py: compiler_refusal: return 'on a GPU": "tests/checks/test_machine.py",
    "checks/machine.py: backend_refusal: ": "tests/checks/test_attention_backends.py",
    "checks/machine.py: _refusal_of_diffusers: ": "tests/checks/test_attention_backends.py",
    "checks/quantization.py: quantization_warnings: ": "tests/checks/test_quantization.py",
    "checks/quantization.py: _not_installed: ": "tests/checks/test_quantization.py",
    "checks/quantization.py: _not_here: ": "tests/checks/test_quantization.py",
    "checks/sizes.py: size_refusal: ": "tests/digits/test_outline.py",
    "checks/sound.py: length_refusal: ": "tests/train/test_sound.py",
    "checks/planning.py: describe_trainable: ": "words of `check`",
    "checks/planning.py: kind_of: ": "words of `check`",
    "checks/planning.py: describe_prompts: ": "words of `check`",
    "checks/planning.py: describe_reference: ": "words of `check`",
    "checks/planning.py: text_encoders_stay: ": "words of `check`",
    "checks/planning.py: unread: ": "words of `check`",
    "checks/references.py: describe_prompt_references: ": "words of `check`",
    "checks/planning.py: adapter_notices: ": "tests/checks/test_hub.py",
    "config/rules.py: plain: ": "words of `check`",
    "checks/models.py: helper_notices: ": "tests/checks/test_hub.py",
    "checks/library.py: _text: ": "a file of Diffusers that cannot be read",
}


def met(refusal: Refusal, user: User, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bring about what is refused."""
    refusal.make(user)
    for name, value in refusal.environment.items():
        monkeypatch.setenv(name, value)
    # Read by that library when it is imported.
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", "HF_HUB_OFFLINE" in refusal.environment)


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr("flowhooks.checks.machine.has_accelerator", lambda: False)
    machine.cuda_capabilities.cache_clear()
    yield
    machine.cuda_capabilities.cache_clear()


@pytest.mark.parametrize("name", REFUSALS)
def test_check_and_train_refuse_it_in_the_same_words(user, loads, monkeypatch, name):
    refusal = REFUSALS[name]
    met(refusal, user, monkeypatch)
    before = user.state()
    checked, trained = checked_and_watched(name, user), user.train(*refusal.more)
    assert_one_error(checked, 2, refusal.words)
    assert checked.out == trained.out == ""
    assert (trained.code, trained.err) == (checked.code, checked.err)
    assert loads == [] and user.state() == before
    assert not user.cache.exists()


def sites(file: Path) -> Iterator[tuple[int, int, str]]:
    """(first line, last line, what) of every place in a file that may refuse a run: what is raised, yielded, or
    returned as a sentence."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for function in (each for each in ast.walk(tree) if isinstance(each, ast.FunctionDef)):
        for each in ast.walk(function):
            inside = each.value if isinstance(each, (ast.Return, ast.Expr)) else None
            text = isinstance(inside, ast.JoinedStr) or isinstance(getattr(inside, "value", None), str)
            sentence = isinstance(each, ast.Return) and text
            if isinstance(each, ast.Raise) or isinstance(inside, (ast.Yield, ast.YieldFrom)) or sentence:
                yield each.lineno, each.end_lineno or each.lineno, f"{function.name}: {ast.unparse(each)}"


#: Name of a refusal -> the lines that ran while this process checked it: one check serves both tests.
RAN: dict[str, set[tuple[str, int]]] = {}


def checked_and_watched(name: str, user: User) -> Outcome:
    """``check`` of a refusal that has been brought about."""
    with watching() as RAN[name]:
        return user.command("check", str(user.run), *REFUSALS[name].more)


@contextmanager
def watching() -> Iterator[set[tuple[str, int]]]:
    """(file, line) of what runs in the files that refuse."""
    watched = {str(file) for file in REFUSING}
    seen: set[tuple[str, int]] = set()

    def local(frame, event, _):
        seen.add((frame.f_code.co_filename, frame.f_lineno))
        return local

    before = sys.gettrace()
    sys.settrace(lambda frame, event, _: local if frame.f_code.co_filename in watched else None)
    try:
        yield seen
    finally:
        sys.settrace(before)


def test_every_place_that_refuses_has_its_case(template, tmp_path_factory, capsys):
    # The rest was checked by the test above.
    for name in REFUSALS.keys() - RAN.keys():
        folder = tmp_path_factory.mktemp("user")
        shutil.copytree(template, folder / "mine")
        user = User(folder, lambda: tuple(capsys.readouterr()))
        with pytest.MonkeyPatch.context() as monkeypatch:
            met(REFUSALS[name], user, monkeypatch)
            checked_and_watched(name, user)
    reached = set().union(*RAN.values())
    missed = [
        f"{file.relative_to(PACKAGE).as_posix()}: {what}"
        for file in REFUSING
        for first, last, what in sites(file)
        if not any((str(file), line) in reached for line in range(first, last + 1))
    ]
    assert [what for what in missed if not what.startswith(tuple(ELSEWHERE))] == []
    assert [known for known in ELSEWHERE if not any(what.startswith(known) for what in missed)] == []


@pytest.mark.parametrize("file", ["commands/train.py", "train/setup.py", "train/loop.py"])
def test_train_has_no_refusals_of_its_own(file):
    """Whatever is refused before weights load is refused by what `check` calls too."""
    raised = [what for _, _, what in sites(PACKAGE / file) if "raise" in what]
    assert raised == []
