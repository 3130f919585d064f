"""OpenVINO files say what the network says; what is to stay in float stays; nothing is told to anybody."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from tests.edge.test_shipped import KINDS, MEAN, SHAPE, STD, lived_in, pixels
from weightclass.edge import openvino as edge
from weightclass.edge.openvino import write
from weightclass.edge.rungs import Rung
from weightclass.edge.shipped import Shipped
from weightclass.errors import UserError
from weightclass.files import atomic_write
from weightclass.runtimes.openvino import Opened

pytest.importorskip("openvino")
nncf = pytest.importorskip("nncf")

HEADER = {"image_shape": "[3, 8, 8]", "classes": "[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]"}
GREY = (1, 8, 8)


@pytest.fixture(scope="module")
def shipped() -> Shipped:
    return Shipped(lived_in(), SHAPE, MEAN, STD)


@pytest.fixture(scope="module")
def int8(shipped: Shipped, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("int8") / "net-int8.xml", shipped, Rung())


def written(path: Path, shipped: Shipped, rung: Rung | None = None) -> Path:
    write(shipped, path, HEADER, "crop", pixels(64), rung)
    return path


class Graph:
    """An .xml's operations, by name."""

    def __init__(self, path: Path) -> None:
        root = ElementTree.parse(path).getroot()
        self.layers = {layer.attrib["id"]: layer for layer in root.iter("layer")}
        self.edges = {
            (edge.attrib["to-layer"], edge.attrib["to-port"]): edge.attrib["from-layer"] for edge in root.iter("edge")
        }

    def sources(self, layer: str) -> tuple[ElementTree.Element, ElementTree.Element]:
        """Where the input and the weight of a convolution or matrix product come from."""
        (number,) = (
            number
            for number, element in self.layers.items()
            if element.attrib["name"].startswith(f"__module.{layer}/")
            and element.attrib["type"] in ("Convolution", "GroupConvolution", "MatMul")
        )
        image, weight = (self.layers[self.edges[number, port]] for port in "01")
        return image, weight

    def rounded(self, layer: str) -> bool:
        """Whether input and weight are int8; that one alone is would be a mistake."""
        image, weight = (element.attrib["type"] for element in self.sources(layer))
        assert (image == "FakeQuantize") == (weight != "Const")
        return weight != "Const"

    def scales(self, layer: str) -> int:
        """How many numbers an int8 weight is multiplied by."""
        _, product = self.sources(layer)
        scale = self.layers[self.edges[product.attrib["id"], "1"]].find("data")
        assert scale is not None
        return int(np.prod([int(side) for side in scale.attrib["shape"].split(",") if side]))

    def weight(self, layer: str, weights: bytes) -> np.ndarray:
        """The int8 numbers themselves."""
        _, product = self.sources(layer)
        convert = self.layers[self.edges[product.attrib["id"], "0"]]
        data = self.layers[self.edges[convert.attrib["id"], "0"]].find("data")
        assert data is not None and data.attrib["element_type"] == "i8"
        return np.frombuffer(weights, np.int8, int(data.attrib["size"]), int(data.attrib["offset"]))


