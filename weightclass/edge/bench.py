"""One table for every format of a model: what each weighs, says and takes, and where int8 does not pay."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from weightclass.data.dataset import Dataset
from weightclass.device import cores
from weightclass.edge.export import FORMATS, size
from weightclass.edge.gate import Agreement, compare
from weightclass.edge.latency import Cpu, Timing, measure
from weightclass.errors import UserError
from weightclass.evaluation.metrics import Interval, scorecard
from weightclass.files import safe_name
from weightclass.modelfile import EXPORTS, Classifier, Exported
from weightclass.runlog import Progress, human_bytes
from weightclass.runtimes.runner import SUFFIXES, runner
from weightclass.seeding import key, permutation

TORCH, BATCH, TIMED = "torch float32", 64, 256  # the first row; images of a batch, and images that are timed in turn
PAYS, BUSY = 0.95, 2.0  # int8's largest share of its float twin's time; the largest p95 / p50 of an idle machine
COLUMNS = ("format", "size", "accuracy", "95 %\ninterval", "same\nclass", "logits\noff, p99")
COLUMNS += ("ms, 1\nthread", "p95", "ms, all\nthreads", "p95", "images/s", "memory")
NARROW = (0, 1, 2, 4, 6, 8, 10)  # the columns that fit 80 letters

Pair = tuple[int, int]


class Row(msgspec.Struct, kw_only=True):
    """A format; None is what is not known."""

    format: str
    file: str
    bytes: int
    failure: str = ""  # why the file cannot be used
    accuracy: float | None = None
    interval: Interval | None = None  # 95 %, of the accuracy
    agreement: Agreement | None = None  # with the network
    one: Timing | None = None  # single images on one thread
    all: Timing | None = None  # single images on all cores that may be used
    batch: Timing | None = None  # 64 images at once on all cores
    memory: Pair | None = None  # peak resident bytes: the runtime imported; after single images, one thread


def found(model: Classifier, files: Sequence[str] = ()) -> dict[str, Path]:
    """What to compare: the model, where it is an exported file, and `files`; without any, all that its run exported."""
    own = [str(model.path)] if isinstance(model.network, Exported) and model.path else []
    if strange := [file for file in files if Path(file).suffix.lower() not in SUFFIXES]:
        raise UserError(f"{strange[0]}: no exported file: its name has to end in {', '.join(SUFFIXES)}")
    if missing := [file for file in files if not Path(file).is_file()]:
        raise UserError(f"{missing[0]}: no such file")
    if own or files:
        return {file: Path(file) for file in (*own, *files)}
    folder, name = model.home / EXPORTS, safe_name(model.name)
    paths = {format: folder / (name + kind.ending) for format, kind in FORMATS.items()}
    return {format: path for format, path in paths.items() if path.is_file()}


def bench(
    model: Classifier,
    files: Mapping[str, Path],
    images: Dataset | None = None,
    seconds: float = 30,
    progress: Progress = lambda done, total: None,
) -> list[Row]:
    """Judge and time `model` (on the CPU; left out where it is an exported file itself) and `files`, named by format.

    All are judged on all `images` and timed on some of them (on noise where there are none), for about `seconds`. A
    file that cannot be used gets a row that says why.
    """
    paths = ({} if isinstance(model.network, Exported) else {TORCH: None}) | dict(files)
    pixels = images.images if images else torch.randint(256, (TIMED, *model.image_shape), dtype=torch.uint8)
    rows, reference = [], None
    for name, path in paths.items():
        file = path or model.path
        rows.append(row := Row(format=name, file=file.name if file else "", bytes=size(file) if file else 0))
        try:
            said = _opened(model, path, cores()).logits(pixels)
            if images:
                card = scorecard(said, images.labels, images.classes)
                row.accuracy, row.interval = card.accuracy, card.interval
                row.agreement = None if reference is None else compare(reference, said, images.labels)
        except UserError as error:
            row.failure = str(error)
        else:
            reference = said if path is None else reference
            row.memory = path and _memory(path, model.image_shape)
        progress(len(rows), len(paths) + 3)
    sound = {row.format: paths[row.format] for row in rows if not row.failure}
    for done, (field, threads, batch) in enumerate((("one", 1, 1), ("all", cores(), 1), ("batch", cores(), BATCH))):
        times = _timed(model, sound, pixels[:TIMED], threads, seconds / 3, batch)
        for row in rows:
            setattr(row, field, times.get(row.format))
        progress(len(paths) + 1 + done, len(paths) + 3)
    return rows


def drawn(images: Dataset, count: int | None) -> Dataset:
    """`count` of the images, of no class in particular; all of them without a count."""
    return images.subset(permutation(key(0, "bench"), len(images))[:count]) if count else images


def _opened(model: Classifier, path: Path | None, threads: int) -> Classifier:
    return replace(model, network=Exported(runner(path, threads))) if path else model


def _memory(path: Path, image_shape: tuple[int, int, int]) -> Pair | None:
    command = [sys.executable, "-m", "weightclass.runtimes.peak", str(path), *map(str, image_shape)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
    return msgspec.json.decode(done.stdout.splitlines()[-1], type=Pair | None) if done.returncode == 0 else None


def _timed(
    model: Classifier, paths: Mapping[str, Path | None], pixels: Tensor, threads: int, seconds: float, batch: int
) -> dict[str, Timing]:
    """The files are opened for it and closed: those of another number of threads would disturb."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        answers = {name: _answers(_opened(model, path, threads)) for name, path in paths.items()}
        return measure(answers, pixels.numpy(), seconds, batch)
    finally:
        torch.set_num_threads(before)


