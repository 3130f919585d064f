"""Pages of a run, a study, several: complete, self-contained, whatever names are in them; a browser's word for it."""

from __future__ import annotations

import base64
import io
import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.reference import browser, searches, sheets
from weightclass import results
from weightclass.cli import main
from weightclass.errors import UserError
from weightclass.report import write_report
from weightclass.search import sheet as search_sheet
from weightclass.study import sheet as study_sheet
from weightclass.study.sheet import Sheet

PICTURES = ("curves", "confusion", "reliability", "mistakes", "confused", "samples")
PILOT = "10 epochs, 10,000 images, width 0.125"
VOID = {"meta", "link", "img", "br", "hr"}


class Page(HTMLParser):
    """Counts elements, checks that they nest, and gathers pictures, links, ids and the visible text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: Counter[str] = Counter()
        self.open: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.pieces: list[str] = []
        self.feed(self.source)
        self.close()
        assert not self.open
        self.text = " ".join(" ".join(self.pieces).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.open += [tag] * (tag not in VOID)
        found = dict(attrs)
        self.images += [found] * (tag == "img")
        self.links += [value for key in ("href", "src", "srcset", "action") if (value := found.get(key))]
        self.ids += [value] if (value := found.get("id")) else []
        assert not any(key.startswith("on") for key in found)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.pieces += [data] * (self.open[-1:] != ["style"])


def check(path: Path) -> Page:
    """What holds of every page: pictures that decode, no request, no script, no dead link, a name for everything."""
    page = Page(path)
    for image in page.images:
        head, _, data = (image["src"] or "").partition(",")
        assert head == "data:image/png;base64" and image["alt"]
        with Image.open(io.BytesIO(base64.b64decode(data, validate=True)), formats=["PNG"]) as picture:
            picture.load()
            assert int(image["width"] or 0) / int(image["height"] or 0) == pytest.approx(
                picture.width / picture.height, 0.1
            )
    assert all(link.startswith(("data:image/png;base64,", "#")) or link == "data:," for link in page.links)
    assert {link[1:] for link in page.links if link[0] == "#"} <= set(page.ids)
    assert len(set(page.ids)) == len(page.ids)
    assert not re.search(r"https?:|@import|url\(|<script", page.source)
    assert page.tags["title"] == page.tags["h1"] == 1
    assert page.tags["table"] == page.tags["caption"] == page.tags["thead"]
    return page


def finished(folder: Path) -> Path:
    """A run's folder with pictures of a few pixels."""
    folder.mkdir(parents=True)
    for name in PICTURES:
        Image.new("RGB", (60, 40), "white").save(folder / f"{name}.png")
    (folder / "recipe.toml").write_text(
        '[data]\nname = "cifar10"\nsubset = 0\n\n[budget]\nparams = "5M"\n\n[model]\nblocks = [\n    3,\n    3,\n]\n',
        encoding="utf-8",
    )
    facts = {"torch": "2.13.0", "accelerator": None, "decisions": {"device": "cpu", "compile": False}}
    (folder / "environment.json").write_text(json.dumps(facts), encoding="utf-8")
    results.write(folder, sheets.result(0.9712))
    return folder


def written(out: Path, sheet: Sheet) -> Path:
    """A study's folder with figures of a few pixels."""
    folder = out / "studies" / sheet.stem
    folder.mkdir(parents=True)
    study_sheet.write(sheet, folder)
    for name in ("accuracy", "loss", "params", "pflops"):
        Image.new("RGBA", (64, 40), "white").save(folder / f"{sheet.stem}-{name}.png")
    return folder


# --- a run -------------------------------------------------------------------------------------------------


def test_a_run_is_shown_whole(tmp_path: Path) -> None:
    folder = finished(tmp_path / "paper-97-01234567")
    path = write_report(folder)
    assert path == folder / "report.html"
    page = check(path)
    assert len(page.images) == len(PICTURES)
    for part in (
        "One run paper-97",
        "weightclass train paper-97 train.seed=0",
        "test accuracy 97.12%",
        "95 %: 96.77% to 97.43%; 10,000 images",
        "parameters 4,978,810 20.0 MB of weights",
        "MACs an image 1.18 G 106 PFLOPs to train",
        "training 10 min 00 s 300 epochs, cpu, 1 threads, float32",
        "test set read once",
        "airplane 1,000 97.12% 97.12% 97.12%",
        "mean over classes",
        "cross-entropy 0.0288",
        '[budget] params = "5M"',
        "[model] blocks = [3, 3]",
        '[environment] torch = "2.13.0" accelerator = null',
        '[decisions] device = "cpu" compile = false',
    ):
        assert part.casefold() in page.text.casefold(), part
    assert "PILOT" not in page.text


