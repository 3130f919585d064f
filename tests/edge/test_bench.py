"""The bench table: all formats alike, a broken file a row like any other, and plain words where int8 does not pay."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from msgspec import structs
from rich.console import Console
from torch import Tensor

from weightclass import modelfile, recipe
from weightclass.data.dataset import Dataset
from weightclass.edge import bench
from weightclass.edge.bench import TORCH, Row, drawn, markdown, notes, table
from weightclass.edge.gate import Agreement
from weightclass.edge.latency import Cpu, Timing
from weightclass.edge.shipped import Shipped
from weightclass.errors import UserError
from weightclass.evaluation.metrics import Interval
from weightclass.model import networks
from weightclass.modelfile import Classifier, Exported
from weightclass.runtimes.runner import Runner

SHAPE, NAMES = (3, 8, 8), tuple("abcdefghij")
VNNI, PLAIN = Cpu("Chip", 2, ["avx2", "avx512_vnni"]), Cpu("Old chip", 1, ["avx2"])


@pytest.fixture(scope="module")
def model() -> Classifier:
    settings = recipe.load("quickstart", "model.blocks=1,1", "model.channels=8,16").recipe
    network = networks.build(settings.model, SHAPE, 10, seed=3).eval()
    return Classifier(network, settings, "net", NAMES, SHAPE, (0.5,) * 3, (0.25,) * 3, {})


@pytest.fixture(scope="module")
def images() -> Dataset:
    pixels = torch.randint(256, (40, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return Dataset(pixels, torch.arange(40) % 10, NAMES)


class Fake(Runner):
    """The network with `off` added to every odd image's first logit."""

    header, image_shape, classes = {}, SHAPE, 10

    def __init__(self, model: Classifier, off: float, raw: bool = True) -> None:
        self.shipped, self.model, self.off, self.raw = (
            Shipped(model.network, SHAPE, model.mean, model.std),
            model,
            off,
            raw,
        )

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> np.ndarray:
        assert images.dtype == (np.uint8 if self.raw else np.float32)
        given = torch.from_numpy(images)
        said: Tensor = self.shipped(given) if self.raw else self.model.network(given)
        said[1::2, 0] += self.off
        return said.numpy()


class Log:
    """What was opened, name and threads, and the threads that torch was set to."""

    def __init__(self) -> None:
        self.opened: list[tuple[str, int]] = []
        self.torch: list[int] = []


@pytest.fixture
def log(model: Classifier, monkeypatch: pytest.MonkeyPatch) -> Log:
    """Files open without a runtime, on what looks like two cores and is one."""
    log = Log()

    def runner(path: Path, threads: int) -> Runner:
        log.opened.append((path.name, threads))
        if "broken" in path.name:
            raise UserError(f"{path}: no ONNX file")
        return Fake(model, 100 * ("int8" in path.name), raw="peer" not in path.name)

    monkeypatch.setattr(bench, "runner", runner)
    monkeypatch.setattr(bench, "cores", lambda: 2)
    monkeypatch.setattr(bench, "_memory", lambda path, shape: (30_000_000, 42_500_000))
    monkeypatch.setattr(torch, "set_num_threads", log.torch.append)
    return log


def made(tmp_path: Path, **sizes: int) -> dict[str, Path]:
    files = {name.replace("_", "-"): tmp_path / f"{name.replace('_', '-')}.onnx" for name in sizes}
    for path, size in zip(files.values(), sizes.values(), strict=True):
        path.write_bytes(b"." * size)
    return files


