"""An archive arrives whole or not at all, once however many ask, and unpacks to what was asked for only."""

from __future__ import annotations

import gc
import hashlib
import http.server
import io
import sys
import tarfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from weightclass.data import download
from weightclass.errors import UserError

CONTENT = bytes(range(256)) * 64
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    served = 0

    def do_GET(self) -> None:
        Handler.served += 1
        self.send_response(200 if self.path == "/file" else 404)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    Handler.served = 0
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def names(folder: Path) -> list[str]:
    """What lies in `folder`, the locks apart."""
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def pack(path: Path, members: dict[str, bytes], link: str | None = None) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        if link:
            info = tarfile.TarInfo(link)
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(info)
    return path


# --- the cache ---------------------------------------------------------------------------------------------


def test_the_cache_can_be_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("WEIGHTCLASS_CACHE", str(tmp_path))
    assert download.cache_folder() == tmp_path


@pytest.mark.skipif(sys.platform != "linux", reason="other platforms keep caches elsewhere")
def test_the_cache_is_where_the_platform_keeps_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.delenv("WEIGHTCLASS_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert download.cache_folder() == tmp_path / "weightclass"


# --- fetch -------------------------------------------------------------------------------------------------


def test_many_who_ask_at_once_cause_one_download(server: str, tmp_path: Path):
    path = tmp_path / "new" / "file"
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: download.fetch(f"{server}/file", SHA256, path, "cure"), range(4)))
    assert path.read_bytes() == CONTENT
    assert Handler.served == 1
    assert names(path.parent) == ["file"]


def test_a_file_put_there_by_hand_is_used_and_a_damaged_one_replaced(server: str, tmp_path: Path):
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    download.fetch("http://127.0.0.1:9/nobody", SHA256, path, "cure")
    path.write_bytes(CONTENT[:-1])
    download.fetch(f"{server}/file", SHA256, path, "cure")
    assert path.read_bytes() == CONTENT


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("page", "sha256", "reason"),
    [("file", "0" * 64, "does not match"), ("gone", SHA256, "404"), (None, SHA256, "Connection")],
)
def test_a_failed_download_is_one_line_and_leaves_nothing(
    server: str, tmp_path: Path, page: str | None, sha256: str, reason: str
):
    url = f"{server}/{page}" if page else "http://127.0.0.1:9/closed"
    with pytest.raises(UserError, match=rf"^cannot download {url} \(.*{reason}.*\): the cure$") as caught:
        download.fetch(url, sha256, tmp_path / "file", "the cure")
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == []
    del caught
    gc.collect()  # pooch leaves the refused answer's socket to the collector, which must not warn in another test


def test_check_sha256_names_both(tmp_path: Path):
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    download.check_sha256(path, SHA256, "cure")
    with pytest.raises(UserError, match=f"^{path}: its sha256 is {SHA256}, expected {'0' * 64}: cure$"):
        download.check_sha256(path, "0" * 64, "cure")


# --- unpack ------------------------------------------------------------------------------------------------


def test_only_the_wanted_plain_files_are_unpacked(tmp_path: Path):
    members = {"set/a": b"A", "set/b": b"B", "set/extra": b"x", "../outside": b"x", "other/a": b"x", "set/../c": b"x"}
    archive = pack(tmp_path / "set.tar.gz", members, link="set/link")
    folder = tmp_path / "cache" / "set"
    download.unpack(archive, folder, ["a", "b", "c", "link"])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"a": b"A", "b": b"B"}
    assert names(tmp_path / "cache") == ["set"]
    assert names(tmp_path) == ["cache", "set.tar.gz"]


def test_an_interrupted_unpacking_leaves_nothing_and_can_be_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    archive, folder = pack(tmp_path / "set.tar.gz", {"set/a": b"A", "set/b": b"B"}), tmp_path / "cache" / "set"
    extract = tarfile.TarFile.extractfile

    def interrupted(self: tarfile.TarFile, member: tarfile.TarInfo) -> object:
        if member.name == "set/b":
            raise KeyboardInterrupt
        return extract(self, member)

    with monkeypatch.context() as patch:
        patch.setattr(tarfile.TarFile, "extractfile", interrupted)
        with pytest.raises(KeyboardInterrupt):
            download.unpack(archive, folder, ["a", "b"])
    assert names(folder.parent) == []
    download.unpack(archive, folder, ["a", "b"])
    assert names(folder) == ["a", "b"]


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path):
    folder = tmp_path / "set"
    folder.mkdir()
    download.unpack(tmp_path / "no archive", folder, ["a"])
    assert names(folder) == []
