"""A study's table, the same cells, caption and footnotes for a terminal, as Markdown and as LaTeX; and plain as CSV."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from weightclass.files import atomic_write, csv_text, safe_name
from weightclass.study.sheet import Sheet
from weightclass.study.statistics import Figures, distinct, figures

_MARKUP = re.compile(r"[\\`*\[\]<>|~$&#]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")  # Markdown's; a_b means nothing to it
_LATEX = {letter: f"\\{letter}" for letter in "&%$#_{}"} | {"<": r"\textless{}", ">": r"\textgreater{}"}
_LATEX |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "|": r"\textbar{}"}
_LATEX |= {"[": "{[}", "*": "{*}"}  # bare, \\ takes them for its own


class Cells(NamedTuple):
    """A table as text. The rows' first cells refer to `notes` by number, from 1."""

    title: str
    caption: str
    heads: list[str]
    rows: list[list[str]]
    notes: list[str]


def cells(sheet: Sheet, escape: Callable[[str], str] = str, reference: str = " [{}]") -> Cells:
    """What every form but the CSV shows. Columns that tell nothing are left out."""
    rows = figures(sheet)
    notes = list(dict.fromkeys(note for row in rows for note in row.notes))
    marks = [",".join(str(1 + notes.index(note)) for note in row.notes) for row in rows]
    labels = [escape(row.label) + reference.format(mark) * bool(mark) for row, mark in zip(rows, marks, strict=True)]
    split = distinct({row.split for row in rows} - {""})
    told = [_told(row, split) for row in rows]
    told[sheet.compare]["difference"] = "base"
    heads = [head for head in told[0] if not {"-", "base"}.issuperset(row[head] for row in told)]
    return Cells(
        title=escape(f"{sheet.title} (PILOT: {sheet.pilot})" if sheet.pilot else sheet.title),
        caption=escape(_caption(sheet, rows)),
        heads=[escape(head) for head in (sheet.heading, *heads)],
        rows=[[label, *(escape(row[head]) for head in heads)] for label, row in zip(labels, told, strict=True)],
        notes=[escape(note) for note in notes],
    )


