"""The page in a real browser: pictures load, filters work, nothing is fetched, nobody's text runs."""

from __future__ import annotations

import json
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from flowhooks.cli import main
from flowhooks.errors import Problem
from flowhooks.gallery import write
from flowhooks.gallery.cards import Card
from flowhooks.gallery.page import Bucket, Overview, page
from flowhooks.gallery.thumbs import Thumbs
from tests.cli.test_process import imported
from tests.data.folders import (
    PAIR,
    TRIPLE,
    image_set,
    load,
    snapshot,
    undecodable,
    write_image,
    write_mask,
    write_pairs,
)
from tests.gallery.browser import Browser, find

CAPTIONS = {
    "script": "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">",
    "quotes": '"double" \'single\' & &amp; </article></section> data-text="',
    "emoji": "ein Fuchs 🦊 – schön",
    "arabic": "قطة على السجادة",
    "long": "word " * 400,
    "joined": "supercalifragilistic" * 30,
    "sub/folder": "in a sub-folder",
    "plain": "a plain caption",
}


@pytest.fixture(scope="module")
def browser():
    opened = Browser()
    yield opened
    opened.close()


@pytest.fixture
def root(tmp_path):
    """Eight pairs with masks in `win`, two images of another size in `more`."""
    write_pairs(tmp_path, CAPTIONS, (24, 16))
    for name, caption in CAPTIONS.items():
        (tmp_path / f"win/{name}.txt").write_text(caption, encoding="utf-8")
    for seed, name in enumerate(("one", "two")):
        write_image(tmp_path / f"more/{name}.png", (24, 16), 90 + seed)
        (tmp_path / f"more/{name}.txt").write_text("a plain addition")
    return tmp_path


MORE = image_set("more", conditioning_data=None)


def inspect(root, blocks, *options: str):
    load(root, blocks)
    arguments = ["inspect", str(root / "data.json"), "--output", str(root / "out"), "--no-progress", *options]
    assert main(arguments) == 0
    return root / "out/inspect.html"


def shown(browser) -> list[str]:
    return browser.run(
        "[...document.querySelectorAll('article')].filter(a => a.checkVisibility())"
        ".map(a => a.querySelector('h3').textContent)"
    )


def choose(browser, name: str, value: str) -> list[str]:
    browser.run(
        f"(() => {{ const field = document.querySelector('[name={name}]'); field.value = {json.dumps(value)};"
        " field.dispatchEvent(new Event('input', {bubbles: true})); })()"
    )
    return shown(browser)


def quiet(browser) -> bool:
    return browser.requests() == [] and browser.complaints() == []


def test_every_picture_loads_and_nothing_else_is_asked_for(root, browser):
    browser.open(inspect(root, [*TRIPLE, MORE]))
    sizes = browser.run("[...document.images].map(i => [i.complete, i.naturalWidth, i.naturalHeight])")
    pair = [[True, 24, 16], [True, 240, 160]] * 2
    assert sizes == pair * len(CAPTIONS) + [[True, 24, 16]] * 2
    assert len(shown(browser)) == len(CAPTIONS) + 2
    assert browser.run("document.querySelector('#shown').textContent") == "10 of 10 shown"
    assert browser.run("getComputedStyle(document.querySelector('article')).borderTopLeftRadius") == "10px"
    assert quiet(browser)


def test_captions_are_shown_as_written_and_stay_text(root, browser):
    browser.open(inspect(root, TRIPLE))
    captions = browser.run(
        "Object.fromEntries([...document.querySelectorAll('article')]"
        ".map(a => [a.querySelector('h3').textContent, a.querySelector('.caption').textContent]))"
    )
    assert captions == {name: caption.strip() for name, caption in CAPTIONS.items()}
    assert browser.run("document.title") == "data.json"
    assert browser.run("document.querySelectorAll('article script, article .words img').length") == 0
    rtl = "[...document.querySelectorAll('.caption')].filter(c => getComputedStyle(c).direction === 'rtl').length"
    assert browser.run(rtl) == 1
    # Even a script that got in would not run, nor would a picture from elsewhere load.
    browser.run(
        "(() => { const s = document.createElement('script'); s.textContent = \"document.title='owned'\";"
        " document.body.append(s); document.body.insertAdjacentHTML('beforeend', '<img src=\"https://example.com/a\">');"
        " })()"
    )
    assert browser.run("document.title") == "data.json"
    refused = [each["params"]["entry"]["text"] for each in browser.complaints()]
    assert len(refused) == 2 and all("Content Security Policy" in text for text in refused)


