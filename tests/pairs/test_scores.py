"""`flowhooks pairs from-scores` on real files."""

from __future__ import annotations

import csv
import os
from io import StringIO

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flowhooks.cli import main
from flowhooks.config import load_datasets
from flowhooks.data import audit
from flowhooks.data.ranking import choose
from flowhooks.errors import DataError
from flowhooks.pairs import pairs_from_scores
from flowhooks.pairs.scores import read_scores
from tests.cli.test_process import imported
from tests.data.folders import snapshot, write_image

HEADER = "image,prompt,score\n"


@pytest.fixture
def scored(tmp_path):
    """A folder `in` with six images; `write(text)` writes its `scores.csv`."""
    for seed, name in enumerate("abcdef"):
        write_image(tmp_path / "in" / f"{name}.png", seed=seed)

    def write(text: str | bytes):
        file = tmp_path / "in" / "scores.csv"
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return file

    return write


def problems(file, output, **options) -> list[str]:
    before = snapshot(file.parent)
    with pytest.raises(DataError) as refused:
        pairs_from_scores(file, output, **options)
    assert not output.exists() and snapshot(file.parent) == before
    return [str(problem).replace(f"{file}:", "") for problem in refused.value.problems]


def test_best_against_worst_of_each_prompt(scored, tmp_path, capsys):
    lines = 'a.png,"a cat, sitting",0.5\nb.png,"a cat, sitting",0.9\nc.png,"a cat, sitting",-1e-1\n'
    file = scored(f"\ufeff{HEADER}{lines}d.png,a dog,1\ne.png,a dog,1\nf.png,a bird,3\n")
    out = tmp_path / "made"
    assert main(["pairs", "from-scores", str(file), "--output", str(out)]) == 0
    said = capsys.readouterr().out
    assert "wrote      1 pair of 2 of 6 images" in said
    assert "2 groups without a pair: 1 of one image (a bird), 1 of scores that are equal or too close (a dog)" in said
    assert (out / "preferred/000000.png").read_bytes() == (file.parent / "b.png").read_bytes()
    assert (out / "rejected/000000.png").read_bytes() == (file.parent / "c.png").read_bytes()
    assert (out / "preferred/000000.txt").read_text() == "a cat, sitting\n"
    assert (out / "pairs.csv").read_text() == "pair,preferred,rejected,gap\n000000,b.png,c.png,1\n"
    found = audit(load_datasets("dataset.json", out))
    assert found.provides == {"image", "rejected"} and found.captions == ("a cat, sitting",)


@given(
    scores=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), min_size=1, max_size=12),
    way=st.sampled_from(["best-worst", "adjacent", "all"]),
    gap=st.integers(0, 4),
)
def test_chosen_pairs_against_the_definition(scores, way, gap):
    class Line:
        def __init__(self, line, group, score):
            self.line, self.group, self.score = line, group, score

    lines = [Line(i, group, score) for i, (group, score) in enumerate(scores)]
    pairs = [(one.line, other.line) for one, other in choose(lines, way, gap)]
    wanted = set()
    for group in {line.group for line in lines}:
        members = sorted((line for line in lines if line.group == group), key=lambda each: (-each.score, each.line))
        steps = {"best-worst": [len(members) - 1], "adjacent": [1], "all": range(1, len(members))}[way]
        wanted |= {
            (members[i].line, members[i + step].line)
            for step in steps
            for i in range(len(members) - step)
            if members[i].score > members[i + step].score and members[i].score - members[i + step].score >= gap
        }
    assert set(pairs) == wanted and len(pairs) == len(wanted)


def test_a_group_column_decides_who_is_compared(scored, tmp_path):
    file = scored("score,group,prompt,image\n1,x,p,a.png\n2,x,p,b.png\n5,y,p,c.png\n4,y,p,d.png\n")
    pairs_from_scores(file, tmp_path / "made", way="all")
    with (tmp_path / "made/pairs.csv").open(newline="") as made:
        assert [(row["preferred"], row["rejected"]) for row in csv.DictReader(made)] == [
            ("b.png", "a.png"),
            ("c.png", "d.png"),
        ]


def test_columns_may_have_the_names_they_have_in_data_sets(scored, tmp_path):
    file = scored("score, file_name ,caption,seed\n1,a.png,p,7\n2,b.png,p,8\n")
    assert pairs_from_scores(file, tmp_path / "made").summary == "1 pair of 2 of 2 images"


def test_sizes_may_differ_between_pairs_and_small_images_are_named_or_left_out(scored, tmp_path):
    for seed, name in enumerate(("wide", "wider")):
        write_image(tmp_path / f"in/{name}.png", (32, 16), seed=9 + seed)
    file = scored(HEADER + "a.png,p,1\nb.png,p,2\nwide.png,q,2\nwider.png,q,3\n")
    pairs_from_scores(file, tmp_path / "made")
    assert audit(load_datasets("dataset.json", tmp_path / "made")).buckets == {(16, 16, 1): 1, (32, 16, 1): 1}
    large = ["resolution=[16, 24]"]
    said = problems(file, tmp_path / "large", settings=large)
    assert [line.partition(" for ")[0] for line in said] == [
        "3: 'b.png' is 16x16, too small",
        "2: 'a.png' is 16x16, too small",
    ]
    made = pairs_from_scores(file, tmp_path / "large", settings=[*large, "small_images=leave_out"])
    assert made.warnings == ("`small_images` leaves out 1 of 2 pairs",)
    assert "is null, the size the images have" in problems(file, tmp_path / "x", settings=["aspect=bucket"])[0]