def _answers(model: Classifier) -> Any:
    """A file's own call where it takes pixels, with nothing of ours around it."""
    if isinstance(model.network, Exported) and model.network.runner.raw:
        return model.network.runner
    return lambda images: model.logits(torch.from_numpy(images)).numpy()


# --- telling -----------------------------------------------------------------------------------------------


def _cells(row: Row) -> list[str]:
    """A text for each of COLUMNS."""
    agreed, span, memory = row.agreement, row.interval, row.memory
    judged = [f"{row.accuracy:.2%}", f"{100 * span.lo:.1f}-{100 * span.hi:.1f}"] if span else ["-", "-"]
    judged += [f"{agreed.agreement:.2%}", f"{agreed.p99_difference:.3f}"] if agreed else ["-", "-"]
    times = [f"{ms:.2f}" for time in (row.one, row.all) if time for ms in (time.p50, time.p95)] or ["-"] * 4
    speed = f"{1000 * BATCH / row.batch.p50:,.0f}" if row.batch else "-"
    own = human_bytes(memory[1] - memory[0]) if memory else "-"
    return [row.format, human_bytes(row.bytes) if row.bytes else "-", *judged, *times, speed, own]


def table(rows: Sequence[Row], narrow: bool = False) -> Any:
    """For rich's `print`, 115 letters wide; `narrow` fits 80."""
    from rich import box
    from rich.table import Table

    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    shown = NARROW if narrow else range(len(COLUMNS))
    for place in shown:
        grid.add_column(COLUMNS[place], justify="right" if place else "left", no_wrap=place > 0, overflow="fold")
    for cells in map(_cells, rows):
        grid.add_row(*(cells[place] for place in shown))
    return grid


def to_json(rows: Sequence[Row], cpu: Cpu) -> bytes:
    return msgspec.json.format(msgspec.json.encode({"cpu": cpu, "rows": rows})) + b"\n"


def markdown(rows: Sequence[Row], cpu: Cpu) -> str:
    """The table and its notes for a lab book."""
    head = [title.replace("\n", " ") for title in COLUMNS], [":--", *["--:"] * (len(COLUMNS) - 1)]
    lines = [f"| {' | '.join(cells)} |" for cells in (*head, *map(_cells, rows))]
    return "\n".join([*lines, "", *(f"- {note}" for note in notes(rows, cpu)), ""])


def notes(rows: Sequence[Row], cpu: Cpu) -> list[str]:
    """What a table cannot say: the CPU, failures, whether each int8 pays, lost accuracy, and how to read the rest."""
    said = [str(cpu), *(f"{row.format} is left out: {row.failure}" for row in rows if row.failure)]
    judged = {f"{row.agreement.n:,}" for row in rows if row.agreement}
    said += [f"accuracy and agreement on {number} images" for number in judged]
    by_format = {row.format: row for row in rows}
    for row in rows:
        said += _pays(row, by_format.get(row.format.replace("-int8", "")), cpu)
        if (agreed := row.agreement) and agreed.interval.hi < 0:
            lost, most, least = (f"{-100 * change:.2f}" for change in (agreed.accuracy_change, *agreed.interval))
            said.append(f"{row.format} loses {lost} points of accuracy (95 % interval {least} to {most})")
    if single := [row.format for row in rows if row.batch and row.file.endswith((".pte", ".tflite"))]:
        said.append(f"images/s is in batches of {BATCH}, which {', '.join(single)} can only take image by image")
    if whole := [f"{row.format} {human_bytes(row.memory[1])}" for row in rows if row.memory]:
        said.append(f"memory is the file's own share of the peak; with Python and the runtime: {', '.join(whole)}")
    times = [(row.format, time) for row in rows for time in (row.one, row.all) if time]
    if busy := dict.fromkeys(name for name, time in times if time.p95 > BUSY * time.p50):
        said.append(f"the machine was busy: p95 is more than {BUSY:g}x p50 of {', '.join(busy)}; run it again")
    return said


def _pays(row: Row, twin: Row | None, cpu: Cpu) -> list[str]:
    """Whether an int8 file is faster than its float twin."""
    if row is twin or not (twin and row.one and row.all and twin.one and twin.all):
        return []
    one, all_ = row.one.p50 / twin.one.p50, row.all.p50 / twin.all.p50
    pays, size = max(one, all_) <= PAYS, row.bytes / twin.bytes
    times = f"{one:.2f}x the time of {twin.format} on one thread, {all_:.2f}x on all, {size:.2f}x the bytes"
    reason = "; this CPU has no VNNI" if cpu.lacks_int8 and not pays else ""
    return [f"{row.format} {'pays' if pays else 'does not pay here'}: {times}{reason}"]