def test_a_run_without_its_pictures_recipe_and_environment(tmp_path: Path) -> None:
    results.write(tmp_path, sheets.result(0.9712, split="validation"))
    page = check(write_report(tmp_path))
    assert not page.images
    assert "validation accuracy" in page.text
    assert "test set read never" in page.text
    assert not {"samples", "recipe"} & set(page.ids)


def test_a_run_on_a_part_of_the_images_is_a_pilot(tmp_path: Path) -> None:
    folder = finished(tmp_path / "run")
    (folder / "recipe.toml").write_text("[data]\nsubset = 10000\n", encoding="utf-8")
    page = check(write_report(folder))
    assert "PILOT trained on 10000 images of its training set" in page.text
    assert "<title>PILOT: paper-97</title>" in page.source


def test_a_class_may_be_called_mean(tmp_path: Path) -> None:
    card = sheets.card(0.5)
    card = msgspec.structs.replace(card, per_class={"mean": card.macro, "kind": card.macro})
    results.write(tmp_path, msgspec.structs.replace(sheets.result(0.5), scorecard=card))
    assert "mean 1,000 50.00%" in check(write_report(tmp_path)).text


# --- studies -----------------------------------------------------------------------------------------------


def test_a_study_is_shown_whole(tmp_path: Path) -> None:
    sheet = sheets.sheet(rows=3, seeds=2, waiting=[(1, 1)], failed=[(2, 1)])
    finished(tmp_path / sheet.lines[0].runs[0].folder)
    page = check(write_report(written(tmp_path, sheet)))
    assert len(page.images) == 4 + len(PICTURES)
    for part in (
        "One study Table 4: optimizers",
        "SGD 1 weightclass train paper-97 train.seed=0",
        "runs finished 4 of 6 1 failed",
        "in full, 4 of 6 runs",
        "test set read 4 times",
        "Figure 4: optimizer vs accuracy",
        "Table 4: optimizers: accuracy against training compute",
        "assumed: optim.weight_decay=0.05",
        "SGD 1 [2,3] 1 of 2",
        "out of memory at epoch 3",
        "One run in detail SGD 0, seed 0, of Table 4: optimizers",
    ):
        assert part.casefold() in page.text.casefold(), part
    assert page.text.count("The settings of the 97.12 % run with other optimizers.") == 1
    assert "+-" not in page.text
    assert "PILOT" not in page.text


def test_a_study_without_its_pictures_and_runs(tmp_path: Path) -> None:
    study_sheet.write(sheets.sheet(rows=2, seeds=1), tmp_path)
    page = check(write_report(tmp_path, tmp_path / "new" / "page.html"))
    assert not page.images
    assert not {"samples", "recipe"} & set(page.ids)
    assert "classes" in page.ids  # of the result that the sheet holds
    assert {path.name for path in tmp_path.iterdir()} == {"sheet.json", "new"}


def test_a_study_of_which_nothing_has_run(tmp_path: Path) -> None:
    sheet = sheets.sheet(rows=2, seeds=1, waiting=[(0, 0), (1, 0)])
    page = check(write_report(written(tmp_path, sheet)))
    assert "runs finished 0 of 2" in page.text
    assert "run" not in page.ids


def test_several_studies_tell_pilots_from_full_ones(tmp_path: Path) -> None:
    full = sheets.sheet(rows=2, seeds=1, name="table10", title="Table 10")
    pilot = sheets.sheet(rows=2, seeds=1, pilot=PILOT, name="table2", title="Table 2", split="validation")
    other = sheets.sheet(rows=2, seeds=1, pilot=PILOT, name="kernels", title="Kernels")
    for each in (other, full, pilot):
        written(tmp_path, each)
    page = check(write_report(tmp_path / "studies"))
    assert "PILOT 2 of these 3 studies, marked below" in page.text
    assert page.text.count(f"PILOT {PILOT}") == 4  # two rows of the overview, two banners
    heads = [page.source.index(f"<h2>{title} <span") for title in ("Table 2", "Table 10", "Kernels")]
    assert heads == sorted(heads)
    assert re.search(r"Table 10 in full - test 9\d\.\d\d% SGD 0", page.text)
    assert re.search(rf"Table 2 PILOT {PILOT} validation 9\d\.\d\d%", page.text)
    assert "runs finished 2 of 2" in page.text  # all three studies share their two runs
    assert "seed 0, of Table 10." in page.text  # the run in detail is one in full
    assert write_report(tmp_path).read_text(encoding="utf-8") == page.source


