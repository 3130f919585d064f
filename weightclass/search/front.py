"""A search's outcome for people: the table of its best trials, and accuracy against what a network costs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from textwrap import shorten, wrap
from typing import TYPE_CHECKING, Any

import msgspec

from weightclass.config import parse_quantity
from weightclass.evaluation.metrics import Interval
from weightclass.evaluation.page import BLUE, FAINT, GREEN, INK, PAPER, VERMILLION, box, page
from weightclass.files import atomic_write, csv_text
from weightclass.search.sheet import COSTS, Row, Sheet
from weightclass.study.scatter import GREY, log_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN = 12
"""Finished trials in the table; of the others only the recipe itself and those on a front."""
WORDS = ("trial", "network", "settings")
STATES = {"done": "finished", "pruned": "pruned", "failed": "failed", "open": "not finished"}
AXES = {"params": "parameters", "macs": "MACs of an image", "ms": "ms an image, on one thread"}
LEFT, SIDE, TALL, BELOW, ABOVE = 96, 550, 600, 128, 84  # pixels of the figure's panels, and around them


def cells(sheet: Sheet) -> tuple[str, list[str], list[list[str]], list[str]]:
    """Title, heads, rows, and the paragraphs below. Columns that tell nothing are left out."""
    fronts = {cost: sheet.front(cost) for cost in COSTS}
    kept = {0, *(row.number for front in fronts.values() for row in front)}
    ranked = [(f"{rank:>2}.", row) for rank, row in enumerate(sheet.done, start=1)]
    shown = ranked[:SHOWN] + [(rank, row) for rank, row in ranked[SHOWN:] if row.number in kept]
    hidden = len(ranked) - len(shown)
    shown += [(row.state, row) for row in sheet.rows if row.number == 0 and row.state != "done"]
    rows = [{"trial": f"{mark} {_called(row)}"} | _told(row, sheet.base, fronts) for mark, row in shown]
    heads = [head for head in (rows[0] if rows else ()) if not {"-", "base"}.issuperset(row[head] for row in rows)]
    limits = ", ".join(f"{key} under {limit}" for key, limit in sheet.limits.items())
    title = f"Search from {sheet.recipe}" + f": {limits}" * bool(limits)
    return title, heads, [[row[head] for head in heads] for row in rows], _notes(sheet, hidden)


def _called(row: Row) -> str:
    return f"trial {row.number}" if row.number else "recipe"


def _told(row: Row, base: Row | None, fronts: dict[str, list[Row]]) -> dict[str, str]:
    """A row's cells by their heads."""
    on = {cost: "*" * (row in front) for cost, front in fronts.items()}
    rest = [text for text in row.settings if not text.startswith(("model.blocks=", "model.channels="))]
    than = (base.accuracy if base.full is None else base.full) if base else None
    own = row.full if base and base.full is not None else row.accuracy
    points = "base" if row == base else f"{100 * (own - than):+.2f}" if own is not None and than is not None else "-"
    return {
        "network": row.network,
        "settings": ", ".join(text.partition(".")[2] for text in rest) or "the recipe's",
        "params": f"{on['params']}{row.params:,}",
        "MACs": on["macs"] + (f"{row.macs / 1e9:.2f}G" if row.macs >= 1e9 else f"{row.macs / 1e6:.1f}M"),
        "ms": "-" if row.ms is None else f"{on['ms']}{row.ms:.2f}",
        "accuracy (%)": _percent(row.accuracy, row.interval),
        "in full (%)": _percent(row.full, row.full_interval),
        "points": points,
    }


def _percent(accuracy: float | None, interval: Interval | None) -> str:
    half = f" +- {50 * (interval.hi - interval.lo):.2f}" if interval else ""
    return "-" if accuracy is None else f"{100 * accuracy:.2f}{half}"