@pytest.mark.parametrize("settings", KINDS[:-1], ids=" ".join)
def test_the_file_says_what_the_network_says(settings: tuple[str, ...], tmp_path: Path) -> None:
    agrees(settings, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("settings", KINDS[-1:], ids=" ".join)
def test_a_deep_one_too(settings: tuple[str, ...], tmp_path: Path) -> None:
    agrees(settings, tmp_path)


def agrees(settings: tuple[str, ...], folder: Path) -> None:
    shipped = Shipped(lived_in(*settings), SHAPE, MEAN, STD)
    opened = Opened(written(folder / "net.xml", shipped), threads=1)
    spread = float(shipped(pixels()).std())
    for n in (1, 7, 0, 1):
        said = opened(pixels(n).numpy())
        assert said.dtype == np.float32 and said.shape == (n, 10)
        np.testing.assert_allclose(said, shipped(pixels(n)), rtol=0, atol=1e-5 * spread)


def test_grey_images(tmp_path: Path) -> None:
    shipped = Shipped(lived_in(shape=GREY), GREY, MEAN[:1], STD[:1])
    write(shipped, tmp_path / "net.xml", HEADER | {"image_shape": "[1, 8, 8]"}, "crop")
    opened = Opened(tmp_path / "net.xml", threads=1)
    assert opened.image_shape == GREY
    np.testing.assert_allclose(opened(pixels(3, GREY).numpy()), shipped(pixels(3, GREY)), rtol=0, atol=1e-3)


def test_int8_is_small_and_close(shipped: Shipped, int8: Path, tmp_path: Path) -> None:
    written(tmp_path / "net.xml", shipped)
    assert int8.with_suffix(".bin").stat().st_size < 0.3 * (tmp_path / "net.bin").stat().st_size
    expected, said = shipped(pixels(64)).numpy(), Opened(int8, threads=1)(pixels(64).numpy())
    assert 1e-4 < np.abs(said - expected).mean() / expected.std() < 0.02


def test_every_layer_but_the_head_is_int8(shipped: Shipped, int8: Path) -> None:
    graph = Graph(int8)
    assert all(graph.rounded(name) for name in shipped.layers)
    assert not graph.rounded(shipped.head)
    pool, _ = graph.sources(shipped.head)
    assert pool.attrib["type"] == "ReduceMean"
    assert graph.layers[graph.edges[pool.attrib["id"], "0"]].attrib["type"] == "ReLU"


@pytest.mark.parametrize("layer", ["network.layer1.0.conv2", "network.layer2.0.conv1"])  # the second shares its input
def test_float_layers_stay_in_float(layer: str, shipped: Shipped, tmp_path: Path) -> None:
    graph = Graph(written(tmp_path / "net.xml", shipped, Rung(float_layers=(layer,))))
    assert [name for name in shipped.layers if not graph.rounded(name)] == [layer]


def test_scales_and_range_of_the_weights(shipped: Shipped, int8: Path, tmp_path: Path) -> None:
    per_tensor = written(tmp_path / "net.xml", shipped, Rung(per_channel=False, reduce_range=True))
    for name in shipped.layers:
        assert Graph(int8).scales(name) == shipped.get_submodule(name).out_channels
        assert Graph(per_tensor).scales(name) == 1
        full, reduced = (
            np.abs(Graph(path).weight(name, path.with_suffix(".bin").read_bytes()).astype(int))
            for path in (int8, per_tensor)
        )
        assert full.max() >= 127 and reduced.max() == 63


def test_a_misspelt_layer_is_no_silent_success(shipped: Shipped, tmp_path: Path) -> None:
    with pytest.raises(nncf.ValidationError, match="layer9"):
        written(tmp_path / "net.xml", shipped, Rung(float_layers=("network.layer9",)))


def test_a_kill_between_the_two_files_is_seen(
    shipped: Shipped, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "net.xml", Shipped(lived_in("model.norm=none"), SHAPE, MEAN, STD))

    def killed(path: Path, data: bytes) -> None:
        if path.suffix == ".xml":
            raise KeyboardInterrupt
        atomic_write(path, data)

    monkeypatch.setattr(edge, "atomic_write", killed)
    with pytest.raises(KeyboardInterrupt):
        written(path, shipped)
    with pytest.raises(UserError, match=r"another model's \.bin"):
        Opened(path)


QUIETLY = """
import sys
def hook(event, args):
    if event.startswith("socket.") or (event == "open" and args[1] and "w" in str(args[1]) and "intel" in str(args[0])):
        raise SystemExit(f"{event} {args}")
sys.addaudithook(hook)
from pathlib import Path
from tests.edge.test_openvino import Opened, Rung, lived_in, pixels, written, Shipped, SHAPE, MEAN, STD
Opened(written(Path(sys.argv[1]), Shipped(lived_in(), SHAPE, MEAN, STD), Rung()), 1)(pixels(2).numpy())
"""


@pytest.mark.slow
def test_nothing_is_said_sent_or_left_in_the_home_folder(tmp_path: Path) -> None:
    """In a process of its own: NNCF knows pytest, and is another beside it."""
    home = tmp_path / "home"
    home.mkdir()
    hidden = {name: value for name, value in os.environ.items() if name not in ("CI", "TF_BUILD", "JENKINS_URL")}
    environment = hidden | {"HOME": str(home), "USERPROFILE": str(home), "LOCALAPPDATA": str(home)}
    command = [sys.executable, "-W", "error", "-c", QUIETLY, str(tmp_path / "net.xml")]
    told = subprocess.run(command, env=environment, cwd=Path(__file__).parents[2], check=False, capture_output=True)
    assert (told.returncode, told.stdout, told.stderr) == (0, b"", b"")
    assert list(home.iterdir()) == []