# --- a search ----------------------------------------------------------------------------------------------


def searched(out: Path, **changed: Any) -> Path:
    """A search's folder with a figure of a few pixels and the recipe that it found."""
    folder = out / "searches" / "small-cpu-0123abcd"
    folder.mkdir(parents=True)
    search_sheet.write(searches.sheet(**changed), folder)
    Image.new("RGB", (90, 40), "white").save(folder / "front.png")
    (folder / "small-cpu-found.toml").write_text("# found by <search>\n\n[model]\nblocks = [1, 2]\n", encoding="utf-8")
    return folder


def test_a_search_is_shown_whole(tmp_path: Path) -> None:
    done = searches.final()
    finished(tmp_path / "small-cpu-found-01234567")
    page = check(write_report(searched(tmp_path, final=done, final_folder="small-cpu-found-01234567")))
    assert len(page.images) == 1 + len(PICTURES)
    for part in (
        "One search Search from small-cpu: params under 701467, macs under 120M",
        "1. trial 2 1,1,1,3 x 36,58,92,148 pool=avg(2), se=blocks",
        "*695,591 *85.8M *3.89 70.10 ± 1.27 +2.90",
        "Trials: 20; 9 finished, 10 pruned, 1 failed",
        "weightclass search small-cpu budget.params=701467 --trials 20",
        "The best recipe # found by <search> [model] blocks = [1, 2]",
        "The best, trained in full weightclass train small-cpu-found.toml test accuracy 84.12%",
        '[budget] params = "5M"',
    ):
        assert part.casefold() in page.text.casefold(), part
    assert "PILOT" not in page.text and "+-" not in page.text


def test_a_search_before_its_end(tmp_path: Path) -> None:
    folder = searched(tmp_path, done=0, pruned=0, failed=0, wanted=20)
    for name in ("front.png", "small-cpu-found.toml"):
        (folder / name).unlink()
    page = check(write_report(folder))
    assert "Trials: 0 of 20; none yet." in page.text and not page.images
    assert not {"found", "run", "classes"} & set(page.ids)


def test_names_of_a_search_are_no_markup(tmp_path: Path) -> None:
    rows = [msgspec.structs.replace(searches.row(n), network="<b>", settings=("a.b=</td>",)) for n in range(2)]
    page = check(write_report(searched(tmp_path, rows=tuple(rows), recipe="<script>", command="{{ 7 * 7 }}")))
    assert "Search from <script>" in page.text and "{{ 7 * 7 }}" in page.text and "recipe <b> b=</td>" in page.text


def test_a_damaged_search_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "search.json").write_bytes(b"{}")
    with pytest.raises(UserError, match=r"search\.json: not a search of this version"):
        write_report(tmp_path)


# --- hostile names, foreign files ----------------------------------------------------------------------------

NAMES = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12)
ATTACKS = ("<script>alert(1)</script>", '"><img src=x>', "{{ 7 * 7 }}", "&lt;", "' x='", "</style>", "<!--")


def named(folder: Path, one: str, other: str) -> list[Page]:
    """The pages of a run and of a study in which everything is called so."""
    card = sheets.card(0.9, 100)
    card = msgspec.structs.replace(card, per_class={one: card.macro, f"{other} 2": card.macro})
    done = msgspec.structs.replace(sheets.result(0.9), scorecard=card, name=one, command=other, computed_on=one)
    results.write(folder, done)
    names: dict[str, Any] = {
        "title": one,
        "about": other,
        "heading": one,
        "accuracy_figure": other,
        "pilot": f"p {one}",
    }
    study_sheet.write(sheets.sheet(rows=2, seeds=1, labels=[one, f"{other} 2"], **names), folder / "study")
    Image.new("RGB", (9, 9)).save(folder / "study" / "table4-PILOT-accuracy.png")
    return [check(write_report(folder)), check(write_report(folder / "study"))]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Page]]:
    folder = tmp_path_factory.mktemp("plain")
    return folder, named(folder, "one", "other")