def test_every_line_that_cannot_be_used_is_named(scored, tmp_path):
    os.symlink("/etc/hostname", tmp_path / "in/link.png")
    os.symlink(tmp_path / "elsewhere", tmp_path / "in/out")
    write_image(tmp_path / "elsewhere/g.png")
    (tmp_path / "in/text.png").write_text("text")
    rows = [
        "../elsewhere/g.png,p,1",
        f"{tmp_path}/in/a.png,p,1",
        "C:\\a.png,p,1",
        "link.png,p,1",
        "out/g.png,p,1",
        "text.png,p,1",
        "gone.png,p,1",
        "a.png,p,nan",
        "a.png,p,inf",
        'a.png,p,"0,5"',
        "a.png,,1",
        "a.png,p",
        'a.png,"two\nlines",x',
        "a.png,p,1",
        "a.png,p,2",
    ]
    said = problems(scored(HEADER + "\n".join(rows) + "\n"), tmp_path / "made", settings=["crop=middle"])
    expected = [
        "--set: crop: ",
        "2: has the `image` '../elsewhere/g.png', which leaves the CSV's folder by '..'",
        "3: has the absolute `image`",
        "4: has the absolute `image`",
        "5: has the `image` 'link.png', a link to /etc/hostname, outside the CSV's folder",
        "6: has the `image` 'out/g.png', a link to",
        "7: has the `image` 'text.png', which is not a PNG, JPEG, WebP, BMP, TIFF, AVIF or HEIC image",
        "8: has the `image` 'gone.png', which cannot be read (No such file or directory)",
        "9: has the `score` 'nan'; expected a finite number",
        "10: has the `score` 'inf'; expected a finite number",
        "11: has the `score` '0,5'; expected a finite number",
        "12: has an empty `prompt`",
        "13: has 2 cells, the first line 3",
        "14: has the `score` 'x'",
        "17: has the `image` 'a.png' again, as line 16 of its group",
    ]
    assert len(said) == len(expected)
    for line, start in zip(said, expected, strict=True):
        assert line.startswith(start)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (HEADER.encode() + b"a.png,p,1\nb.png,caf\xe9,2\n", "3: byte 0xe9 is not UTF-8"),
        ("", "1: there is no column for 'image' (file_name, image, "),
        ("img,score\n", "1: there is no column for 'prompt' (caption, text, prompt); this line names 'img', 'score'"),
        ("image,prompt,score,image\n", "1: names the column 'image' twice"),
        (HEADER, " holds no line after its header"),
        (HEADER + 'a.png,"p" q,1\n', "2: is not CSV: "),
        (HEADER + 'a.png,"p,1\n', "2: is not CSV: "),
        (HEADER + "a.png,p,1\n", " gives no pair: 1 group of 1 image"),
        (HEADER + "a.png,p,1\nwide.png,p,2\n", "2: 'a.png' is 16x16, its partner 'wide.png' of line 3 is 32x16"),
        ("image,prompt,score,group\na.png,p,1,g\nb.png,q,1,g\n", "3: has the prompt 'q', but line 2 of its group 'g'"),
        (HEADER + "".join(f"{i}.png,p,{i}\n" for i in range(30)), None),
    ],
)
def test_a_wrong_file(scored, tmp_path, text, said):
    write_image(tmp_path / "in/wide.png", (32, 16), seed=9)
    write_image(tmp_path / "in/wider.png", (32, 16), seed=10)
    found = problems(scored(text), tmp_path / "made")
    if said is None:
        assert len(found) == 21 and found[-1] == " 10 more lines cannot be used"
    else:
        assert len(found) == 1 and found[0].startswith(said)


CELL = st.one_of(
    st.sampled_from(["a.png", "b.png", "c.png", "p", "q", "1", "2", "-3.5", "../a.png", "/etc/passwd", "nan", "", "."]),
    st.text(max_size=8),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(header=st.permutations(["image", "prompt", "score"]), rows=st.lists(st.lists(CELL, min_size=2, max_size=4)))
def test_any_csv_is_read_or_refused_by_line(scored, header, rows):
    text = StringIO()
    csv.writer(text).writerows([header, *rows])
    file = scored(text.getvalue().encode("utf-8", "surrogatepass"))
    try:
        read = read_scores(file)
    except DataError as error:
        assert all(problem.file.startswith(str(file)) for problem in error.problems)
    else:
        assert all(each.picture.asset.path.resolve().parent == file.parent for each in read)


def test_scores_are_paired_without_torch(scored, tmp_path):
    file = scored(HEADER + "a.png,p,1\nb.png,p,2\n")
    arguments = ["pairs", "from-scores", str(file), "--output", str(tmp_path / "made")]
    assert imported(f"from flowhooks.cli import main\nassert main({arguments!r}) == 0") == set()
