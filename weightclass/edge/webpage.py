"""A static folder that classifies pictures in the browser: a page, the model and its runtime; nothing is fetched later.

What the page shows is gathered here; how it shows and computes it is all in webpage.html, a Jinja template.
"""

from __future__ import annotations

import contextlib
import json
import os
import tarfile
import webbrowser
import zlib
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from weightclass import __version__, champions, modelfile
from weightclass.data.download import cache_folder, check_sha256, fetch
from weightclass.edge import onnx
from weightclass.edge.export import checked, export
from weightclass.edge.gate import GATES, compare
from weightclass.edge.shipped import Shipped
from weightclass.errors import UserError
from weightclass.files import atomic_write, safe_name
from weightclass.runlog import console, human_bytes
from weightclass.runtimes.runner import runner

VERSION = "1.30.0"
URL = f"https://registry.npmjs.org/onnxruntime-web/-/onnxruntime-web-{VERSION}.tgz"
SHA256 = "d2228df7e4616bc3348bf504ee888f3bec43789a273f0a63f3e68d203ce3bf71"
CURE = f"download {URL} elsewhere and name it with --runtime"
RUNTIME = {"ort.js": "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm": "ort-wasm-simd-threaded.wasm"}
"""The smallest build of onnxruntime-web: names here (not every host takes .mjs for a script) and those in its dist/."""
PAGE = "index.html"
_MARK = b'<meta name="generator" content="weightclass '


def build(model_file: Path, out: Path, runtime: Path | None = None) -> Path:
    """Write the page of `model_file`, an .onnx file of ours, into the folder `out`, and return that.

    Any static host can serve it, under any path. `runtime` is onnxruntime-web's npm tarball, or that unpacked; without
    it the tarball is downloaded once. Raises UserError.
    """
    page = out / PAGE
    if page.exists() and not (page.is_file() and _MARK in page.read_bytes()):
        raise UserError(f"{page}: there is another page already: choose another folder with --out")
    files = {"model.onnx": model_file.read_bytes()} if model_file.is_file() else {}
    files |= {PAGE: _page(model_file, files.get("model.onnx", b"")).encode()}
    for name, data in (_runtime(runtime) | files).items():
        atomic_write(out / name, data)
    return out


def exported(run: Path) -> Path | None:
    """The .onnx file in a run's folder that answers most like its network: NAME.onnx, else -fp16, else -int8."""
    return min((run / modelfile.EXPORTS).glob("*.onnx"), key=lambda file: (len(file.name), file.name), default=None)


def source(model: str, spare: Path) -> Path:
    """The .onnx file to show of `model`: itself, one that its run has exported or exports now; of a champion, which
    needs no data for it, one in the folder `spare`. Raises UserError."""
    if champions.find(model):
        return _unjudged(modelfile.load(model, "cpu"), spare)
    file = exported(Path(model)) or Path(model)
    return file if file.suffix == ".onnx" else export(model, ["onnx"])[0].path


def _unjudged(model: modelfile.Classifier, folder: Path) -> Path:
    """Proven to agree on noise."""
    path = folder / (safe_name(model.name) + ".onnx")
    shipped = Shipped(model.network, model.image_shape, model.mean, model.std)
    checked("onnx")
    onnx.write(shipped, path, modelfile.header(model) | {"export": "{}"}, model.recipe.data.fit)
    noise = torch.randint(256, (256, *model.image_shape), generator=torch.Generator().manual_seed(0)).byte()
    reference = model.logits(noise)
    measured = compare(reference, modelfile.load(path).logits(noise), reference.argmax(1))
    if why := GATES["float32"].refusal(measured):
        raise UserError(f"{path.name}: its .onnx file does not agree with the network: {why}")
    return path


def _page(model_file: Path, data: bytes) -> str:
    from jinja2 import Environment, StrictUndefined

    if model_file.suffix.lower() != ".onnx" or not (header := runner(model_file).header):
        raise UserError(f"{model_file}: not an .onnx file of weightclass: weightclass export MODEL --to onnx makes one")
    model = modelfile.load(model_file, "cpu")
    facts: dict[str, Any] = {"name": model.name, "classes": model.classes, "shape": model.image_shape}
    facts |= {"facts": model.facts | _judged(header), "fit": model.recipe.data.fit}
    facts |= {"file": model_file.name, "size": human_bytes(len(data)), "runtime": VERSION, "version": __version__}
    facts |= {"model": f"model.onnx?{zlib.crc32(data):08x}"}  # another model is another address: no stale cache
    text = resources.files("weightclass.edge").joinpath("webpage.html").read_text(encoding="utf-8")
    maker = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return maker.from_string(text).render(facts) + "\n"


def _judged(header: dict[str, str]) -> dict[str, Any]:
    """The exported file's own scorecard, where it carries one: int8 may differ from the network it was made from."""
    with contextlib.suppress(KeyError, TypeError, ValueError):
        told = json.loads(header["export"])
        return told["scorecard"] | {"split": told["judged_on"]}
    return {}


# --- the runtime -------------------------------------------------------------------------------------------


def _runtime(place: Path | None) -> dict[str, bytes]:
    """What RUNTIME names. Raises UserError."""
    if place is None:
        place = cache_folder() / URL.rpartition("/")[2]
        fetch(URL, SHA256, place, CURE)
    try:
        if not place.is_dir():
            check_sha256(place, SHA256, CURE)  # which makes it a whole tarball of known content
            with tarfile.open(place) as tar:
                return {name: _member(tar, f"package/dist/{member}") for name, member in RUNTIME.items()}
        dist = place / "dist" if (place / "dist").is_dir() else place
        found = {name: (dist / member).read_bytes() for name, member in RUNTIME.items()}
    except OSError as error:
        raise UserError(f"{error.filename or place}: {error.strerror or error}: {CURE}") from None
    if f"ONNX Runtime Web v{VERSION}\n".encode() not in found["ort.js"][:200]:
        raise UserError(f"{place}: not onnxruntime-web {VERSION}: {CURE}")
    return found


def _member(tar: tarfile.TarFile, name: str) -> bytes:
    inside = tar.extractfile(name)
    assert inside
    return inside.read()


# --- the server --------------------------------------------------------------------------------------------


class _Handler(SimpleHTTPRequestHandler):
    """Knows its types whatever the system's registry says, and keeps quiet."""

    extensions_map = {".html": "text/html", ".js": "text/javascript", ".wasm": "application/wasm"}  # noqa: RUF012

    def log_message(self, format: str, *args: Any) -> None: ...


class _Server(ThreadingHTTPServer):
    allow_reuse_address = os.name == "posix"  # on Windows it would share a taken port instead of refusing it

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that hangs up is no news."""


def server(folder: Path, port: int = 8000) -> ThreadingHTTPServer:
    """Of `folder`, for this machine only, at `port` or the next free one (0: any)."""
    for at in range(port, min(port + 100, 2**16)):
        with contextlib.suppress(OSError):
            return _Server(("127.0.0.1", at), partial(_Handler, directory=str(folder)))
    raise UserError(f"no port from {port} on is free: choose another with --port")


def serve(folder: Path, port: int = 8000, open_browser: bool = True) -> None:
    """Serve `folder` on this machine, and open it in the browser, until Ctrl-C."""
    with server(folder, port) as found:
        url = f"http://127.0.0.1:{found.server_port}/"
        console().print(f"{url} (Ctrl-C ends it)", markup=False)
        if open_browser:
            webbrowser.open(url)
        with contextlib.suppress(KeyboardInterrupt):
            found.serve_forever()
