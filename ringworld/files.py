"""Files that are whole or absent, and disks that fill up or fail, said in one sentence."""

import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
import time
import unicodedata
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ringworld.distributed import barrier, exchange_texts, first_says, is_first, process_count
from ringworld.errors import BadFileError, InputError, TooLargeError, UnavailableError

# The index of a model of 100,000 tensors is 10 MB; parsed, it takes some 30 times as much memory.
LARGEST_JSON = 16 << 20
SEEN_S = 10.0  # until the other machines see a new file on a disk that they share
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
FAILED = {errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM}
# A file stands where a folder is to be made, or a folder where a file is.
IN_THE_WAY = {errno.EEXIST, errno.ENOTDIR, errno.EISDIR}
# What a file system such as /proc says of a new name; of any other path it is the caller's error.
NO_NEW_NAME = {errno.ENOENT, errno.ENAMETOOLONG, errno.EINVAL}


@contextmanager
def writing_to(folder: Path) -> Generator[None, None, None]:
    """Turn what a disk can refuse into one sentence that names `folder`.

    Raises TooLargeError for a full disk and BadFileError for one that fails, is read-only, may not
    be written or takes no such name. TensorStore reports a failed write as a ValueError with the
    errno in its text; both are meant.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        code = re.search(r"os_error_code='(\d+)'", str(error))
        number = int(code[1]) if code else getattr(error, "errno", None)
        if isinstance(error, OSError) and number in IN_THE_WAY:
            raise BadFileError(
                f"{folder} cannot be written, because something else stands in its path: use "
                "another"
            ) from error
        no_name = number in NO_NEW_NAME and _is_within(folder, error)
        if number is None or not (no_name or number in FULL | FAILED):
            raise
        kind = TooLargeError if number in FULL else BadFileError
        remedy = "free some space" if number in FULL else "make it writable"
        raise kind(
            f"{folder} could not be written ({os.strerror(number).lower()}): {remedy} or "
            "use another folder, then run again to go on; what was written before is whole"
        ) from error


def _is_within(folder: Path, error: OSError | ValueError) -> bool:
    """Whether the error is about `folder` or a path in it."""
    name = getattr(error, "filename", None)
    return isinstance(name, str) and Path(os.path.abspath(name)).is_relative_to(folder.absolute())


@contextmanager
def whole(path: Path) -> Generator[Path, None, None]:
    """A draft beside `path`, with its ending, that becomes `path` when the block ends well.

    When it fails the draft is removed and `path` stays as it was. Makes the folder. Raises what
    `writing_to` does.
    """
    draft = path.with_name(f".{path.stem}.part{path.suffix}")
    with writing_to(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with writing_to(path.parent):
            yield draft
            os.replace(draft, path)
    finally:
        with suppress(OSError):  # what went wrong first is what is told
            draft.unlink(missing_ok=True)


@contextmanager
def whole_once(path: Path) -> Generator[Path, None, None]:
    """As `whole` where one process runs; of several, process 0 writes and the others' drafts go.

    For a result that all of them have, on a disk that they share.
    """
    if is_first():
        with whole(path) as draft:
            yield draft
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / path.name


def check_writable(path: Path) -> None:
    """Raise BadFileError or TooLargeError when `path` cannot be written. Makes its folder.

    Of several processes the first one asks, as it is the one that writes.
    """
    if not is_first():
        return
    with writing_to(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass


def check_shared(folder: Path) -> None:
    """Raise InputError, on all processes, when the folder of one is not the folder of process 0.

    Makes the folder.
    """
    if process_count() == 1:
        return
    mark = folder / f".process-0-{first_says(secrets.token_hex(8))}"
    if is_first():
        with writing_to(folder):
            folder.mkdir(parents=True, exist_ok=True)
            mark.touch()
    barrier()
    end = time.monotonic() + SEEN_S
    while not mark.exists() and time.monotonic() < end:
        time.sleep(0.1)
    blind = [
        process for process, seen in enumerate(exchange_texts(str(mark.exists()))) if seen != "True"
    ]
    if is_first():
        mark.unlink()
    if blind:
        raise InputError(
            f"{folder} of process {blind[0]} is not the folder of process 0: use one on a disk "
            "that all of them share"
        )


@contextmanager
def alone_in(folder: Path) -> Generator[None, None, None]:
    """Hold the folder for this process; the system lets go when it dies, in any way.

    Makes the folder. Raises UnavailableError when another process has it.
    """
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".lock").touch()
    with open(folder / ".lock") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UnavailableError(
                f"another run is at work in {folder}: wait for it, or use another folder"
            ) from None
        yield


def read_json_object(file: Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises BadFileError when the file is missing, longer than `LARGEST_JSON`, or holds none.
    """
    if not file.is_file():
        raise BadFileError(f"there is no {file}: put the {file.name} of the model there")
    if file.stat().st_size > LARGEST_JSON:
        raise BadFileError(f"{file} has more than {LARGEST_JSON} bytes: give the {file.name} again")
    try:
        return parse_json_object(file.read_bytes())
    except ValueError as error:
        raise BadFileError(f"{file} is not whole JSON ({error}): copy or save it again") from error


def parse_json_object(text: bytes) -> dict[str, Any]:
    """The JSON object in UTF-8. Raises ValueError when it is something else."""
    try:
        parsed = json.loads(text.decode("utf-8"))
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    if not isinstance(parsed, dict):
        raise ValueError("it is not an object")
    return parsed


def check_space(folder: Path, needed: int) -> None:
    """Raise TooLargeError when the disk of `folder` has fewer than `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise TooLargeError(
            f"{folder} has {free / 1e6:.1f} MB free and a checkpoint needs {needed / 1e6:.1f} MB: "
            "free some space or use another disk"
        )


def hash_file(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal. Raises BadFileError when it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BadFileError(f"{path} cannot be read: check the path") from error


def find_name(folder: Path, name: str) -> str:
    """`name`, in that normal form of Unicode in which a file of `folder` has it.

    A list that was written on another system may spell "é" as one character where the file's name
    has two, or the other way round. As it was given where nothing is there in any form.
    """
    forms = (name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name))
    return next((form for form in forms if is_there(folder / form)), name)


def is_there(path: Path) -> bool:
    """Whether something is at a path; at names that no file can have nothing is."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def sync(path: Path) -> None:
    """Flush a file or a folder to the disk, so that a power cut does not lose it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