def test_every_format_is_judged_and_timed(model: Classifier, images: Dataset, log: Log, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    files = made(tmp_path, onnx=4000, broken=7, onnx_int8=1000)
    rows = bench.bench(model, files, images, 0.2, lambda done, total: steps.append((done, total)))
    assert [row.format for row in rows] == [TORCH, "onnx", "broken", "onnx-int8"]
    torch_, onnx, broken, int8 = rows
    assert torch_.agreement is None
    assert torch_.memory is None
    assert broken == Row(format="broken", file="broken.onnx", bytes=7, failure=f"{files['broken']}: no ONNX file")
    assert (onnx.file, onnx.bytes, onnx.memory) == ("onnx.onnx", 4000, (30_000_000, 42_500_000))
    assert onnx.agreement
    assert onnx.agreement.agreement == 1
    assert onnx.agreement.p99_difference < 1e-4
    assert int8.agreement
    assert int8.agreement.p99_difference == pytest.approx(100, abs=0.01)
    said = model.logits(images.images)
    said[1::2, 0] += 100
    assert int8.accuracy == (said.argmax(1) == images.labels).double().mean()
    assert int8.interval
    assert int8.interval.lo < int8.accuracy < int8.interval.hi
    for row in (torch_, onnx, int8):
        for timing in (row.one, row.all, row.batch):
            assert timing
            assert 0 < timing.p50 <= timing.p95
    names, before = ("onnx.onnx", "onnx-int8.onnx"), torch.get_num_threads()
    assert log.opened[3:] == [(name, threads) for threads in (1, 2, 2) for name in names]  # the broken one no more
    assert log.torch == [1, before, 2, before, 2, before]
    assert steps == [(done, 7) for done in range(1, 8)]


def test_without_images_nothing_is_judged(model: Classifier, log: Log, tmp_path: Path) -> None:
    for row in bench.bench(model, made(tmp_path, onnx=40), None, 0.05):
        assert (row.accuracy, row.interval, row.agreement) == (None, None, None)
        assert row.one


def test_a_peers_file_has_no_network_beside_it(model: Classifier, images: Dataset, log: Log, tmp_path: Path) -> None:
    files = made(tmp_path, peer=40)
    peer = replace(model, network=Exported(Fake(model, 0, raw=False)), path=files["peer"])
    (row,) = bench.bench(peer, files, images, 0.05)
    assert row.agreement is None
    assert row.accuracy == (model.logits(images.images).argmax(1) == images.labels).double().mean()
    assert row.one
    assert "pay" not in "".join(notes([row], VNNI))


def test_torch_gets_its_threads_back_after_an_accident(
    model: Classifier, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    def accident(*given: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bench, "measure", accident)
    with pytest.raises(KeyboardInterrupt):
        bench.bench(model, {})
    assert log.torch == [1, torch.get_num_threads()]


def test_what_is_compared(model: Classifier, tmp_path: Path) -> None:
    home = replace(model, path=tmp_path / "model.safetensors")
    assert bench.found(home) == {}
    (tmp_path / "export").mkdir()
    for name in ("net.onnx", "net-int8.onnx", "other.onnx", "net.bin"):
        (tmp_path / "export" / name).touch()
    exported = {"onnx": tmp_path / "export/net.onnx", "onnx-int8": tmp_path / "export/net-int8.onnx"}
    assert bench.found(home) == exported
    named = [str(tmp_path / "export" / name) for name in ("net.onnx", "b.PTE")]
    Path(named[1]).touch()
    assert bench.found(home, named) == {name: Path(name) for name in named}
    with pytest.raises(UserError, match=r"^gone\.onnx: no such file$"):
        bench.found(home, [*named, "gone.onnx"])
    with pytest.raises(UserError, match=r"b\.zip: no exported file: its name has to end in \.onnx, "):
        bench.found(home, ["a.onnx", "b.zip"])
    peer = replace(model, network=Exported(Fake(model, 0)), path=tmp_path / "export" / "net.onnx")
    own = str(tmp_path / "export" / "net.onnx")
    assert list(bench.found(peer)) == [own]
    assert list(bench.found(peer, named[1:])) == [own, named[1]]


# --- telling -----------------------------------------------------------------------------------------------


def row(name: str, ms: float, count: int, change: float = 0.0, p95: float = 1.1, every: float = 0.0) -> Row:
    agreed = Agreement(
        n=10_000,
        agreement=0.998,
        mean_difference=0.0123,
        p99_difference=0.0567,
        spread=3.0,
        accuracy_change=change,
        interval=Interval(change - 0.001, change + 0.001),
    )
    one, all_ = (Timing(each, p95 * each, 500) for each in (ms, every or ms / 2))
    made = Row(format=name, file=f"net-{name}.onnx", bytes=count, accuracy=0.9131, interval=Interval(0.9074, 0.9185))
    more = {"agreement": agreed, "one": one, "all": all_, "batch": Timing(20 * ms, 22 * ms, 50)}
    return structs.replace(made, memory=(30_000_000, 42_500_000), **more)


ROWS = [
    structs.replace(row(TORCH, 1.5, 2_827_752), agreement=None, memory=None),
    row("onnx", 0.92, 2_860_000),
    row("onnx-int8", 0.58, 811_000),
    row("executorch", 0.9, 2_830_000),
    structs.replace(row("executorch-int8", 250.77, 824_000), file="net-int8.pte"),
    Row(format="litert", file="net.tflite", bytes=0, failure="net.tflite: damaged: export it anew"),
]


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_and_no_cell_is_cut(width: int) -> None:
    console = Console(width=width, color_system=None)
    with console.capture() as captured:
        console.print(table(ROWS, narrow=width < 116))
    text = captured.get()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    lines = {line.split()[0]: line.split() for line in text.splitlines() if line.strip()}
    if width == 120:
        expected = ["91.31%", "90.7-91.8", "99.80%", "0.057", "0.58", "0.64", "0.29", "0.32", "5,517", "12.5", "MB"]
        assert lines["onnx-int8"] == ["onnx-int8", "811", "kB", *expected]
        assert lines["litert"] == ["litert", *["-"] * 11]
    else:
        assert lines["onnx-int8"] == ["onnx-int8", "811", "kB", "91.31%", "99.80%", "0.58", "0.29", "5,517"]


def said(rows: list[Row], cpu: Cpu = VNNI) -> str:
    return "\n".join(notes(rows, cpu))


def test_what_int8_is_worth_is_told() -> None:
    good = "onnx-int8 pays: 0.63x the time of onnx on one thread, 0.63x on all, 0.28x the bytes"
    assert good in said(ROWS).splitlines()
    slow = [row("onnx", 1.0, 1000), row("onnx-int8", 1.2, 280)]
    bad = "onnx-int8 does not pay here: 1.20x the time of onnx on one thread, 1.20x on all, 0.28x the bytes"
    assert bad in said(slow).splitlines()
    assert f"{bad}; this CPU has no VNNI" in said(slow, PLAIN).splitlines()
    assert "VNNI" not in said(slow, Cpu("Chip", 1, None))
    assert "does not pay here: 0.50x" in said([row("onnx", 1.0, 1000), row("onnx-int8", 0.5, 280, every=0.6)])
    assert "pay" not in said([row("onnx-int8", 1.2, 280)])  # no float twin


def test_lost_accuracy_is_told_where_it_is_more_than_chance() -> None:
    assert "loses" not in said([row("onnx-int8", 1, 1, change=-0.0005)])
    told = "onnx-int8 loses 0.40 points of accuracy (95 % interval 0.30 to 0.50)"
    assert told in said([row("onnx-int8", 1, 1, change=-0.004)]).splitlines()


def test_the_other_notes() -> None:
    lines = said(ROWS).splitlines()
    assert lines[0] == "Chip, 2 cores: AVX2, AVX-512 VNNI"
    assert lines[1] == "litert is left out: net.tflite: damaged: export it anew"
    assert "images/s is in batches of 64, which executorch-int8 can only take image by image" in lines
    memory = "memory is the file's own share of the peak; with Python and the runtime: onnx 42.5 MB"
    assert any(line.startswith(memory) for line in lines)
    assert "busy" not in said(ROWS)
    busy = [row("onnx", 1, 1), row("openvino", 1, 1, p95=2.5)]
    assert "the machine was busy: p95 is more than 2x p50 of openvino; run it again" in said(busy).splitlines()


def test_some_images_are_drawn_and_not_the_first(images: Dataset) -> None:
    some = drawn(images, 5)
    assert len(some) == 5
    assert not torch.equal(some.images[:], images.images[:5])
    assert torch.equal(some.images[:], drawn(images, 5).images[:])
    assert drawn(images, None) is images


def test_json_and_back() -> None:
    told = msgspec.json.decode(bench.to_json(ROWS, VNNI))
    assert msgspec.convert(told["rows"], list[Row]) == ROWS
    assert msgspec.convert(told["cpu"], Cpu) == VNNI


def test_a_long_name_is_folded_and_no_number_cut() -> None:
    console = Console(width=80, color_system=None)
    with console.capture() as captured:
        console.print(table([row("somewhere/far/away/" * 3 + "net.onnx", 1, 1000)], narrow=True))
    assert "…" not in captured.get()
    assert "91.31%  99.80%" in captured.get()


def test_markdown_is_a_table_with_the_notes_below() -> None:
    text = markdown(ROWS, PLAIN)
    grid, rest = text.split("\n\n")
    cells = [line.strip("| ").split(" | ") for line in grid.splitlines()]
    assert {len(line) for line in cells} == {12}
    assert cells[0][:5] == ["format", "size", "accuracy", "95 % interval", "same class"]
    assert [line[0] for line in cells[2:]] == [row.format for row in ROWS]
    assert rest.splitlines() == [f"- {note}" for note in notes(ROWS, PLAIN)]


def test_a_real_file(model: Classifier, images: Dataset, tmp_path: Path) -> None:
    for library in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(library)
    from weightclass.edge import onnx

    path = tmp_path / "net.onnx"
    header = modelfile.header(model) | {"export": "{}"}
    onnx.write(Shipped(model.network, SHAPE, model.mean, model.std), path, header, "crop")
    row = bench.bench(model, {"onnx": path}, images, 0.1)[1]
    assert not row.failure
    assert row.agreement
    assert row.agreement.p99_difference < 1e-4
    assert row.memory is None or 0 <= row.memory[0] <= row.memory[1]
