"""An archive arrives whole or not at all, once however many ask, and unpacks to what was asked for only."""

from __future__ import annotations

import errno
import gc
import gzip
import hashlib
import http.server
import io
import random
import shutil
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


def test_home_is_expanded_and_an_unknown_user_is_a_place_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert download.expand("~/data") == tmp_path / "data"
    assert download.expand("plain/~") == Path("plain/~")
    assert not download.expand("~nobody-of-that-name/data").exists()


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
    download.unpack(archive, folder, ["a", "b"])
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


@pytest.mark.parametrize(
    ("wanted", "members"),
    [("c", {"set/../c": b"x"}), ("c", {"other/c": b"x"}), ("link", {}), ("a", {}), ("d", {"set/d/e": b"x"})],
)
def test_an_archive_without_a_wanted_plain_file_is_refused(tmp_path: Path, wanted: str, members: dict[str, bytes]):
    archive = pack(tmp_path / "set.tar.gz", members, link="set/link")
    with pytest.raises(UserError, match=rf"^{archive}: not a whole archive of set \(it lacks set/{wanted}\): fetch it"):
        download.unpack(archive, tmp_path / "set", [wanted])
    assert names(tmp_path) == ["set.tar.gz"]


def test_an_archive_cut_or_with_a_byte_changed_is_one_line_or_whole(tmp_path: Path):
    members = {"set/a": random.Random(0).randbytes(700), "set/b": b"B"}
    archive, folder = pack(tmp_path / "set.tar.gz", members), tmp_path / "set"
    whole, refused = archive.read_bytes(), 0
    places = range(0, len(whole), 11)
    changed = [whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :] for place in places]
    for content in [whole[:place] for place in places] + changed:
        archive.write_bytes(content)
        try:
            download.unpack(archive, folder, ["a", "b"])
        except UserError as error:
            assert str(error).startswith(f"{archive}: not a whole archive of set (")  # noqa: PT017 (either may happen)
            assert "\n" not in str(error)  # noqa: PT017
            assert names(tmp_path) == ["set.tar.gz"]
            refused += 1
        else:
            assert names(folder) == ["a", "b"]
            shutil.rmtree(folder)
    assert refused > len(places)


def test_a_foreign_file_is_no_archive(tmp_path: Path):
    archive = tmp_path / "set.tar.gz"
    for content in (b"", b"<html>gone</html>", gzip.compress(b"no tar " * 200), gzip.compress(b"")):
        archive.write_bytes(content)
        with pytest.raises(UserError, match=f"^{archive}: not a whole archive of set"):
            download.unpack(archive, tmp_path / "set", ["a"])
        assert names(tmp_path) == ["set.tar.gz"]


def test_a_full_disk_is_not_blamed_on_the_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(download.shutil, "copyfileobj", full)
    with pytest.raises(OSError, match="No space left"):
        download.unpack(pack(tmp_path / "set.tar.gz", {"set/a": b"A"}), tmp_path / "set", ["a"])
    assert names(tmp_path) == ["set.tar.gz"]


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path):
    folder = tmp_path / "set"
    folder.mkdir()
    download.unpack(tmp_path / "no archive", folder, ["a"])
    assert names(folder) == []
