"""A run, a search, a study or several as one HTML page that needs nothing else: offline, printed, on a phone.

What the page shows is gathered here; how it shows it is all in report.html, a Jinja template.
"""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from weightclass import __version__, results
from weightclass.errors import UserError
from weightclass.evaluation.page import DPI
from weightclass.files import atomic_write, check_writable
from weightclass.model.budget import short
from weightclass.results import Result
from weightclass.runlog import human_bytes, human_seconds
from weightclass.search import front
from weightclass.search import sheet as searches
from weightclass.study import sheet as sheets
from weightclass.study.sheet import Sheet
from weightclass.study.statistics import Figures, figures
from weightclass.study.table import Cells, cells

if TYPE_CHECKING:
    from jinja2 import Template

FILE_NAME = "report.html"
RUN_PICTURES = ("curves", "confusion", "reliability", "mistakes", "confused", "samples")
STUDY_PICTURES = ("accuracy", "loss", "params", "pflops")


class Picture(NamedTuple):
    """A PNG as a data URI; its sides are CSS pixels, so that its 8 points are 8 points."""

    source: str
    width: int
    height: int


class Detail(NamedTuple):
    """A run, with what there is in its folder."""

    result: Result
    pictures: dict[str, Picture | None]
    settings: dict[str, dict[str, Any]]
    """Its recipe and environment, table by table."""
    about: str
    pilot: str


class Study(NamedTuple):
    """A sheet, with what the page shows of it."""

    sheet: Sheet
    cells: Cells
    rows: list[Figures]
    state: str
    pictures: dict[str, Picture | None]


def write_report(place: str | Path, path: str | Path = "") -> Path:
    """Write the page of `place` to `path` (default: report.html in it), and return where that is.

    `place` is the folder of a finished run, of a search, of a study, or of several studies. Pictures that are missing
    are left out.
    Raises UserError.
    """
    target = Path(path or Path(place) / FILE_NAME)
    facts = _facts(Path(place))
    check_writable(target)
    atomic_write(target, _template().render(facts, version=__version__) + "\n")
    return target


@cache
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined

    text = resources.files("weightclass").joinpath(FILE_NAME).read_text(encoding="utf-8")
    maker = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    maker.filters |= {"fmt": format, "short": short, "seconds": human_seconds, "bytes": human_bytes}
    maker.filters |= {"times": _times, "json": _json, "typeset": _typeset}
    return maker.from_string(text)


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count:,} times" if count else "never"


def _json(value: Any) -> str:
    """On one line; a recipe's values are the same in TOML."""
    return json.dumps(value, ensure_ascii=False, default=str)


def _typeset(text: str) -> str:
    """With the signs that a terminal does without: plus or minus, and a minus as wide as a plus."""
    return re.sub(r"(?<![\w.-])-(?=\d)", "\N{MINUS SIGN}", text.replace("+-", "\N{PLUS-MINUS SIGN}"))


# --- what there is to show ---------------------------------------------------------------------------------


def _facts(place: Path) -> dict[str, Any]:
    """The template's variables: `studies`, all `runs` of them, or a `search`; and the run to show in detail."""
    nothing: dict[str, Any] = {"studies": [], "runs": [], "search": None}
    if result := results.read(place):
        return nothing | {"detail": _detail(place, result)}
    if (place / searches.FILE_NAME).exists():
        return nothing | _search(place)
    for pattern in (sheets.FILE_NAME, f"*/{sheets.FILE_NAME}", f"studies/*/{sheets.FILE_NAME}"):
        if found := [(sheets.read(path.parent), path.parent) for path in place.glob(pattern)]:
            found.sort(key=lambda study: _order(study[0]))
            runs = {run.folder: run for sheet, _ in found for line in sheet.lines for run in line.runs}
            studies = [_study(sheet, folder) for sheet, folder in found]
            return nothing | {"studies": studies, "runs": list(runs.values()), "detail": _example(found)}
    raise UserError(f"{place}: neither a finished run nor a study, a search or a folder of studies: name one of these")


