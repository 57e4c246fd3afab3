"""Files are whole or absent, and what a disk refuses is one sentence of the right kind."""

import errno
import os
from pathlib import Path

import pytest

from ringworld.errors import (
    BadFileError,
    InputError,
    TooLargeError,
    UnavailableError,
    did_you_mean,
)
from ringworld.files import alone_in, check_space, check_writable, whole
from ringworld.weights.folder import new_folder

KINDS = [
    (errno.ENOSPC, TooLargeError, "free some space"),
    (errno.EDQUOT, TooLargeError, "free some space"),
    (errno.EROFS, BadFileError, "make it writable"),
    (errno.EACCES, BadFileError, "make it writable"),
    (errno.EPERM, BadFileError, "make it writable"),
    (errno.EIO, BadFileError, "use another folder"),
]


@pytest.mark.parametrize(("code", "kind", "said"), KINDS)
def test_what_a_disk_refuses_is_one_sentence_and_leaves_the_file_as_it_was(
    tmp_path: Path, code: int, kind: type[InputError], said: str
) -> None:
    file = tmp_path / "kept.json"
    file.write_text("kept")
    with pytest.raises(kind, match=said) as caught, whole(file) as draft:
        draft.write_text("half")
        raise OSError(code, os.strerror(code))
    assert type(caught.value) is kind and os.strerror(code).lower() in str(caught.value)
    assert file.read_text() == "kept" and list(tmp_path.iterdir()) == [file]


def test_another_error_is_passed_on_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="odd"), whole(tmp_path / "x") as draft:
        draft.write_text("half")
        raise OSError(errno.ENXIO, "odd")
    assert not list(tmp_path.iterdir())


def test_a_file_system_that_takes_no_new_name_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(BadFileError, match="name too long"), whole(tmp_path / ("x" * 300)) as draft:
        draft.write_text("half")
    if Path("/proc/self").exists():  # where nobody, root included, makes a file
        for write in (
            check_writable,
            lambda path: whole(path / "x").__enter__(),
            lambda path: new_folder(path).__enter__(),
        ):
            with pytest.raises(
                BadFileError, match=r"/proc\b.* could not be written \(no such file"
            ):
                write(Path("/proc/new"))
    with pytest.raises(FileNotFoundError), whole(tmp_path / "x"):
        (tmp_path.parent / "what is read while writing").read_text()


def test_a_file_in_the_way_a_busy_folder_and_a_small_disk_have_kinds_of_their_own(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BadFileError, match="something else stands in its path"):
        check_writable(tmp_path / "file" / "within.gif")
    check_writable(tmp_path / "new" / "clip.gif")
    assert not list((tmp_path / "new").iterdir())
    busy = pytest.raises(UnavailableError, match="another run is at work")
    with alone_in(tmp_path), busy, alone_in(tmp_path):
        pass
    with pytest.raises(TooLargeError, match="free some space"):
        check_space(tmp_path, 1 << 62)


def test_every_kind_of_error_is_bad_input_with_the_setting_to_change() -> None:
    for kind in (BadFileError, TooLargeError, UnavailableError):
        error = kind("a\nb\x1b[0m", setting="context")
        assert isinstance(error, InputError) and error.setting == "context"
        assert str(error) == "a?b?[0m"
    assert InputError("x").setting is None


def test_only_a_near_name_is_proposed() -> None:
    assert did_you_mean("dmo", ["demo", "shards"]) == ", did you mean demo?"
    assert did_you_mean("xyz", ["demo", "shards"]) == ""
