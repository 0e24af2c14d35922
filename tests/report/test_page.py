"""The page in a real browser: curves, images, keyboard, dark, narrow, long runs; nothing is fetched, no text runs."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from array import array
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flowhooks.cli import main
from flowhooks.errors import ConfigError
from flowhooks.report.metrics_file import Column
from flowhooks.report.page import page
from flowhooks.report.pictures import DrawnImages
from flowhooks.report.record import read_record
from flowhooks.report.serve import ReportServer
from flowhooks.sampling.sound import write_sound
from tests.cli.test_process import imported
from tests.gallery.browser import Browser
from tests.report.folders import PROMPTS, start, write_events, write_finished, write_grid, write_metrics, write_run

EVIL = "</script><img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"


@pytest.fixture(scope="module")
def browser():
    opened = Browser()
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[Path, Path]:
    """Two finished runs with everything."""
    folder = tmp_path_factory.mktemp("runs")
    training = {"max_train_steps": 60, "train_batch_size": 8}
    return write_finished(folder / "one", steps=60), write_finished(folder / "two", steps=60, seed=3, training=training)


@pytest.fixture(scope="module")
def shown(runs) -> Path:
    """The page of the first."""
    assert main(["report", str(runs[0])]) == 0
    return runs[0] / "report.html"


def texts(browser, selector: str) -> list[str]:
    return browser.run(f"[...document.querySelectorAll({json.dumps(selector)})].map(e => e.textContent)")


def quiet(browser) -> bool:
    return browser.requests() == [] and browser.complaints() == []


def test_the_method_comes_first_and_every_curve_is_drawn(shown, browser):
    browser.open(shown)
    titles = texts(browser, "#method h3")
    assert titles[:4] == ["Implicit accuracy", "Margin", "Advantages", "Margin by noise level"]
    assert texts(browser, "h2")[0] == "What the method says about itself"
    drawn = browser.run(
        "[...document.querySelectorAll('section:not(#other) .chart')]"
        ".map(c => c.querySelectorAll('path.line').length).filter(n => n > 0).length"
    )
    assert drawn == browser.run("document.querySelectorAll('section:not(#other) .chart').length") >= 11
    assert browser.run("document.querySelectorAll('#figure-4 path.line').length") == 4
    labels = texts(browser, "#figure-3 .plot tspan")
    assert {label.strip() for label in labels[::2]} == {"preferred", "rejected"}
    # A mark for each step at which something was warned of, on each curve; its words are in the list.
    assert browser.run("document.querySelectorAll('#figure-1 .warned').length") == 2
    assert "step 30" in texts(browser, "#warnings li")[1] and "pairs are saturated" in texts(browser, "#warnings li")[1]
    browser.run("(() => { document.querySelector('#other details').open = true; })()")
    assert (
        browser.run("new Promise(r => setTimeout(() => r(document.querySelectorAll('#other svg').length), 200))") == 1
    )
    assert quiet(browser)


def test_before_and_after_side_by_side_and_with_a_wipe(shown, browser):
    browser.open(shown)
    captions = "[...document.querySelectorAll('#stage figcaption')].map(e => e.innerText.replace(/\\s+/g, ' '))"
    assert browser.run(captions) == [
        "before step 0 seed 0 20 sampling steps", "after step 60 seed 0 20 sampling steps",
    ]  # fmt: skip
    assert texts(browser, "#prompt") == ["a handwritten seven"]
    loaded = "[...document.querySelectorAll('#stage img, #thumbs img')].every(i => i.complete && i.naturalWidth > 0)"
    assert browser.run(f"Promise.all([...document.images].map(i => i.decode())).then(() => {loaded})")
    before, after = browser.run("[...document.querySelectorAll('#stage img')].map(i => i.src)")
    assert before != after
    # The slider, by keyboard.
    browser.run("document.querySelector('#step').focus()")
    browser.call("Input.dispatchKeyEvent", type="keyDown", key="ArrowLeft", code="ArrowLeft", windowsVirtualKeyCode=37)
    assert texts(browser, "#at") == ["step 45"] and "after step 45" in browser.run(captions)[1]
    browser.press("[")
    browser.press("[")
    assert texts(browser, "#at") == ["step 15"]
    browser.press("w")
    assert browser.run("document.querySelector('#wipe').getAttribute('aria-pressed')") == "true"
    clipped = "document.querySelector('.over img + img').style.clipPath"
    assert browser.run(clipped) == "inset(0px 0px 0px 50%)"
    browser.run(
        "(() => { const d = document.querySelector('#divider'); d.value = 20; d.dispatchEvent(new Event('input')); })()"
    )
    assert browser.run(clipped) == "inset(0px 0px 0px 20%)"
    browser.run("document.querySelectorAll('#thumbs button')[2].click()")
    assert texts(browser, "#prompt") == ["a fox in the snow, seen from the side, soft light"]
    assert quiet(browser)


def test_curves_are_read_by_keyboard_and_saved(shown, browser):
    browser.open(shown)
    browser.run("document.querySelector('#figure-1 svg').focus()")
    browser.press("Home")
    for _ in range(3):
        browser.press("ArrowRight")
    assert texts(browser, "#told")[0].startswith("step 4: implicit accuracy 0.")
    assert any(text.startswith("step 4, logged ") for text in texts(browser, "#figure-1 text"))
    assert any(text == "step 4" for text in texts(browser, "#figure-3 text")), "all curves are read at one step"
    browser.press("Escape")
    assert not any(text == "step 4" for text in texts(browser, "#figure-3 text"))
    assert browser.run("document.querySelector('#figure-1 svg').getAttribute('aria-label')").startswith(
        "Implicit accuracy. implicit accuracy: 0."
    )
    browser.run("document.querySelector('#figure-2 .save').click()")
    saved = "new Promise(r => setTimeout(() => r(document.body.dataset.saved || ''), 400))"
    assert browser.run(saved) == "margin.png"
    reached = browser.run(
        "[...document.querySelectorAll('input, button, summary, svg')].filter(e => e.checkVisibility())"
        ".every(e => e.tabIndex === 0 && (e.getAttribute('aria-label') || e.textContent.trim() || e.labels.length))"
    )
    assert reached and quiet(browser)


@pytest.mark.parametrize("dark", [False, True])
def test_a_narrow_screen_light_or_dark_needs_no_sideways_scrolling(shown, browser, dark):
    browser.open(shown, width=420, dark=dark)
    assert browser.run("document.documentElement.scrollWidth") == 420
    light = (
        "(c => c.match(/\\d+/g).slice(0, 3).reduce((sum, part) => sum + Number(part), 0))"
        "(getComputedStyle(document.body)[{}])"
    )
    ink, paper = (browser.run(light.format(f"'{key}'")) for key in ("color", "backgroundColor"))
    assert (ink > paper) == dark and abs(ink - paper) > 450
    stroke = browser.run("document.querySelector('#figure-1 path.line').getAttribute('stroke')")
    assert stroke == ("#8ab0ff" if dark else "#2456c4") and quiet(browser)


def test_text_stays_text(tmp_path, browser):
    folder = write_run(tmp_path / "<b>&\"'", steps=4, validation={"prompts": [EVIL]})
    write_metrics(folder, range(1, 5), 4)
    line = json.dumps({"step": 4, EVIL: 1.0, "val/" + EVIL: 2.0})
    with (folder / "metrics.jsonl").open("a") as stream:
        stream.write(line + "\n")
    told = {"summary": [EVIL], "audit": [EVIL], "counts": {EVIL: 3}, "health": {EVIL: EVIL}}
    write_events(folder, [start(**told), {"step": 2, "event": "warning", "text": EVIL}])
    write_grid(folder, 0, 4, side=16)
    file = tmp_path / "page.html"
    assert main(["report", str(folder), "--output", str(file)]) == 0
    browser.open(file)
    assert browser.run("document.title") == "<b>&\"'"
    assert browser.run("document.querySelectorAll('script').length") == 2
    assert browser.run("[...document.images].every(i => i.src.startsWith('data:image/'))")
    assert EVIL in texts(browser, "#warnings li")[0] and EVIL in " ".join(texts(browser, "#data-audit li"))
    assert quiet(browser)
    # Even a script that got in would not run, nor would an image from elsewhere load.
    browser.run(
        "(() => { const s = document.createElement('script'); s.textContent = \"document.title='owned'\";"
        " document.body.append(s); document.body.insertAdjacentHTML('beforeend', '<img src=\"https://example.com/a\">');"
        " })()"
    )
    assert browser.run("document.title") == "<b>&\"'"
    refused = [each["params"]["entry"]["text"] for each in browser.complaints()]
    assert len(refused) == 2 and all("Content Security Policy" in text for text in refused)


def test_a_run_of_a_hundred_thousand_logged_steps_opens_within_two_seconds(runs, tmp_path, browser):
    record = read_record(runs[0])
    draw, steps = np.random.default_rng(0), array("d", range(1, 100_001))
    for name in record.metrics.columns:
        values = draw.normal(size=100_000)
        values[54_321] = 40.0
        record.metrics.columns[name] = Column(steps=steps, values=array("d", values))
    record.metrics.last = 100_000
    file = tmp_path / "long.html"
    file.write_text(page([replace(record)], [DrawnImages()]), encoding="utf-8")
    assert file.stat().st_size < 2_000_000
    began = time.monotonic()
    browser.open(file)
    assert browser.run("document.querySelectorAll('#figure-1 path.band').length") == 1
    assert time.monotonic() - began < 2
    # The one spike is on the curve: its axis reaches to it.
    assert "40" in texts(browser, "#figure-1 text")
    browser.run("document.querySelector('#figure-1 svg').focus()")
    browser.press("Home")
    assert any(", mean of 250, " in text for text in texts(browser, "#figure-1 text")) and quiet(browser)


def test_several_runs_share_their_axes_and_show_what_differs(runs, tmp_path, browser):
    file = tmp_path / "compare.html"
    assert main(["report", *map(str, runs), "--output", str(file)]) == 0
    browser.open(file)
    assert texts(browser, "h1") == ["2 runs compared"]
    assert browser.run(
        "[...document.querySelectorAll('#method .chart')].every(c => c.querySelectorAll('path.line').length === 2)"
    )
    rows = [row for row in texts(browser, "#settings tbody tr") if "train_batch_size" in row]
    assert rows[0] == "training.train_batch_size168"
    names = "[...document.querySelectorAll('#stage figcaption b')].map(b => b.textContent)"
    assert browser.run(names) == ["one", "two"] and quiet(browser)


def test_each_image_of_runs_with_other_prompts_has_a_thumbnail(tmp_path, browser):
    runs = [write_run(tmp_path / name, steps=20) for name in ("one", "two")]
    for number, run in enumerate(runs):
        write_metrics(run, range(1, 21), 20)
        write_grid(run, 20, 20, each=1, prompts=[f"prompt {number}", "both"])
    assert main(["report", *map(str, runs), "--output", str(tmp_path / "compare.html")]) == 0
    browser.open(tmp_path / "compare.html")
    drawn = browser.run("[...document.querySelectorAll('#thumbs img')].map(i => i.src.startsWith('data:image/'))")
    assert drawn == [True] * 3 and quiet(browser)


def test_runs_in_folders_of_one_name_are_told_apart(tmp_path, capsys):
    folders = [write_run(tmp_path / name / "out") for name in ("a", "b")]
    file = tmp_path / "compare.html"
    assert main(["report", *map(str, folders), "--output", str(file)]) == 0
    assert "<title>a/out and b/out</title>" in file.read_text()
    assert main(["report", str(folders[0]), f"{folders[0]}/", "--output", str(file)]) == 2
    assert "is named twice; name each run once" in capsys.readouterr().err


def test_sound_of_the_first_and_the_last_validation_is_played_from_the_page(tmp_path, browser):
    run = write_finished(tmp_path / "run", steps=20)
    grids = run / "validation"
    for step in (5, 10, 20):
        for number in range(2):
            clip = np.sin(np.arange(800) * (0.1 + number + step))[None]
            write_sound(grids / f"step_{step:06d}_prompt_000_{number:02d}.wav", clip=clip, rate=8000, kind=".wav")
    assert main(["report", str(run)]) == 0
    browser.open(run / "report.html")
    labels = texts(browser, "#sounds figcaption")
    assert [label.removeprefix(PROMPTS[0]) for label in labels] == [
        f" step {step}, seed {seed}" for seed in (0, 1) for step in (5, 20)
    ]
    heard = "Promise.all([...document.querySelectorAll('audio')].map(a => a.readyState ? a.duration : new Promise(done "
    heard += "=> { a.onloadedmetadata = () => done(a.duration); a.onerror = () => done('refused'); a.load(); })))"
    assert browser.run(heard) == [0.1] * 4 and quiet(browser)


def test_a_page_without_curves_and_images_stands(tmp_path, browser):
    folder = write_run(tmp_path / "fresh")
    write_events(folder, [start()])
    assert main(["report", str(folder)]) == 0
    browser.open(folder / "report.html")
    assert "This run has logged no step yet." in texts(browser, ".notices li")
    assert "There are no validation images." in texts(browser, "#images p") and quiet(browser)


def test_watching_serves_the_page_on_this_machine_and_renews_it(tmp_path, browser):
    folder = write_run(tmp_path / "run", steps=20)
    write_metrics(folder, range(1, 6), 20)
    with ReportServer([folder], 0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        assert server.server_address[0] == "127.0.0.1"
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(urllib.request.Request(server.address, headers={"Host": "evil.example:80"}))
        for path in ("run.json", "../run.json", "metrics.jsonl"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(server.address + path)
        browser.open_address(server.address)
        assert texts(browser, ".state") == ["step 5 of 20"]
        write_metrics(folder, range(1, 12), 20)
        browser.run("renew()")
        until = time.monotonic() + 20
        # The page loads anew, and is empty for a moment.
        while texts(browser, ".state") != ["step 11 of 20"] and time.monotonic() < until:
            time.sleep(0.02)
        assert texts(browser, ".state") == ["step 11 of 20"]
        assert {url for url in browser.requests()} <= {server.address, f"{server.address}state"}
        assert browser.complaints() == []
        with pytest.raises(ConfigError, match="name another --port"):
            ReportServer([folder], server.server_address[1])
        server.shutdown()
        thread.join()
    assert not (folder / "report.html").exists()


@pytest.mark.filterwarnings("error")
def test_figures_as_png_files(runs, tmp_path, capsys):
    folder, file = tmp_path / "png", tmp_path / "page.html"
    # A run with few figures, since each takes a moment.
    small = write_run(tmp_path / "small", steps=8)
    lines = [{"step": i, "loss": 1 / i, "flow_grpo_reward": i, "flow_grpo_reward_ink": i / 2} for i in range(1, 9)]
    (small / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = ["report", str(small), "--output", str(file), "--png", str(folder)]
    assert main(command) == 0 and "figures    2 in " in capsys.readouterr().out
    found = sorted(folder.iterdir())
    assert [each.name for each in found] == ["01_reward.png", "02_loss.png"]
    with Image.open(found[0]) as image:
        assert image.width > 900 and len(image.convert("RGB").getcolors(1 << 24)) > 20
    # Those of an earlier call are replaced, others are not.
    assert main(command) == 0
    Image.new("RGB", (4, 4)).save(found[1])
    before = found[1].read_bytes()
    assert main(command) == 2 and "was not written by `flowhooks report`" in capsys.readouterr().err
    assert found[1].read_bytes() == before


def test_nothing_of_others_is_replaced(runs, tmp_path, capsys):
    file = tmp_path / "mine.html"
    file.write_text("<p>mine</p>")
    assert main(["report", str(runs[0]), "--output", str(file)]) == 2
    assert "this file exists and is no report of flowhooks; name another --output" in capsys.readouterr().err
    assert file.read_text() == "<p>mine</p>"
    assert main(["report", str(runs[0]), "--watch", "--output", str(file)]) == 2
    assert "writes no file, so that --output has no use" in capsys.readouterr().err


def test_a_page_names_no_folder_of_this_machine_and_is_the_same_each_time(runs, shown):
    first = shown.read_bytes()
    assert main(["report", str(runs[0])]) == 0
    assert shown.read_bytes() == first and str(runs[0].parent).encode() not in first


def test_it_is_written_without_torch(runs, tmp_path):
    arguments = ["report", str(runs[0]), "--output", str(tmp_path / "page.html")]
    assert imported(f"from flowhooks.cli import main\nassert main({arguments!r}) == 0") == set()