def _search(folder: Path) -> dict[str, Any]:
    """Its table, figure and the recipe that it found, which is the run in detail once it was trained in full."""
    sheet = searches.read(folder)
    found = [path.read_text(encoding="utf-8", errors="replace") for path in folder.glob("*-found.toml")]
    facts = zip(("title", "heads", "rows", "notes"), front.cells(sheet), strict=True)
    run = folder.resolve().parent.parent / sheet.final_folder
    return {
        "search": {"sheet": sheet, "found": found, **dict(facts), **_pictures(folder, ["front"], colours=256)},
        "detail": _detail(run, sheet.final) if sheet.final else None,
    }


def _order(sheet: Sheet) -> tuple[Any, ...]:
    """Numbered tables before the others, 2 before 10, and what is in full before its pilot."""
    numbers = [int(number) for number in re.findall(r"\d+", sheet.name)]
    return not numbers, numbers, sheet.name, sheet.pilot


def _study(sheet: Sheet, folder: Path) -> Study:
    pictures = _pictures(folder, STUDY_PICTURES, f"{sheet.stem}-", colours=256)
    rows, runs = figures(sheet), sum(len(line.runs) for line in sheet.lines)
    done = sum(row.finished for row in rows)
    state = ("PILOT" if sheet.pilot else "in full") + (f", {done} of {runs} runs" if done < runs else "")
    return Study(sheet, cells(sheet), rows, state, pictures)


def _example(found: Sequence[tuple[Sheet, Path]]) -> Detail | None:
    """One run: in full if one is, with its folder if that is there, of the row that others are compared with."""
    runs = [
        ((bool(sheet.pilot), not folder.is_dir(), row != sheet.compare), folder, run.result, about, sheet.pilot)
        for sheet, place in found
        for row, line in enumerate(sheet.lines)
        for run in line.runs
        if run.result and (folder := place.resolve().parent.parent / run.folder)
        if (about := f"{line.label}, seed {run.seed}, of {sheet.title}.")
    ]
    best = min(runs, key=lambda run: run[0], default=None)
    return _detail(*best[1:]) if best else None


def _detail(folder: Path, result: Result, about: str = "", pilot: str = "") -> Detail:
    recipe, found = _loaded(folder / "recipe.toml"), _loaded(folder / "environment.json")
    tables = {key: facts for key, facts in found.items() if isinstance(facts, dict)}
    plain = {key: fact for key, fact in found.items() if key not in tables}
    if subset := recipe.get("data", {}).get("subset"):
        pilot = pilot or f"trained on {subset} images of its training set"
    settings = recipe | ({"environment": plain} if plain else {}) | tables
    return Detail(result, _pictures(folder, RUN_PICTURES), settings, about, pilot)


def _loaded(path: Path) -> dict[str, Any]:
    """A run's recipe.toml or environment.json, {} where it is missing. Raises UserError."""
    try:
        if path.suffix == ".toml":
            return msgspec.toml.decode(path.read_bytes(), type=dict[str, dict[str, Any]])
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except FileNotFoundError:
        return {}
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: damaged ({error}); move it away") from None


def _pictures(folder: Path, names: Sequence[str], stem: str = "", colours: int = 0) -> dict[str, Picture | None]:
    paths = {name: folder / f"{stem}{name}.png" for name in names}
    return {name: picture(path, colours) if path.exists() else None for name, path in paths.items()}


def picture(path: Path, colours: int = 0) -> Picture:
    """Of a PNG file; a chart needs no more than 256 `colours` (0: all), and a third of the bytes. Raises UserError."""
    from PIL import Image

    data = io.BytesIO(path.read_bytes())
    try:
        with Image.open(data, formats=["PNG"]) as image:
            width, height = (round(side * 96 / DPI) for side in image.size)
            if colours:
                image.quantize(colours).save(data := io.BytesIO(), "PNG")
    except (OSError, SyntaxError) as error:
        raise UserError(f"{path}: not a PNG picture ({error}); remove it") from None
    return Picture(f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}", width, height)
