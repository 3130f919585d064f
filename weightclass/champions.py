"""The champions: the best network we have in each weight class, shipped with the package in `weights/`.

A file's header tells what it is worth and what made it. `python -m tools.ship` puts files there; nothing else does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from weightclass.errors import UserError
from weightclass.runlog import human_bytes, short

FOLDER = Path(__file__).parent / "weights"
LIMIT = 16_000_000  # bytes of all that is in it
CPU, GPU = "CPU hours", "GPU hours"


class Weightclass(NamedTuple):
    """What a champion may weigh, what others have published, and what its first training takes."""

    params: int
    published: str
    takes: str
    least: float = 0.0
    """Accuracy that has to be reached with the least training compute; 0: the highest accuracy wins."""


CLASSES = {
    "100k": Weightclass(100_000, "94.4 % Tiniest", CPU),
    "300k": Weightclass(300_000, "94.65 % ResNet-20", CPU),
    "700k": Weightclass(701_466, "91.45 % the paper", CPU),
    "1m": Weightclass(1_000_000, "96.76 % ResNet-56", GPU),
    "5m": Weightclass(5_000_000, "98.29 % NAS", GPU),  # a plain ResNet 97.97, the paper 97.12
    "sprint-94": Weightclass(5_000_000, "0.29 PFLOPs", CPU, 0.94),  # airbench94 with Muon, of 6 views
    "sprint-96": Weightclass(5_000_000, "3.1 PFLOPs, 9.9 M", GPU, 0.96),
    "sprint-97": Weightclass(5_000_000, "106 PFLOPs, paper", GPU, 0.9712),
}


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What a file says of itself; the accuracy is its own, not that of the float32 weights it was made from."""

    params: int
    macs: int  # of one image
    accuracy: float  # in 0..1, one view, on the n test images
    interval: tuple[float, float]  # 95 %, of the accuracy
    n: int
    corrupted: float  # accuracy on those images corrupted, 15 kinds x 5 severities
    pflops: float  # of the training, as results.Result counts them
    seconds: float  # of the training
    computed_on: str
    command: str  # that trains it again


class Model(NamedTuple):
    """A weight class and its champion; without `path` and `facts` where there is none yet."""

    name: str
    published: str
    path: Path | None
    bytes: int
    facts: Facts | None


def find(name: str | Path) -> Path | None:
    """The file of the class called `name` ("5m", in any case); None for any other text and for a Path: a place.

    As with recipes, the name goes before a file or folder called so: that is "./5m". Raises UserError where the class
    has no file yet.
    """
    known = name.lower() if isinstance(name, str) else ""
    if known not in CLASSES:
        return None
    if not (file := _file(known)).is_file():
        there = ", ".join(each for each in CLASSES if _file(each).is_file()) or "none"
        raise UserError(f"{name}: not trained yet; there are: {there} (a file or folder of that name is ./{name})")
    return file


def models() -> list[Model]:
    """Every weight class with the champion that ships with the package, if it has one. Raises UserError."""
    return [_model(name, _file(name)) for name in CLASSES]


def _file(name: str) -> Path:
    return FOLDER / f"{name}.safetensors"


def _model(name: str, file: Path) -> Model:
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        return Model(name, CLASSES[name].published, None, 0, None)
    try:
        with safe_open(file, "np") as handle:
            facts = msgspec.json.decode((handle.metadata() or {})["facts"], type=Facts)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise UserError(f"{file}: damaged ({error}): install weightclass anew") from None
    return Model(name, CLASSES[name].published, file, file.stat().st_size, facts)


def table(found: list[Model], narrow: bool = False) -> Any:
    """For rich's `print`; `narrow` fits 80 letters."""
    from rich import box
    from rich.table import Table

    titles = ["model", "parameters", "size", "accuracy", "PFLOPs", "published", "weightclass"]
    titles[5:5] = [] if narrow else ["95 %", "corrupted", "MACs"]
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for title in titles:
        texts = title in ("model", *titles[-2:])
        grid.add_column(title, justify="left" if texts else "right", overflow="fold", no_wrap=title == "model")
    for name, published, _, size, facts in found:
        cells, more = ["-"] * 4, ["-"] * 3
        if facts:
            cells = [f"{facts.params:,}", human_bytes(size), f"{facts.accuracy:.2%}", f"{facts.pflops:.3g}"]
            more = ["-".join(f"{100 * end:.2f}" for end in facts.interval), f"{facts.corrupted:.2%}", short(facts.macs)]
        made_by = facts.command.removeprefix("weightclass ") if facts else f"awaits {CLASSES[name].takes}"
        grid.add_row(name, *cells, *([] if narrow else more), published, made_by)
    return grid