def test_filters_hide_and_show(root, browser):
    (root / "win/plain.txt").unlink()
    write_mask(root / "mask/emoji.png", np.zeros((16, 24)))
    browser.open(inspect(root, [{**TRIPLE[0], "resolution": [8, 12]}, *TRIPLE[1:], {**MORE, "resolution": [8, 12]}]))
    everything = shown(browser)
    assert everything[:2] == ["plain", "emoji"] and len(everything) == 10
    assert choose(browser, "search", "FUCHS") == ["emoji"]
    assert choose(browser, "search", "sub/fol") == ["sub/folder"]
    assert choose(browser, "search", "\"double\" 'single' & &amp; </art") == ["quotes"]
    assert choose(browser, "search", "قطة") == ["arabic"]
    assert choose(browser, "search", "plain") == ["plain", "one", "two"]
    assert choose(browser, "dataset", "more") == ["one", "two"]
    assert choose(browser, "search", "nowhere") == []
    assert browser.run("document.querySelector('#nothing').checkVisibility()")
    browser.run("document.querySelector('#nothing button').click()")
    assert shown(browser) == everything
    assert choose(browser, "state", "problem") == ["plain"]
    assert choose(browser, "state", "warning") == ["emoji"]
    assert len(choose(browser, "state", "fine")) == 8
    assert len(choose(browser, "state", "")) == 10
    assert len(choose(browser, "bucket", "12x8")) == 9
    assert browser.run("document.querySelector('#shown').textContent") == "9 of 10 shown"
    assert quiet(browser)


def test_a_bucket_is_a_filter_and_the_keyboard_does_it_all(root, browser):
    for seed, name in enumerate(("one", "two")):
        write_image(root / f"more/{name}.png", (32, 32), seed)
    browser.open(inspect(root, [*TRIPLE, MORE]))
    buckets = browser.run("[...document.querySelectorAll('.buckets button')].map(b => b.innerText.split('\\n'))")
    assert sorted(buckets) == [["24x16", "8 samples", "win"], ["32x32", "2 samples", "more"]]
    browser.run("document.querySelector('button[data-bucket=\"32x32\"]').focus()")
    browser.press("Enter")
    assert shown(browser) == ["one", "two"]
    assert browser.run("document.activeElement.getAttribute('aria-pressed')") == "true"
    browser.press("Escape")
    assert len(shown(browser)) == 10
    visible = "getComputedStyle(document.querySelector('img.mask')).visibility"
    assert browser.run(visible) == "visible"
    browser.press("m")
    assert browser.run(visible) == "hidden"
    browser.press("m")
    browser.press("/")
    browser.call("Input.insertText", text="m sub-folder")
    assert browser.run("document.querySelector('[name=search]').value") == "m sub-folder"
    assert shown(browser) == [] and browser.run(visible) == "visible"
    browser.press("Escape")
    assert len(shown(browser)) == 10
    assert quiet(browser)


def test_problems_stand_first_and_what_is_readable_is_shown(root, browser):
    (root / "lose/plain.png").unlink()
    (root / "win/script.png").write_bytes(b"")
    browser.open(inspect(root, TRIPLE))
    told = browser.run("[...document.querySelectorAll('.told.problem li')].map(l => l.innerText)")
    assert len(told) == 2 and "script.png is empty (0 bytes)" in told[0] and "no partner in 'lose': plain" in told[1]
    above = browser.run(
        "document.querySelector('.told.problem').getBoundingClientRect().bottom"
        " < document.querySelector('article').getBoundingClientRect().top"
    )
    assert above and shown(browser)[:2] == ["plain", "script"] and len(shown(browser)) == 8
    assert browser.run("document.querySelector('article').innerText").splitlines()[:4] == [
        "preferred", "missing", "rejected", "no partner in 'lose'",
    ]  # fmt: skip
    assert browser.run("[...document.images].every(i => i.naturalWidth > 0)") and quiet(browser)


