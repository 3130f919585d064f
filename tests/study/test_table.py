"""Tables: a pilot, missing runs and the budget told in every form; no label breaks Markdown, CSV or LaTeX."""

from __future__ import annotations

import csv
import io
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.console import Console

from tests.reference.sheets import sheet
from weightclass.errors import UserError
from weightclass.study import table
from weightclass.study.sheet import Sheet
from weightclass.study.statistics import figures

FORMS = (table.markdown, table.csv, table.latex)
PILOT = "10 epochs, 10,000 images, width 1/8"
LABELS = st.text(st.sampled_from("ab 1|&%_#$\\{}[]*~^<>`\"';,-+.\n\r\t\u2028é"), max_size=12)


def shown(told: Sheet, width: int = 120) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(table.terminal(told, narrow=width < 112))
    return out.getvalue()


def read(told: Sheet) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(table.csv(told), newline="")))


def flat(text: str) -> str:
    return " ".join(text.split())


# --- what is told ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [*FORMS, shown])
def test_a_pilot_says_so_and_how_it_was_shortened(form: Any) -> None:
    assert PILOT in flat(form(sheet(pilot=PILOT)))
    assert "pilot" not in re.sub("^study,pilot", "", form(sheet()).lower())


@pytest.mark.parametrize("form", [table.markdown, table.latex, shown])
def test_the_caption_of_a_pilot(form: Any) -> None:
    text = flat(form(sheet(pilot=PILOT)))
    assert (
        f"(PILOT: {PILOT})" in text and "of full runs, not to be compared" in text and "need not rank the rows" in text
    )
    assert "gap" not in text.lower() and "gap" in form(sheet())


def test_the_caption_tells_no_more_than_the_seeds_do() -> None:
    one, three = (table.markdown(sheet(2, seeds)) for seeds in (1, 3))
    assert "Accuracy: of one run a row;" in one and "t-test" not in one and "over the seeds that both have." in one
    assert "Accuracy: mean +- standard deviation" in three and "have; p: paired t-test" in three


@pytest.mark.parametrize("form", [table.markdown, table.latex, shown])
def test_missing_runs(form: Any) -> None:
    told = sheet(3, 3, waiting={(0, 2), (1, 0), (1, 1), (1, 2)}, failed={(2, 0), (2, 1), (2, 2)})
    text = form(told)
    for part in ("2 of 3", "0 of 3", "seed 2 failed: out of memory at epoch 3"):
        assert part in text, part
    assert "Not complete: 2 of 9 runs finished." in flat(text) and "Not complete" not in form(sheet())


@pytest.mark.parametrize("form", [*FORMS, shown])
def test_nothing_has_run(form: Any) -> None:
    assert "SGD 1" in form(sheet(2, 1, waiting={(0, 0), (1, 0)}))


def test_the_split_is_in_the_header() -> None:
    one, other = sheet(1), sheet(2, split="validation", n=5000)
    both = msgspec.structs.replace(one, lines=(one.lines[0], other.lines[1]))
    for told, head in ((one, "test"), (other, "validation"), (both, "test/validation")):
        assert f"| {head} accuracy (%) |" in table.markdown(told)


def test_the_luck_of_the_images_is_told() -> None:
    told = [table.markdown(sheet(1, n=n)) for n in (10_000, 1000)]
    for text, sentence in zip(told, ("on 10,000 images, ", "on 1,000 images, "), strict=True):
        assert sentence + "the 95 % sampling error of one run is up to +-" in text
    assert "up to +-0.57; trained on cpu float32. Minutes are" in told[0] and "up to +-1.79;" in told[1]


@pytest.mark.parametrize(
    ("p", "cell"), [(None, "-1.50"), (0.0004, "-1.50 p<.001"), (0.001, "-1.50 p 0.001"), (0.049, "-1.50 p 0.049")]
)
def test_a_difference(p: float | None, cell: str) -> None:
    row = msgspec.structs.replace(figures(sheet())[1], difference=-1.5, p=p)
    assert table._told(row, "test")["difference"] == cell


@pytest.mark.parametrize("form", [table.markdown, table.latex, shown])
def test_the_budget_is_marked(form: Any) -> None:
    text = re.sub(r"[\\{}]", "", form(sheet(over={1})))
    assert "11,173,962*" in text and "4,978,810*" not in text and "budget of 5M" in text
    assert "budget" not in form(sheet()) and "at full width" not in text
    assert "budget of 5M parameters at full width." in flat(form(sheet(pilot=PILOT, over={1})))


def test_footnotes_are_numbered_once_in_order() -> None:
    whole = sheet()
    lines = [msgspec.structs.replace(line, source="paper", note="one run") for line in whole.lines]
    text = table.markdown(msgspec.structs.replace(whole, lines=tuple(lines)))
    assert text.endswith("\n\n1. published: paper\n2. one run\n3. assumed: optim.weight_decay=0.05\n")
    assert "| SGD 0 [1,2] " in text and "| SGD 1 [1,3,2] " in text and "| SGD 2 [2] " in text


def test_columns_that_tell_nothing_are_left_out() -> None:
    text = table.markdown(sheet(1))  # its only row has no published number, and nothing to be compared with
    assert not any(word in text for word in ("published", "gap", "difference"))


# --- the forms ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [120, 112, 80])
def test_a_terminal_as_wide_as_it_is(width: int) -> None:
    labels = ["SGD (momentum)", "a label that is far too long for one line", "[b]x", ""]
    text = shown(sheet(4, 3, pilot=PILOT, labels=labels, over={1}), width)
    assert max(map(len, text.splitlines())) <= width and "…" not in text
    for part in ("90.98 +- 0.18", "+1.94 p 0.002", "11,173,962*", "[b]x [4,5]"):
        assert part in text, part
    assert all((head in text) == (width > 80) for head in ("seeds  ", "MACs", "PFLOPs", "minutes"))