def _notes(sheet: Sheet, hidden: int) -> list[str]:
    """The trials by what became of them; what to know before believing the numbers; the training in full."""
    states, of = [row.state for row in sheet.rows], f" of {sheet.wanted}" * (len(sheet.rows) < sheet.wanted)
    why = "; ".join(dict.fromkeys(row.why.removeprefix("failed: ") for row in sheet.rows if row.why))
    more = {"done": f"{hidden} not shown" * (hidden > 0), "failed": shorten(why, 160, placeholder=" ...")}
    counts = {state: f"{states.count(state)} {word}" for state, word in STATES.items() if state in states}
    parts = [count + f" ({more.get(state)})" * bool(more.get(state)) for state, count in counts.items()]
    notes = [f"Trials: {len(states)}{of}; {', '.join(parts) or 'none yet'}."]
    if best := sheet.best:
        base = " Points: to the recipe itself." * (sheet.base is not None)
        front = " *: on the front: no finished trial costs no more and is better, or costs less and is as good."
        notes.append(f"{_read(sheet)}{_read_in_full(sheet)}{base} ms: of one image on one thread.{front}")
        if final := sheet.final:
            (lo, hi), n = final.scorecard.interval, final.scorecard.n
            told = f"{final.scorecard.accuracy:.2%} of {n:,} {final.split} images (95 %: {lo:.2%} to {hi:.2%})"
            chose = " These chose it, too: `eval --split test` reads others." * (final.split == "validation")
            told = f"{_called(best).capitalize()}, trained in full ({final.epochs} epochs): {told}.{chose}"
            notes += [told, final.command]
    return notes


def _read(sheet: Sheet) -> str:
    read = f"of {sheet.held_out:,} images held out, after {sheet.epochs} epochs"
    return f"Accuracy: {read}, +- half of its 95 % interval; these choose, and so they flatter the best."


def _read_in_full(sheet: Sheet) -> str:
    many = sum(row.full is not None for row in sheet.done)
    return f" In full: {many} of them after {sheet.full_epochs} epochs, on the same images." * (many > 0)


def table(sheet: Sheet, narrow: bool = False) -> Any:
    """For rich, 112 columns wide; or 80, `narrow`, without the settings."""
    from rich import box, console, table
    from rich.text import Text

    title, heads, rows, notes = cells(sheet)
    grid = table.Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=0)
    shown = [place for place, head in enumerate(heads) if not (narrow and head == "settings")]
    for head in (heads[place].replace(" (", "\n(") for place in shown):
        grid.add_column(head, justify="left" if head in WORDS else "right", no_wrap=head not in WORDS[1:])
    for row in rows:
        grid.add_row(*(Text(shorten(row[place], 60, placeholder=" ...")) for place in shown))
    return console.Group(Text(title, "bold"), grid, Text(notes[0]), *(Text(note, "dim") for note in notes[1:]))


def markdown(sheet: Sheet) -> str:
    """A heading, the table, and the paragraphs."""
    escaped = partial(re.compile(r"[\\`*_\[\]<>|~$&#]").sub, r"\\\g<0>")
    title, heads, rows, notes = cells(sheet)
    rule = ["---" if head in WORDS else "---:" for head in heads]
    lines = [f"| {' | '.join(row)} |" for row in (heads, rule, *(map(escaped, row) for row in rows)) if heads]
    return "\n\n".join(filter(None, (f"## {escaped(title)}", "\n".join(lines), *map(escaped, notes)))) + "\n"


def csv(sheet: Sheet) -> str:
    """A header and a record for each trial."""
    return csv_text(Row.__struct_fields__, map(msgspec.structs.astuple, sheet.rows))


def save(sheet: Sheet, folder: Path) -> None:
    """Write `trials.md`, `trials.csv` and, where a trial is finished, `front.png` into `folder`. Raises UserError."""
    atomic_write(folder / "trials.md", markdown(sheet))
    atomic_write(folder / "trials.csv", csv(sheet))
    if sheet.done:
        draw(sheet, folder / "front.png")