def test_what_only_decoding_shows_is_told_too(root, capsys):
    for name in ("plain", "emoji"):
        write_mask(root / f"mask/{name}.png", np.zeros((16, 24)))
    (root / "lose/arabic.png").write_bytes((root / "win/arabic.png").read_bytes())
    (root / "lose/long.png").write_bytes(undecodable((root / "lose/long.png").read_bytes()))
    inspect(root, TRIPLE)
    said = capsys.readouterr().out.splitlines()
    assert "data.json: images that cannot be decoded (1): long: the rejected side cannot be decoded (" in said[0]
    assert said[1].startswith("warning    win: both sides are the same file (1 of 8 pairs): arabic; ")
    assert said[2] == "warning    the mask is black: it trains nowhere (2): emoji, plain"


def test_a_line_break_in_a_name_is_shown(root, capsys):
    for folder in ("win", "lose", "mask"):
        (root / f"{folder}/plain.png").rename(root / f"{folder}/two\nlines\t.png")
    (root / "win/plain.txt").rename(root / "win/two\nlines\t.txt")
    inspect(root, TRIPLE)
    assert "shows      8 of 8 samples" in capsys.readouterr().out
    assert "two\nlines\t" in (root / "out/inspect.html").read_text()


def test_whatever_is_wrong_with_one_sample_the_others_are_shown(root, monkeypatch, capsys):
    """What a decoder may raise is told by it; this stands for all that nobody thought of."""
    real = write.draw

    def fails_at_one(card):
        if card.key == "plain":
            raise RecursionError("too deep")
        return real(card)

    monkeypatch.setattr(write, "draw", fails_at_one)
    inspect(root, TRIPLE)
    said = capsys.readouterr().out
    assert "(1): plain: cannot be shown (RecursionError: too deep)" in said and "shows      8 of 8 samples" in said


@given(key=st.text(min_size=1), caption=st.text(), dataset=st.text(min_size=1), told=st.text(min_size=1))
def test_no_text_becomes_markup(key, caption, dataset, told):
    """Whatever the words, the same elements with the same attributes stand on the page, and the words are in them."""

    class Reader(HTMLParser):
        def __init__(self, text: str):
            super().__init__()
            self.seen: list[tuple[str, tuple[str, ...]]] = [("", ())]
            self.texts: dict[str, str] = {}
            self.feed(text)

        def handle_starttag(self, tag, attrs):
            self.seen.append((tag, tuple(name for name, _ in attrs)))

        def handle_data(self, data):
            tag = self.seen[-1][0]
            self.texts[tag] = self.texts.get(tag, "") + data

    def read(key: str, caption: str, dataset: str, told: str) -> Reader:
        card = Card(key=key, dataset=dataset, image=None, caption=caption, problems=(told,))
        above = {"facts": {told: 1}, "problems": [Problem(told, key)], "warnings": [told], "notes": [told]}
        found = Overview(title=key, buckets={(dataset, "1x1"): Bucket(samples=1)}, of=1, **above)
        return Reader(page(found, [(card, Thumbs())]))

    one = read(key, caption, dataset, told)
    assert one.seen == read("k", "c", "d", "t").seen
    assert one.texts["h3"].startswith(key) and one.texts["title"].startswith(key) and caption in one.texts["p"]


