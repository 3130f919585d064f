"""The page's folder, its server, and what a real browser makes of both: the same pixels, the same answers as here."""

from __future__ import annotations

import _thread
import base64
import dataclasses
import http.client
import json
import os
import re
import shutil
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.reference import browser, pictures
from tests.reference.browser import Browser
from weightclass import champions, modelfile, recipe
from weightclass.cli import main
from weightclass.data import cifar, images
from weightclass.edge import webpage
from weightclass.edge.gate import compare
from weightclass.edge.shipped import Shipped
from weightclass.errors import UserError
from weightclass.model import networks
from weightclass.modelfile import Classifier
from weightclass.runtimes.runner import stamp

for library in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(library)

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
BANNER = f"/*!\n * ONNX Runtime Web v{webpage.VERSION}\n */\n"
REAL = os.environ.get("WEIGHTCLASS_DATA")
in_a_browser = pytest.mark.skipif(not browser.find(), reason="no Chromium or Chrome on PATH")


def classifier(shape: tuple[int, int, int] = (3, 8, 8), classes: tuple[str, ...] = CLASSES) -> Classifier:
    settings = recipe.load("quickstart", "model.blocks=1,1", "model.channels=8,16").recipe
    network = networks.build(settings.model, shape, len(classes), seed=3).eval()
    mean, std = (0.5,) * shape[0], (0.25,) * shape[0]
    facts = {"accuracy": 0.875, "interval": [0.8, 0.9], "n": 1000, "split": "test", "params": 5490}
    return Classifier(network, settings, "made up", classes, shape, mean, std, facts)


def exported(model: Classifier, path: Path) -> Path:
    from weightclass.edge import onnx

    shipped = Shipped(model.network, model.image_shape, model.mean, model.std)
    onnx.write(shipped, path, modelfile.header(model), "crop")
    return path


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(classifier(), tmp_path_factory.mktemp("model") / "small.onnx")


def restamped(file: Path, path: Path, model: Classifier) -> Path:
    """The same network under another header."""
    shutil.copy(file, path)
    stamp(path, modelfile.header(model))
    return path


@pytest.fixture
def runtime(tmp_path: Path) -> Path:
    """An unpacked package of made-up files."""
    dist = tmp_path / "package" / "dist"
    dist.mkdir(parents=True)
    (dist / "ort.wasm.bundle.min.mjs").write_text(BANNER, encoding="utf-8")
    (dist / "ort-wasm-simd-threaded.wasm").write_bytes(b"\0asm")
    return dist.parent


@contextmanager
def served(folder: Path) -> Iterator[int]:
    """The port at which `folder` is served meanwhile."""
    with webpage.server(folder, 0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


# --- the folder --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["", "dist"])
def test_the_folder_holds_the_page_the_model_and_its_runtime(
    model_file: Path, runtime: Path, tmp_path: Path, given: str
) -> None:
    out = webpage.build(model_file, tmp_path / "new" / "site", runtime / given)
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.suffix != ".html"} == {
        "model.onnx": model_file.read_bytes(),
        "ort.js": BANNER.encode(),
        "ort-wasm-simd-threaded.wasm": b"\0asm",
    }
    page = (out / "index.html").read_text(encoding="utf-8")
    assert not re.search(
        r"https?:|url\(|\b(src|href|import|fetch)[=('\"]+/", page
    )  # it asks nobody, and works under any path
    for part in ("<h1>made up</h1>", "87.50%", "of 1,000 test images", "5,490", "small.onnx", "3 x 8 x 8"):
        assert part in page, part