def _told(row: Figures, split: str) -> dict[str, str]:
    """A row's cells by their heads."""

    def number(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    p = "" if row.p is None else " p<.001" if row.p < 0.001 else f" p {row.p:.3f}"
    return {
        "seeds": f"{row.finished} of {row.seeds}" if row.finished < row.seeds else str(row.seeds),
        f"{split} accuracy (%)".strip(): number(row.mean, ".2f") + ("" if row.std is None else f" +- {row.std:.2f}"),
        "difference": number(row.difference, "+.2f") + p,
        "published": number(row.published, "g"),
        "gap": number(row.gap, "+.2f"),
        "params": f"{row.params:,}{'*' * row.over_budget}",
        "MACs": f"{row.macs / 1e9:.2f}G" if row.macs >= 1e9 else f"{row.macs / 1e6:.1f}M",
        "PFLOPs": number(row.pflops, ".3g"),
        "minutes": number(row.minutes, ".1f"),
    }


def _caption(sheet: Sheet, rows: Sequence[Figures]) -> str:
    """What a reader must know before believing the numbers."""
    known = {field for row in rows for field, value in msgspec.structs.asdict(row).items() if value is not None}
    runs, finished, base = sum(row.seeds for row in rows), sum(row.finished for row in rows), rows[sheet.compare].label
    devices = distinct({row.computed_on for row in rows} - {""})
    error, images = max(row.error or 0 for row in rows), max(row.images for row in rows)
    spread = "mean +- standard deviation over seeds" if "std" in known else "of one run a row"
    luck = "; p: paired t-test of these, which sees the luck of seeds, not of images" if "p" in known else ""
    width = " at full width" if "width" in sheet.pilot else ""
    sentences = {
        sheet.about: sheet.about,
        "A pilot: such runs, their schedules cut with them, need not rank the rows as full ones do.": sheet.pilot,
        f"Not complete: {finished} of {runs} runs finished.": finished < runs,
        f"Accuracy: {spread}; on {images:,} images, the 95 % sampling error of one run is up to +-{error:.2f}; trained "
        f"on {devices}. Minutes are by the clock, with all else that the machine did in them.": finished,
        f"Difference: points to {base}, over the seeds that both have{luck}.": "difference" in known,
        "Gap: to the published accuracy.": "gap" in known,
        "Published: test accuracies of full runs, not to be compared with these.": not sheet.comparable
        and {"published", "mean"} <= known,
        f"*: at or over the budget of {sheet.budget} parameters{width}.": any(row.over_budget for row in rows),
    }
    return " ".join(sentence for sentence, holds in sentences.items() if holds)


def terminal(sheet: Sheet, narrow: bool = False) -> Any:
    """For rich, 112 columns wide; or 80, `narrow`, without what the runs cost."""
    from rich import box, console, table
    from rich.text import Text

    title, caption, heads, rows, notes = cells(sheet)
    grid = table.Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    costs = ("seeds", "MACs", "PFLOPs", "minutes") if narrow else ()
    shown = [column for column, head in enumerate(heads) if head not in costs]
    for column in shown:
        head = Text(heads[column].replace(" accuracy", "\naccuracy"))
        grid.add_column(head, justify="right" if column else "left", no_wrap=column > 0, overflow="fold")
    for row in rows:
        grid.add_row(*(Text(row[column]) for column in shown))
    footnotes = (Text(f"[{number}] {note}", "dim") for number, note in enumerate(notes, start=1))
    return console.Group(Text(title, "bold"), grid, Text(caption, "dim"), *footnotes)


def markdown(sheet: Sheet) -> str:
    """A heading, the table with aligned columns, the caption, and the footnotes as a numbered list."""
    title, caption, heads, rows, notes = cells(sheet, partial(_MARKUP.sub, r"\\\g<0>"))
    widths = [max(3, *map(len, column)) for column in zip(heads, *rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    padded = ([label.ljust(widths[0]), *map(str.rjust, others, widths[1:])] for label, *others in (heads, rule, *rows))
    table = "\n".join(f"| {' | '.join(row)} |" for row in padded)
    footnotes = "\n".join(f"{number}. {note}" for number, note in enumerate(notes, start=1))
    return "\n\n".join(filter(None, (f"## {title}", table, caption, footnotes))) + "\n"


def latex(sheet: Sheet) -> str:
    """A table environment for a document that has `\\usepackage{booktabs}`."""
    title, caption, heads, rows, notes = cells(sheet, _latex_escaped, r"\textsuperscript{{{}}}")
    body = "\n".join(" & ".join(row) + r" \\" for row in rows)
    footnotes = "\n".join(rf"\textsuperscript{{{number}}} {note}\par" for number, note in enumerate(notes, start=1))
    return rf"""\begin{{table}}\centering\footnotesize\setlength{{\tabcolsep}}{{4pt}}
\caption{{{title}. {caption}}}\label{{tab:{safe_name(sheet.stem)}}}
\begin{{tabular}}{{l{"r" * (len(heads) - 1)}}}
\toprule
{" & ".join(heads)} \\ \midrule
{body}
\bottomrule
\end{{tabular}}\par\medskip\raggedright
{footnotes}
\end{{table}}
"""


def _latex_escaped(text: str) -> str:
    return re.sub(r"(?<!\S)-(?=\d)", "$-$", text.translate(str.maketrans(_LATEX)).replace("+-", r"$\pm$"))


def csv(sheet: Sheet) -> str:
    """A header and a record for each row."""
    study = {"study": sheet.name, "pilot": sheet.pilot, "compared_to": figures(sheet)[sheet.compare].label}
    rows = [
        study | {"recipe": line.recipe, "settings": line.settings} | msgspec.structs.asdict(row)
        for line, row in zip(sheet.lines, figures(sheet), strict=True)
    ]
    return csv_text(rows[0], (row.values() for row in rows))


def save(sheet: Sheet, folder: Path) -> None:
    """Write the Markdown, CSV and LaTeX forms into `folder`; a pilot's names say so. Raises UserError."""
    for suffix, form in ((".md", markdown), (".csv", csv), (".tex", latex)):
        atomic_write(folder / f"{sheet.stem}{suffix}", form(sheet))