def draw(sheet: Sheet, path: Path) -> None:
    """Errors on a log scale against every cost that is known: trials, their fronts, the limits."""
    from matplotlib.ticker import MaxNLocator

    costs = [cost for cost in COSTS if all(getattr(row, cost) is not None for row in sheet.done)]
    width, height = LEFT + len(costs) * SIDE, BELOW + TALL + ABOVE
    errors = [_error(sheet, share) for row in sheet.done for share in (row.accuracy, *(row.interval or ()))]
    pruned = [row for row in sheet.rows if row.state == "pruned" and row.accuracy is not None]
    low, high = min(errors), max(errors)  # what was pruned early may be far below
    high = min(max([high, *(_error(sheet, row.accuracy) for row in pruned)]), high * max(high / low, 1.2))
    room = max((high / low) ** 0.05, 1.03)
    with page(path, cells(sheet)[0], width, height) as figure:
        figure.subplots_adjust(*box(figure, LEFT, BELOW, width - 14, BELOW + TALL), wspace=0.07)
        panels = figure.subplots(1, len(costs), sharey=True, squeeze=False)[0]
        log_axis(panels[0], "accuracy", "validation")
        panels[0].set_ylim(high * room, low / room)
        if high < 4 * low:
            panels[0].yaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
        for axes, cost in zip(panels, costs, strict=True):
            _panel(axes, sheet, cost, [] if cost == "ms" else pruned)
        named = {name: mark for axes in panels for mark, name in zip(*axes.get_legend_handles_labels(), strict=True)}
        look = {"bbox_to_anchor": box(figure, LEFT - 16, height, 0, 0)[:2], "frameon": False, "borderpad": 0}
        figure.legend(named.values(), named, loc="upper left", ncols=3, **look)
        notes = f"{_read(sheet)} Pruned: so far, or at the lower edge where worse; the smaller, the fewer epochs."
        lines = "\n".join(wrap(notes.replace("+-", "±"), width // 10))
        figure.text(LEFT / width, box(figure, 0, 60, 0, 0)[1], lines, color=FAINT, va="top")


def _error(sheet: Sheet, accuracy: float | None) -> float:
    """In %; there is no 0 on a log scale, but half an image."""
    return max(100 - 100 * (accuracy or 0), 50 / sheet.held_out)


def _panel(axes: Axes, sheet: Sheet, cost: str, pruned: Sequence[Row]) -> None:
    """Accuracy against one cost."""
    from matplotlib.ticker import EngFormatter

    def at(*rows: Row) -> tuple[list[float], list[float]]:
        return [getattr(row, cost) for row in rows], [min(_error(sheet, row.accuracy), floor) for row in rows]

    limit = float(sheet.limits.get("latency_ms", 0)) if cost == "ms" else parse_quantity(sheet.limits.get(cost, 1))
    floor, costs = axes.get_ylim()[0], [getattr(row, cost) for row in (*sheet.done, *pruned)]
    costs += [limit] * (max(costs) / 4 < limit < 4 * max(costs))
    room = max(0.08 * (max(costs) - min(costs)), 0.03 * max(costs))  # what fills a budget to the last per cent is alike
    axes.set(xlabel=AXES[cost], xlim=(min(costs) - room, max(costs) + room))
    axes.xaxis.set_major_formatter("{x:g}" if cost == "ms" else EngFormatter(sep=""))
    for row, color, marker, size in (sheet.best, VERMILLION, "*", 11), (sheet.base, GREEN, "D", 6):
        if row:
            told = f"{_percent(row.accuracy, row.interval).replace('+-', '±')} %"
            told += f" (in full {100 * row.full:.2f} %)" if row.full is not None else ""
            label = f"{'best: ' * (marker == '*')}{_called(row)}, {told}"
            axes.plot(*at(row), marker, color=color, ms=size, mec=PAPER, zorder=4, label=label)
            ends = [_error(sheet, share) for share in row.interval or ()]
            axes.plot(at(row)[0] * len(ends), ends, color=color, lw=1.2, zorder=3)
    axes.plot(*at(*sheet.done), "o", color=BLUE, ms=4.5, alpha=0.7, label="finished")
    _front(axes, sheet.front(cost), *at(*sheet.front(cost)))
    for row in pruned:
        look: dict[str, Any] = {"label": "pruned" * (row == pruned[0]), "ms": 2 + 3 * row.epochs / sheet.epochs}
        axes.plot(*at(row), "o", color=GREY, mew=0, clip_on=False, zorder=1.5, **look)
    if limit in costs:
        axes.axvline(limit, color=INK, lw=0.8, ls=(0, (5, 3)), zorder=1, label="limit")


def _front(axes: Axes, front: Sequence[Row], x: Sequence[float], y: Sequence[float]) -> None:
    """A step line to the edges; the trials' numbers left above it, where no finished trial is, as there is room."""
    corners = [x[0], *x, axes.get_xlim()[1]], [axes.get_ylim()[0], *y, y[-1]]
    axes.step(*corners, where="post", color=BLUE, lw=1.1, label="front, with numbers of trials")
    taken: list[Any] = []
    for row, point in reversed([*zip(front, zip(x, y, strict=True), strict=True)]):
        text = axes.annotate(str(row.number), point, (-4, 3), textcoords="offset points", ha="right", fontsize=6.5)
        taken.append(text.get_window_extent())
        text.set_visible(not taken[-1].count_overlaps(taken[:-1]))