@pytest.mark.slow
def test_a_champion_gets_its_page_without_any_data(
    runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    box, here = tmp_path / "box", tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(champions, "FOLDER", box)
    for name in ("load", "find"):
        monkeypatch.setattr(f"weightclass.data.sources.{name}", lambda *_: pytest.fail("looked for data"))
    modelfile.save(box / "100k.safetensors", dataclasses.replace(classifier(), name="100k"), half=True)
    words = ["webpage", "100k", "--no-serve", "--runtime", str(runtime), "--out", "site"]
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 0
    page = (here / "site" / "index.html").read_text(encoding="utf-8")
    assert "<h1>100k</h1>" in page and "87.50%" in page
    pixels = torch.randint(256, (9, 3, 8, 8), generator=torch.Generator().manual_seed(2)).byte()
    torch.testing.assert_close(
        modelfile.load("site/model.onnx").logits(pixels), modelfile.load("100k").logits(pixels), rtol=1e-4, atol=1e-4
    )
    assert [*here.iterdir()] == [here / "site"] and [*box.iterdir()] == [box / "100k.safetensors"]
    monkeypatch.setattr(webpage, "compare", lambda said, other, labels: compare(said, other + 1, labels))
    with pytest.raises(UserError, match=r"100k.onnx: its .onnx file does not agree with the network: p99 logit"):
        webpage.source("100k", tmp_path)


def test_the_accuracy_is_the_files_own(model_file: Path, runtime: Path, tmp_path: Path) -> None:
    header = {"scorecard": {"n": 2000, "accuracy": 0.625}, "judged_on": "validation"}
    assert webpage._judged({"export": json.dumps(header)}) == {"n": 2000, "accuracy": 0.625, "split": "validation"}
    for text in ("", "{}", "[]", '{"scorecard": 3, "judged_on": ""}'):
        assert webpage._judged({"export": text}) == {}
    published = classifier()
    published.facts = {"published": True}
    page = webpage.build(restamped(model_file, tmp_path / "x.onnx", published), tmp_path / "site", runtime)
    assert "accuracy" not in (page / "index.html").read_text(encoding="utf-8")


class Page(HTMLParser):
    """Gathers the elements, and the text of scripts and of the title."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not any(key.startswith("on") for key, _ in attrs)

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self.tags[-1] if self.tags else "", []).append(data)


def test_no_name_breaks_the_page(model_file: Path, runtime: Path, tmp_path: Path) -> None:
    attacks = ("<script>alert(1)</script>", '"><img src=x>', "</script><!--", "{{ 7 * 7 }}", "&lt;", "' on=")
    names = (*attacks, "\u2028", "é")
    hostile = classifier(classes=(*names, "i", "j"))
    hostile.name = names[0]
    source = restamped(model_file, tmp_path / "x.onnx", hostile)
    (plain, found) = (
        Page((webpage.build(file, tmp_path / file.stem, runtime) / "index.html").read_text(encoding="utf-8"))
        for file in (model_file, source)
    )
    assert found.tags == plain.tags
    assert found.texts["title"][0] == f"{names[0]} in the browser"
    assert json.loads(found.texts["script"][0])["classes"] == [*names, "i", "j"]


def test_another_page_is_not_written_over(model_file: Path, runtime: Path, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<h1>My shop</h1>", encoding="utf-8")
    with pytest.raises(UserError, match=r"index\.html: there is another page already"):
        webpage.build(model_file, tmp_path, runtime)
    out = tmp_path / "site"
    for _ in range(2):  # one of ours is
        webpage.build(model_file, out, runtime)


def test_only_our_own_onnx_files_have_a_page(runtime: Path, tmp_path: Path) -> None:
    import onnx

    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Flatten", ["x"], ["y"])],
        "theirs",
        [value("x", onnx.TensorProto.FLOAT, [1, 3, 2, 2])],
        [value("y", onnx.TensorProto.FLOAT, [1, 12])],
    )
    theirs = onnx.helper.make_model(graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", 18)])
    (tmp_path / "theirs.onnx").write_bytes(theirs.SerializeToString())
    (tmp_path / "garbage.onnx").write_bytes(b"garbage")
    modelfile.save(tmp_path / "model.safetensors", classifier())
    for name in ("theirs.onnx", "garbage.onnx", "missing.onnx", "model.safetensors", ""):
        with pytest.raises(UserError) as error:
            webpage.build(tmp_path / name, tmp_path / "site", runtime)
        assert "\n" not in str(error.value) and str(tmp_path / name) in str(error.value)
    assert not (tmp_path / "site").exists()


# --- the runtime -------------------------------------------------------------------------------------------


@pytest.fixture
def tarball(runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A made-up one, which counts as the right one."""
    path = tmp_path / "web" / "runtime-1.tgz"
    path.parent.mkdir()
    with tarfile.open(path, "w:gz") as tar:
        tar.add(runtime, "package")
    monkeypatch.setattr(webpage, "SHA256", sha256(path.read_bytes()).hexdigest())
    monkeypatch.setenv("WEIGHTCLASS_CACHE", str(tmp_path / "cache"))
    return path


def test_the_runtime_is_fetched_once(
    model_file: Path, tarball: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(tarball.parent) as port:
        monkeypatch.setattr(webpage, "URL", f"http://127.0.0.1:{port}/runtime-1.tgz")
        webpage.build(model_file, tmp_path / "one")
    webpage.build(model_file, tmp_path / "two")  # the server is gone
    webpage.build(model_file, tmp_path / "three", tarball)
    kept = [(tmp_path / name / "ort.js").read_bytes() for name in ("one", "two", "three")]
    assert kept == [BANNER.encode()] * 3


def test_a_runtime_that_cannot_be_had_is_told(
    model_file: Path, tarball: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(tarball.parent) as port:
        monkeypatch.setattr(webpage, "URL", f"http://127.0.0.1:{port}/runtime-1.tgz")
        (tarball.parent / "runtime-1.tgz").write_bytes(b"something else")
        with pytest.raises(UserError, match=r"cannot download http.* --runtime") as error:
            webpage.build(model_file, tmp_path / "site")
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"cannot download http.* --runtime"):  # no network at all
        webpage.build(model_file, tmp_path / "site")
    assert not (tmp_path / "site").exists()


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda folder: folder / "missing.tgz", "missing.tgz: No such file or directory: download https"),
        (lambda folder: folder / "dist" / "ort.wasm.bundle.min.mjs", "its sha256 is"),
        (lambda folder: folder.parent, "ort.wasm.bundle.min.mjs: No such file or directory: download https"),
        (lambda folder: (folder / "dist" / "ort-wasm-simd-threaded.wasm").unlink() or folder, "threaded.wasm: No such"),
        (
            lambda folder: (folder / "dist" / "ort.wasm.bundle.min.mjs").write_bytes(b"v1.2.3") and folder,
            f"not onnxruntime-web {webpage.VERSION}: download https",
        ),
    ],
)
def test_a_wrong_runtime_is_told(model_file: Path, runtime: Path, tmp_path: Path, spoil, told: str) -> None:
    with pytest.raises(UserError, match=re.escape(told)) as error:
        webpage.build(model_file, tmp_path / "site", spoil(runtime))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "site").exists()