def test_markdown_is_aligned_raw() -> None:
    lines = [line for line in table.markdown(sheet(over={2}, labels=["a|b", "c", "d"])).splitlines() if line[:1] == "|"]
    assert len(lines) == 5 and len({len(line) for line in lines}) == 1
    assert re.fullmatch(r"\| -+ (\| -+: )+\|", lines[1])


def test_csv_is_plain_numbers() -> None:
    first, second, _ = read(sheet(3, 2, pilot=PILOT, over={1}))
    assert first | {"mean": "90.93", "accuracies": "90.78; 91.08", "published": "92.0", "params": "4978810"} == first
    assert first | {"pilot": PILOT, "split": "test", "images": "10000", "difference": "", "p": ""} == first
    assert second | {"over_budget": "True", "compared_to": "SGD 0", "settings": "optim.lr=0.2", "seeds": "2"} == second
    assert second["notes"] == "published: paper, Table 4 row 2; assumed: optim.weight_decay=0.05"
    assert float(second["difference"]) == pytest.approx(1.045) and float(second["minutes"]) == pytest.approx(10.05)


@settings(max_examples=80, deadline=None)
@given(LABELS, LABELS)
def test_no_label_breaks_a_form(label: str, other: str) -> None:
    told = sheet(2, 1, labels=[label, "plain"], title=flat(other), heading=flat(other), failed={(1, 0)})
    lines = [msgspec.structs.replace(line, note=f"x{label}", source=f"y{other}") for line in told.lines]
    told = msgspec.structs.replace(told, lines=tuple(lines))
    row, _ = read(told)
    assert row["label"] == flat(label) and row["notes"] == flat(f"published: y{other}") + "; " + flat(f"x{label}")
    assert table.csv(told).count("\n") == 3
    check_markdown(table.markdown(told), row["label"])
    check_latex(table.latex(told))
    shown(told, 80)


def check_markdown(text: str, label: str) -> None:
    """Rendered, the first cell of the first row is the label, every row is as long as the head, nothing is markup."""
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)
    cells = [token for before, token in pairwise(tokens) if before.type in ("th_open", "td_open")]
    assert len(cells) % 3 == 0 and sum(token.type == "tr_open" for token in tokens) == 3
    head = cells[len(cells) // 3].content
    assert (
        "".join(child.content for child in MarkdownIt().parseInline(head)[0].children or []) == f"{label} [1,2]".strip()
    )
    inline = {child.type for token in tokens for child in token.children or []}
    assert inline <= {"text", "text_special"}, inline
    assert sum(token.type == "ordered_list_open" for token in tokens) == 1


def check_latex(text: str) -> None:
    """Braces balance, specials are escaped, and no row ends in an argument of its line break."""
    bare = re.sub(r"\\[&%$#_{}]", "", text.replace(r"\\", "\n"))
    depth = 0
    for letter in bare:
        depth += {"{": 1, "}": -1}.get(letter, 0)
        assert depth >= 0
    assert depth == 0
    body = bare[bare.index(r"\midrule") : bare.index(r"\bottomrule")]
    assert len({line.count("&") for line in body.splitlines() if "&" in line}) == 1
    assert not re.search(r"[%#_~^|\x1b]|\n\s*[\[*]", bare)
    assert re.sub(r"\$(\\pm|-|<)\$", "", bare).count("$") == 0
    assert set(re.findall(r"\\([a-z]+)", bare)) <= set(COMMANDS.split())


COMMANDS = """begin end centering footnotesize setlength tabcolsep caption label toprule midrule bottomrule par medskip
raggedright textsuperscript pm textbackslash textasciitilde textasciicircum textbar textless textgreater"""


@pytest.mark.parametrize(
    ("label", "escaped"),
    [
        ("50% of a_b & #1 ${x}", r"50\% of a\_b \& \#1 \$\{x\}"),
        (r"C:\x~^|", r"C:\textbackslash{}x\textasciitilde{}\textasciicircum{}\textbar{}"),
        ("[a] * <b>", r"{[}a] {*} \textless{}b\textgreater{}"),
        ("+- 1", r"$\pm$ 1"),
    ],
)
def test_latex_escapes(label: str, escaped: str) -> None:
    text = table.latex(sheet(1, 1, labels=[label]))
    assert f"\n{escaped} & 1 & " in text
    check_latex(text)


def test_latex_numbers() -> None:
    text = table.latex(sheet())
    assert r"90.93 $\pm$ 0.21" in text and "& $-$1.07 &" in text and r"SGD 0\textsuperscript{1} &" in text
    assert r"\label{tab:table4-PILOT}" in table.latex(sheet(pilot=PILOT)) and r"test accuracy (\%)" in text


def test_what_is_saved(tmp_path: Path) -> None:
    for told in (sheet(), sheet(pilot=PILOT)):
        table.save(told, tmp_path / "new")
    names = {path.name for path in (tmp_path / "new").iterdir()}
    assert names == {f"table4{mark}.{kind}" for mark in ("", "-PILOT") for kind in ("md", "csv", "tex")}
    assert (tmp_path / "new" / "table4.csv").read_text(encoding="utf-8") == table.csv(sheet())
    assert (tmp_path / "new" / "table4-PILOT.tex").read_text(encoding="utf-8") == table.latex(sheet(pilot=PILOT))


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="could not write"):
        table.save(sheet(1, 1), tmp_path / "file")
