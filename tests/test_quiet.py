"""What libraries print in vain is kept off the screen; what a user can act on is not."""

from __future__ import annotations

import json
import logging
import os
import warnings

import pytest
from diffusers.utils import logging as diffusers_logging
from tqdm.auto import tqdm
from transformers.utils import logging as transformers_logging

from flowhooks.quiet import NOISE, cut_off, encoding, errors_only, quiet, quiet_libraries
from tests.cli.test_process import flowhooks
from tests.train.runs import document, write_data, write_model

VAIN = {
    "transformers.utils.import_utils": "`CLIPImageProcessor` requires torchvision (not installed); falling back to ...",
    "huggingface_hub.utils._http": "Retrying in 1s [Retry 1/5].",
    "diffusers.pipelines.pipeline_utils": "self.tokenizer_3=None of type <class 'NoneType'> cannot be saved.",
    "diffusers.pipelines.pipeline_utils.any": "Expected types for text_encoder_3: (T5EncoderModel,), got NoneType.",
    "diffusers.loaders.lora_base": "No LoRA keys associated to CLIPTextModel found with the prefix='text_encoder'.",
}
USEFUL = "Some weights of the model were not initialized"
CUT = "The following part of your input was truncated because CLIP can only handle sequences up to 77 tokens: [%r]"


@pytest.fixture
def heard():
    """Messages that reach a handler of the library's own root logger."""

    class Ear(logging.Handler):
        def emit(self, record):
            told.append(record.getMessage())

    told: list[str] = []
    ear, roots = Ear(), [logging.getLogger(name.split(".")[0]) for name in NOISE]
    for root in roots:
        root.addHandler(ear)
    yield told
    for root in roots:
        root.removeHandler(ear)


@pytest.mark.parametrize("name", VAIN)
def test_noise_is_dropped_inside_the_block_only(heard, name):
    logger = logging.getLogger(name)
    with quiet(bars=True):
        logger.error(VAIN[name])
        logger.error(USEFUL)
        assert set(heard) == {USEFUL}
    logger.error(VAIN[name])
    assert VAIN[name] in heard


def test_texts_that_are_cut_off_are_counted_in_one_line(heard, capsys):
    pipeline = logging.getLogger("diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3")
    with quiet(bars=True):
        for text in ("a cat", "a cat", "a dog"):
            pipeline.warning(CUT % text)
        logging.getLogger("transformers.tokenization_utils_base").warning(
            "Token indices sequence length is longer than the specified maximum (90 > 77)"
        )
    assert not heard
    assert capsys.readouterr().err == "warning: 2 texts are longer than a text encoder reads; the rest is cut off\n"


def test_texts_cut_off_alike_count_each_and_short_ones_beside_them_do_not(capsys):
    pipeline = logging.getLogger("diffusers.pipelines.flux.pipeline_flux")
    message = CUT.replace("[%r]", "%r")
    with quiet(bars=True):
        for _ in range(2):  # two text encoders read each
            with encoding(["long cat, oil on canvas", "a cat", "long dog, oil on canvas"]):
                pipeline.warning(message, ["oil on canvas", "<|endoftext|><|endoftext|> ", "oil on canvas"])
        assert cut_off() == "2 texts are longer than a text encoder reads; the rest is cut off"
    assert capsys.readouterr().err == ""


def test_warnings_to_programmers_are_dropped_and_others_told():
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with quiet(bars=True), warnings.catch_warnings(record=True) as inside:
            warnings.warn("in 1.0", FutureWarning, stacklevel=1)
            warnings.warn("look", UserWarning, stacklevel=1)
        warnings.warn("after", FutureWarning, stacklevel=1)
    assert [str(each.message) for each in inside] == ["look"] and [str(each.message) for each in told] == ["after"]


def test_bars_are_off_inside_and_as_they_were_after(monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    libraries = (diffusers_logging, transformers_logging)
    before = [each.is_progress_bar_enabled() for each in libraries]
    with quiet(bars=False):
        assert not any(each.is_progress_bar_enabled() for each in libraries) and os.environ["TQDM_DISABLE"] == "1"
    with quiet(bars=True):
        assert [each.is_progress_bar_enabled() for each in libraries] == before
    assert [each.is_progress_bar_enabled() for each in libraries] == before and "TQDM_DISABLE" not in os.environ


def test_a_bar_whose_maker_asks_for_it_is_shown_all_the_same():
    """Ours ask, whenever tqdm was imported; those of libraries do not."""
    with quiet(bars=False):
        theirs, ours = tqdm(total=1), tqdm(total=1, disable=False)
        assert theirs.disable and not ours.disable
        ours.close()
    after = tqdm(total=1)
    assert not after.disable
    after.close()


def test_errors_only_gives_the_verbosity_back():
    before = diffusers_logging.get_verbosity(), transformers_logging.get_verbosity()
    with quiet_libraries():
        assert diffusers_logging.get_verbosity() == transformers_logging.get_verbosity() == logging.ERROR
    with errors_only("transformers.utils.logging"):
        assert transformers_logging.get_verbosity() == logging.ERROR and diffusers_logging.get_verbosity() == before[0]
    assert (diffusers_logging.get_verbosity(), transformers_logging.get_verbosity()) == before


@pytest.mark.slow
def test_a_run_without_a_terminal_prints_our_lines_alone(tmp_path):
    training = {"max_train_steps": 2, "log_every_steps": 1}
    run = document(write_model(tmp_path / "model"), write_data(tmp_path), tmp_path / "out", training=training)
    (tmp_path / "run.json").write_text(json.dumps(run))
    done = flowhooks("train", str(tmp_path / "run.json"))
    assert done.returncode == 0, done.stderr
    words = [line.split()[0] for line in done.stderr.splitlines()]
    assert words == ["cache:", "device:", "trains:", "data:", "steps:", "step", "step"]