# --- the server --------------------------------------------------------------------------------------------


def test_the_server_knows_its_types_and_nothing_outside(
    model_file: Path, runtime: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "secret.txt").write_text("secret", encoding="utf-8")
    with served(webpage.build(model_file, tmp_path / "site", runtime)) as port:

        def get(path: str) -> tuple[int, str | None]:
            line = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            line.putrequest("GET", path, skip_host=True)
            line.endheaders()
            with line.getresponse() as answer:
                return answer.status, answer.getheader("Content-Type")

        assert get("/") == get("/index.html") == (200, "text/html")
        assert get("/ort.js") == (200, "text/javascript")
        assert get("/ort-wasm-simd-threaded.wasm") == (200, "application/wasm")
        assert get("/model.onnx?0a1b2c3d") == (200, "application/octet-stream")
        secret = str(tmp_path / "secret.txt")
        for path in ("/../secret.txt", "/%2e%2e/secret.txt", "/..%2fsecret.txt", "/x/../../secret.txt", f"/{secret}"):
            assert get(path)[0] == 404, path
        with http.client.HTTPConnection("127.0.0.1", port)._create_connection(("127.0.0.1", port)) as rude:  # type: ignore[attr-defined]
            rude.sendall(b"GET /model.onnx HTTP/1.0\r\n\r\n")
    assert capfd.readouterr() == ("", "")