def test_a_click_shows_the_whole_file_with_its_box_and_the_keyboard_goes_on(root, browser):
    browser.open(inspect(root, [{**TRIPLE[0], "resolution": 16}, *TRIPLE[1:]]))
    browser.run("document.querySelector('button.frame').focus()")
    browser.press("Enter")
    whole = "(() => { const i = document.querySelector('#zoom .whole'); return [i.naturalWidth, i.naturalHeight]; })()"
    assert browser.run("document.querySelector('#zoom').open")
    browser.run("Promise.all([...document.querySelectorAll('#zoom img')].map(i => i.decode()))")
    assert browser.run(whole) == [24, 16]
    parts = browser.run(
        "(() => { const [view, box] = ['.whole', '.box'].map(s => document.querySelector(`#zoom ${s}`)"
        ".getBoundingClientRect()); return [box.left - view.left, box.width, box.height].map((v, i) =>"
        " v / (i < 2 ? view.width : view.height)); })()"
    )
    assert parts == pytest.approx([4 / 24, 16 / 24, 1], abs=0.01)
    about = "document.querySelector('#zoom .about').textContent"
    first = browser.run(about)
    assert first.startswith("preferred: ") and "24x16, trained at 16x16" in first
    browser.press("ArrowRight")
    assert browser.run(about).startswith("rejected: ")
    browser.press("ArrowLeft")
    assert browser.run(about) == first
    choose(browser, "search", "")
    browser.press("Escape")
    assert not browser.run("document.querySelector('#zoom').open")
    assert browser.run("document.activeElement.className") == "frame" and len(shown(browser)) == len(CAPTIONS)
    assert quiet(browser)


def test_the_numbers_agree(root, browser):
    """Of samples that come several times, with two rejected sides each, of which one is incomplete."""
    write_image(root / "other/plain.png", (24, 16), 77)
    (root / "lose/plain.png").unlink()
    other = {"conditioning_type": "reference_loose", "dataset_type": "conditioning", "instance_data_dir": "other"}
    linked = {**TRIPLE[0], "repeats": 2, "conditioning_data": ["lose", "mask", "other"]}
    blocks = [linked, *TRIPLE[1:], {"id": "other", **other}]
    facts = (
        "Object.fromEntries([...document.querySelectorAll('.facts li')].map(l => l.innerText.split(/ (.*)/).slice(0, 2)"
        ".reverse()))"
    )
    bucket = "document.querySelector('.buckets button').innerText.split('\\n')"
    words = "document.querySelector('#shown').textContent"
    browser.open(inspect(root, blocks))
    assert browser.run(facts) == {
        "samples": "8", "images": "8", "rejected": "8", "masks": "8", "captions": "8", "in an epoch": "21"
    }  # fmt: skip
    assert browser.run(bucket) == ["24x16", "7 samples", "win, 21 in an epoch"]
    assert browser.run(words) == "8 of 8 shown" and len(shown(browser)) == 8
    assert len(choose(browser, "state", "problem")) == 1
    browser.open(inspect(root, blocks, "--sample", "3"))
    assert browser.run(words) == "3 of 3 on this page shown, 8 in all" and len(shown(browser)) == 3
    assert browser.run(bucket) == ["24x16", "7 samples", "win, 21 in an epoch, 2 on this page"]


def test_a_grey_mask_is_shown_beside_the_sides(root, browser):
    write_mask(root / "mask/plain.png", np.full((16, 24), 128))
    browser.open(inspect(root, TRIPLE))
    named = browser.run(
        "Object.fromEntries([...document.querySelectorAll('article')].map(a => [a.querySelector('h3').textContent,"
        " [...a.querySelectorAll('figcaption')].map(f => f.textContent).join()]))"
    )
    assert named.pop("plain") == "preferred,rejected,mask" and set(named.values()) == {"preferred,rejected"}
    assert "mask trains 100% with weight 0.5" in browser.run("document.querySelector('main').innerText")
    assert quiet(browser)


@pytest.mark.parametrize("dark", [False, True])
def test_a_narrow_screen_light_or_dark_needs_no_sideways_scrolling(root, browser, dark):
    (root / "lose/plain.png").unlink()
    browser.open(inspect(root, [*TRIPLE, MORE]), width=400, dark=dark)
    assert browser.run("document.documentElement.scrollWidth") == 400
    contrast = browser.run(
        "['color', 'backgroundColor'].map(key => getComputedStyle(document.body)[key].match(/\\d+/g).slice(0, 3)"
        ".reduce((sum, part) => sum + Number(part), 0))"
    )
    assert (contrast[0] > contrast[1]) == dark and abs(contrast[0] - contrast[1]) > 450
    tabbed = browser.run(
        "[...document.querySelectorAll('input, select, button')].filter(e => e.checkVisibility())"
        ".every(e => e.tabIndex === 0 && (e.ariaLabel || e.textContent.trim() || e.closest('label')))"
    )
    assert tabbed and quiet(browser)


