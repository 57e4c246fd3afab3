"""What no honest program writes is refused in one sentence, or gives the right frames, cheaply."""

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from hostile import Suspect, suspects
from painted import film, numbers

from ringworld.errors import InputError
from ringworld.media.clip import read_clip
from ringworld.media.sampling import FrameSampling
from ringworld.media.sandbox import UNTRUSTED

# Memory and processor are kept by the kernel, which ends a decoder that asks for more.
LIMITS = replace(UNTRUSTED, memory=512 << 20, processor=3, pace=1e-9, timeout=600.0)
LEAKS = re.compile(r"/|\\|0x|Traceback|Errno|[^ -~]|\bline \d|object at|secret|tmp|127\.0")


def complaint(suspect: Suspect) -> str:
    """What is wrong with the answer to a file; nothing if it is as it must be."""
    try:
        clip = read_clip(suspect.path, FrameSampling(fps=2.0), size=32, limits=LIMITS)
    except InputError as error:
        said = str(error)
        expected = suspect.frames is None and re.search(suspect.words, said) is not None
        plain = said.endswith(".") and len(said) < 250 and LEAKS.search(said) is None
        cheap = "stood still" not in said and "of computing" not in said
        return "" if expected and plain and cheap else f"{suspect.name}: {said}"
    found = numbers(clip.frames)
    welcome = suspect.frames == found or (suspect.or_frames and len(found) > 0)
    ordered = bool((np.diff(clip.seconds) >= 0).all())
    return "" if welcome and ordered else f"{suspect.name}: {found}"


def test_a_hundred_hostile_files_are_refused_in_a_sentence_or_give_the_right_frames(tmp_path):
    files = suspects(tmp_path)
    assert len(files) >= 100
    with ThreadPoolExecutor(4) as readers:
        wrong = [found for found in readers.map(complaint, files) if found]
    assert not wrong, "\n".join(wrong)


def test_a_decoder_that_computes_too_long_is_ended_by_the_kernel(tmp_path):
    path = film(tmp_path / "film.mp4", [float(k) for k in range(40)])
    endless = replace(UNTRUSTED, processor=1, pace=1e-9, frames=1 << 30, timeout=600.0)
    with pytest.raises(InputError, match="more than 1 s of computing"):
        read_clip(path, FrameSampling(num_frames=40_000), size=512, limits=endless)