def test_a_taken_port_is_passed_over(tmp_path: Path) -> None:
    with webpage.server(tmp_path, 0) as first:
        assert first.server_address[0] == "127.0.0.1"
        with webpage.server(tmp_path, first.server_port) as second:
            assert first.server_port < second.server_port <= first.server_port + 99
    with pytest.raises(UserError, match="no port from 65536 on is free"):
        webpage.server(tmp_path, 65536)


@pytest.mark.parametrize("open_browser", [True, False])
def test_ctrl_c_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], open_browser: bool
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    threading.Timer(0.3, _thread.interrupt_main).start()
    webpage.serve(tmp_path, 0, open_browser)
    told = re.fullmatch(r"(http://127\.0\.0\.1:\d+/) \(Ctrl-C ends it\)\n", capsys.readouterr().out)
    assert told and opened == [told[1]] * open_browser


# --- a real browser ----------------------------------------------------------------------------------------

RECORDER = """
export const env = { wasm: {} };
export class Tensor { constructor(type, data, dims) { Object.assign(this, { type, data, dims }); } }
globalThis.seen = [];
const run = async ({ pixels }) => {
  seen.push([pixels.type, pixels.dims, pixels.data.length < 1e5 ? Array.from(pixels.data) : []]);
  return { logits: { data: new Float32Array([0, 1, 3, 2, 0, 0, 0, 0, 0, 0]) } };
};
export const InferenceSession = { create: async () => ({ run }) };
"""
"""In the runtime's place, so that a test sees what the network is given; it always says "bird"."""


def text(tab: Browser, name: str) -> str:
    return tab.evaluate(f"document.getElementById('{name}').textContent")


def answers(tab: Browser) -> list[str]:
    """The best class of each picture, as the gallery shows it."""
    return tab.evaluate("[...document.querySelectorAll('#gallery button span:first-of-type')].map(e => e.textContent)")


def open_site(tab: Browser, address: str, width: int = 1200, dark: bool = False) -> None:
    browser.open_page(tab, address, width, dark=dark)
    tab.until("!document.getElementById('status').textContent.startsWith('Loading')")