@settings(max_examples=12)
@given(NAMES | st.sampled_from(ATTACKS), NAMES | st.sampled_from(ATTACKS))
def test_no_name_breaks_the_page(plain: tuple[Path, list[Page]], one: str, other: str) -> None:
    folder, expected = plain
    found = named(folder, one, other)
    assert [page.tags for page in found] == [page.tags for page in expected]
    if one in ATTACKS:
        assert one in found[0].text and one in found[1].text


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("curves.png", b"GIF89a", "curves.png: not a PNG picture"),
        ("recipe.toml", b"[data", "recipe.toml: damaged"),
        ("recipe.toml", b"data = 3", "recipe.toml: damaged"),
        ("environment.json", b"\xff", "environment.json: damaged"),
        ("result.json", b"{}", "result.json: not a result"),
    ],
)
def test_a_damaged_file_is_told_in_one_line(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    folder = finished(tmp_path / "run")
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=re.escape(told)) as error:
        write_report(folder)
    assert "\n" not in str(error.value)
    assert not (folder / "report.html").exists()


def test_a_folder_of_neither_is_told(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UserError, match="neither a finished run nor a study"):
            write_report(place)


@pytest.mark.parametrize("save", [[], ["--save", "page.html"]])
def test_the_verb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], save: list[str]
) -> None:
    finished(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(["report", "run", *save])
    assert end.value.code == 0
    path = Path(save[1]) if save else Path("run", "report.html")
    assert re.fullmatch(rf"{re.escape(str(path))}: [\d.]+ kB\n", capsys.readouterr().out)
    check(path)


# --- a real browser ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(not browser.find(), reason="no Chromium or Chrome on PATH")
def test_a_browser_draws_every_picture_and_finds_no_fault(tmp_path: Path) -> None:
    command = browser.find()
    assert command
    sheet = sheets.sheet(rows=9, seeds=2, pilot=PILOT, labels=[f"ResNet {i}: 138,100,204,190 blocks" for i in range(9)])
    finished(tmp_path / sheet.lines[0].runs[0].folder)
    written(tmp_path, sheet)
    written(tmp_path, sheets.sheet(rows=2, seeds=1, name="other"))
    pages = [
        write_report(searched(tmp_path, final=searches.final(), final_folder=sheet.lines[0].runs[0].folder)),
        write_report(next(tmp_path.glob("paper-97-*"))),
        write_report(tmp_path / "studies" / sheet.stem),
        write_report(tmp_path),
    ]
    with browser.browse(command, tmp_path) as tab:
        for path in pages:
            for width in (360, 768, 1280, 1600):
                browser.open_page(tab, path, width, dark=width == 768)
                assert tab.evaluate("[...document.images].every(image => image.naturalWidth > 0 && image.width > 0)")
                assert tab.evaluate("document.images.length") == len(check(path).images)
                assert tab.evaluate("document.documentElement.scrollWidth") <= width
                assert not tab.told("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
                asked = [told["request"]["url"] for told in tab.told("Network.requestWillBeSent")]
                assert [url for url in asked if not url.startswith("data:")] == [path.resolve().as_uri()]
            printed = base64.b64decode(tab.call("Page.printToPDF", preferCSSPageSize=True)["data"])
            assert len(re.findall(rb"/Type\s*/Page\b", printed)) > 0
            assert re.search(rb"/MediaBox\s*\[0 0 59[45]\.?\d* 84[12]", printed)  # A4


@pytest.mark.slow
@pytest.mark.skipif(not browser.find(), reason="no Chromium or Chrome on PATH")
def test_the_browser_would_tell(tmp_path: Path) -> None:
    path = tmp_path / "bad.html"
    bad = "<title>x</title><img src='missing.png'><div style='width:900px'>x</div><script>console.error('no')</script>"
    path.write_text(f"<!doctype html><meta name=viewport content=width=device-width>{bad}", encoding="utf-8")
    with browser.browse(str(browser.find()), tmp_path) as tab:
        with pytest.raises(AssertionError):
            browser.open_page(tab, path, 360)
        assert tab.evaluate("document.documentElement.scrollWidth") > 360
        assert tab.told("Log.entryAdded") and tab.told("Runtime.consoleAPICalled")