def test_every_wording_of_a_caption_is_there_and_found(root, browser):
    template = ["a drawing of {caption}", "a photo of {caption}"]
    browser.open(inspect(root, [image_set("win", caption_template=template)]))
    assert choose(browser, "search", "a photo of a plain") == ["plain"]
    assert "or one of 1 other wording" in browser.run("document.querySelector('article:not([hidden])').innerText")


def test_a_sample_and_a_sheet(root, capsys):
    """The same bytes every time; what stood there is replaced, but only if it is ours."""
    page = inspect(root, TRIPLE, "--sample", "5")
    sheet = root / "out/inspect.png"
    first = page.read_bytes(), sheet.read_bytes()
    assert "shows      5 of 8 samples" in capsys.readouterr().out
    assert page.read_text().count("<article") == 5
    with Image.open(sheet) as picture:
        assert picture.width > 4 * 2 * 160 and picture.height > 2 * 160
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 24)}
    assert len(colours) > 500 and (214, 0, 110) in colours
    inspect(root, TRIPLE, "--sample", "5")
    assert (page.read_bytes(), sheet.read_bytes()) == first
    inspect(root, TRIPLE, "--sample", "5", "--seed", "1")
    assert page.read_bytes() != first[0]
    sheet.write_bytes((root / "win/plain.png").read_bytes())
    before = snapshot(root)
    command = ["inspect", str(root / "data.json"), "--output", str(root / "out")]
    assert main(command) == 2
    assert "inspect.png: this file exists and was not written by" in capsys.readouterr().err
    assert snapshot(root) == before


def test_a_run_file_leads_to_its_data(root, capsys):
    load(root, PAIR)
    run = root / "run.json"
    run.write_text(json.dumps({"model": {"pretrained_model_name_or_path": "digits"}, "data": "data.json"}))
    out = root / "out"
    assert main(["inspect", str(run), "--output", str(out), "--no-progress"]) == 0
    assert "<title>run.json</title>" in (out / "inspect.html").read_text()
    # So does a folder of the user's, where its sub-folders say what is what.
    for name in ("win", "lose"):
        shutil.copytree(root / name, root / "pairs" / name)
    assert main(["inspect", str(root / "pairs"), "--output", str(out), "--no-progress"]) == 0
    assert "<b>8</b> rejected" in (out / "inspect.html").read_text()
    run.write_text(json.dumps({"model": {"pretrained_model_name_or_path": "digits"}}))
    assert main(["inspect", str(run), "--output", str(out), "--no-progress"]) == 2
    assert "names no `data`" in capsys.readouterr().err
    assert main(["inspect", str(root / "gone.json"), "--output", str(root / "new")]) == 2
    assert not (root / "new").exists()


def test_names_that_are_markup_or_no_text(root):
    for name in (b"<b>&\"'.png", b"caf\xe9.png"):
        path = bytes(root / "odd") + b"/" + name
        write_image(root / "odd/x.png").rename(path.decode("utf-8", "surrogateescape"))
    page = inspect(root, [image_set("odd", caption_strategy="instanceprompt", instance_prompt="p")])
    text = page.read_text("utf-8")
    assert "<h3>&lt;b&gt;&amp;&quot;&#x27;</h3>" in text and "caf\\xe9.png has a name that is not UTF-8" in text


def test_it_is_shown_without_torch(root):
    load(root, TRIPLE)
    arguments = ["inspect", str(root / "data.json"), "--output", str(root / "out"), "--no-progress"]
    assert imported(f"from flowhooks.cli import main\nassert main({arguments!r}) == 0") == set()


def test_a_missing_browser_is_a_failure_where_ci_says_so_and_else_a_skip(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="apt-get install chromium"):
        find()
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="there is no chromium"):
        find()