def faultless(tab: Browser, address: str) -> None:
    """Nothing on the console, and no request but to the server."""
    assert not tab.told("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
    asked = {told["request"]["url"] for told in tab.told("Network.requestWillBeSent")}
    assert f"{address}ort.js" in asked
    assert [url for url in asked if not url.startswith((address, "blob:", "data:"))] == []


def some_kinds(folder: Path) -> dict[str, float]:
    """Small pictures of many kinds, each with how many levels a browser may be off."""
    from PIL import PngImagePlugin

    random = np.random.default_rng(0)
    colour = Image.fromarray(pictures.natural(1, 41, 63)[0].permute(1, 2, 0).numpy())
    alpha = Image.fromarray(random.integers(0, 256, (41, 63), np.uint8))
    see_through, gamma = colour.copy(), PngImagePlugin.PngInfo()
    see_through.putalpha(alpha)
    gamma.add(b"gAMA", (100_000).to_bytes(4, "big"))
    exif = Image.Exif()
    exif[Image.ExifTags.Base.Orientation] = 6
    colour.save(folder / "colour.png")
    colour.save(folder / "gamma.png", pnginfo=gamma)
    colour.convert("L").save(folder / "grey.png")
    colour.convert("1").save(folder / "bilevel.png")
    colour.quantize(16).save(folder / "palette.gif")
    colour.save(folder / "bitmap.bmp")
    colour.save(folder / "lossless.webp", lossless=True)
    colour.save(folder / "turned.png", exif=exif)
    see_through.save(folder / "see-through.png")
    colour.save(folder / "fine.jpg", quality=95, subsampling=0)
    colour.save(folder / "coarse.jpg", quality=85, exif=exif)
    return {"see-through.png": 1, "fine.jpg": 1, "coarse.jpg": 2}


@pytest.mark.slow
@in_a_browser
@pytest.mark.parametrize("channels", [3, 1])
def test_the_network_sees_the_pixels_that_python_sees(channels: int, runtime: Path, tmp_path: Path) -> None:
    (runtime / "dist" / "ort.wasm.bundle.min.mjs").write_text(BANNER + RECORDER, encoding="utf-8")
    file, folder = exported(classifier((channels, 8, 8)), tmp_path / "x.onnx"), tmp_path / "pictures"
    folder.mkdir()
    slack = some_kinds(folder)
    files = sorted(folder.iterdir())
    with (
        served(webpage.build(file, tmp_path / "site", runtime)) as port,
        browser.browse(str(browser.find()), tmp_path) as tab,
    ):
        open_site(tab, f"http://127.0.0.1:{port}/")
        tab.choose("#files", files)
        tab.until(f"seen.length > {len(files)}")
        (_, warm_up, _), *seen = tab.evaluate("seen")
        faultless(tab, f"http://127.0.0.1:{port}/")
    assert warm_up == [1, channels, 8, 8]
    for path, (kind, shape, values) in zip(files, seen, strict=True):
        height, width, _ = images.peek(path)
        assert (kind, shape) == ("uint8", [1, channels, height, width])
        expected = images.read(path, (channels, height, width), "crop").astype(int)
        off = np.abs(np.array(values).reshape(expected.shape) - expected).max()
        assert off <= slack.get(path.name, 0), path.name


@pytest.mark.slow
@in_a_browser
def test_the_page_in_use(model_file: Path, runtime: Path, tmp_path: Path) -> None:
    (runtime / "dist" / "ort.wasm.bundle.min.mjs").write_text(BANNER + RECORDER, encoding="utf-8")
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    Image.new("RGB", (9, 5), "red").save(good)
    bad.write_bytes(b"no picture")
    Image.new("RGB", (6000, 4000)).save(tmp_path / "large.png")
    file = f"new File([Uint8Array.from(atob('{base64.b64encode(good.read_bytes()).decode()}'), c => c.charCodeAt(0))]"
    carry = f"(() => {{ const d = new DataTransfer(); d.items.add({file}, 'given.png')); return d; }})()"
    flags = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
    flags += ("--host-resolver-rules=MAP insecure.test 127.0.0.1",)
    with (
        served(webpage.build(model_file, tmp_path / "site", runtime)) as port,
        browser.browse(str(browser.find()), tmp_path, *flags) as tab,
    ):
        home = f"http://127.0.0.1:{port}/"
        for width, dark in ((360, False), (1200, True)):
            open_site(tab, home, width, dark)
            tab.choose("#files", [good, bad, good])
            tab.until("document.images.length && document.images[0].complete")
            assert tab.evaluate("document.documentElement.scrollWidth") <= width
            assert answers(tab) == ["bird", "bird"]
            assert text(tab, "status") == "bad.png: not a picture that this browser can read"
        assert text(tab, "verdict") == "bird" and text(tab, "about") == "good.png, 9 x 5"
        assert re.findall(r"[a-z]+[\d.]+%", text(tab, "bars"))[:2] == ["bird54.0%", "cat19.9%"]

        tab.evaluate(f"document.dispatchEvent(new ClipboardEvent('paste', {{ clipboardData: {carry} }})) && null")
        tab.until("document.getElementById('about').textContent === 'given.png, 9 x 5'")
        tab.evaluate(
            f"document.body.dispatchEvent(new DragEvent('drop', {{ bubbles: true, dataTransfer: {carry} }})) && null"
        )
        tab.until("document.querySelectorAll('#gallery li').length === 4")
        tab.evaluate("document.dispatchEvent(new DragEvent('drop', { dataTransfer: new DataTransfer() })) && null")
        assert "no picture file" in text(tab, "status")
        tab.evaluate("document.querySelector('#gallery button').click()")
        assert text(tab, "about") == "good.png, 9 x 5"
        tab.choose("#files", [tmp_path / "large.png"])
        tab.until("document.getElementById('about').textContent === 'large.png, 6000 x 4000'")
        assert tab.evaluate("seen.at(-1)[1]") == [1, 3, 3344, 5016]  # no more pixels than any canvas holds

        tab.evaluate("document.getElementById('camera').click()")
        tab.until("document.getElementById('about').textContent.startsWith('camera')")
        assert tab.evaluate("document.getElementById('video').srcObject.active")
        tab.evaluate("document.getElementById('camera').click()")
        assert not tab.evaluate("document.getElementById('video').srcObject.active")
        faultless(tab, home)

        refused = "fetch('http://insecure.test:1/').then(() => 'sent', error => error.name)"
        assert tab.evaluate(refused) == "TypeError"  # nothing could leave even if the page tried
        assert any("Content Security Policy" in told["entry"]["text"] for told in tab.told("Log.entryAdded"))

        assert not tab.evaluate("document.getElementById('camera').hidden")
        open_site(tab, f"http://insecure.test:{port}/")
        assert tab.evaluate("[isSecureContext, document.getElementById('camera').hidden]") == [False, True]
        open_site(tab, (tmp_path / "site" / "index.html").as_uri())
        assert text(tab, "status").startswith("Browsers run no network from a file")


def originals() -> Tensor:
    """100 test images of CIFAR-10, made-up ones where that is not here."""
    return cifar.read(cifar.CIFAR10, REAL)[1].images[:100] if REAL else pictures.natural(100, 32, 32)


def photographs(found: Tensor, folder: Path) -> list[Path]:
    """80 small PNGs and 20 pictures larger than the input, of odd sizes and several kinds."""
    random = np.random.default_rng(0)
    exif = Image.Exif()
    for i, pixels in enumerate(found.permute(0, 2, 3, 1).numpy()):
        picture, name = Image.fromarray(pixels), folder / f"{i:03d}"
        if i < 80:
            picture.save(name.with_suffix(".png"))
            continue
        width, height = (int(side) for side in random.integers(150, 900, 2))
        inner, side = picture.resize((min(width, height),) * 2, Image.Resampling.BICUBIC), min(width, height)
        photo = Image.new("RGB", (width, height), "gray")
        photo.paste(inner, ((width - side) // 2, (height - side) // 2))
        if i % 3 == 0:
            mask = Image.radial_gradient("L").resize(photo.size).point(lambda level: 255 - level // 8)
            photo.putalpha(mask)
        exif[Image.ExifTags.Base.Orientation] = 6 if i % 4 == 1 else 1
        turned = photo.transpose(Image.Transpose.ROTATE_90) if i % 4 == 1 else photo
        turned.save(name.with_suffix(".png" if i % 3 == 0 else ".jpg"), quality=92, exif=exif)
    return sorted(folder.iterdir())


@pytest.fixture
def real_runtime() -> None:
    try:
        webpage._runtime(None)
    except UserError as error:
        pytest.skip(str(error))


@pytest.mark.slow
@in_a_browser
@pytest.mark.usefixtures("real_runtime")
def test_a_hundred_pictures_get_the_answers_that_python_gives(tmp_path: Path) -> None:
    found, model, folder = originals(), classifier((3, 32, 32)), tmp_path / "pictures"
    bias = model.network.get_parameter("linear.bias")
    bias.data -= model.logits(found).mean(0)  # or all answers of a network that has learned nothing would be one class
    folder.mkdir()
    files = photographs(found, folder)
    expected = [answer.label for answer in model.predict(files)]
    assert len(set(expected)) >= 5
    webpage.build(exported(model, tmp_path / "x.onnx"), tmp_path / "site")
    with served(tmp_path) as port, browser.browse(str(browser.find()), tmp_path, limit=300) as tab:
        address = f"http://127.0.0.1:{port}/site/"  # any path will do
        open_site(tab, address)
        tab.choose("#files", files)
        tab.until("document.querySelectorAll('#gallery li').length === 100")
        assert answers(tab) == expected
        faultless(tab, address)


def test_a_runs_plainest_file_is_taken_whatever_was_exported_last(tmp_path: Path) -> None:
    assert webpage.exported(tmp_path) is None
    for name, best in (("a-int8.onnx", "a-int8.onnx"), ("a.onnx", "a.onnx"), ("a-fp16.onnx", "a.onnx")):
        (tmp_path / "export").mkdir(exist_ok=True)
        (tmp_path / "export" / name).touch()
        assert webpage.exported(tmp_path) == tmp_path / "export" / best
