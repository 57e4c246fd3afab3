"""What no honest program writes is refused in one sentence, or gives the right frames, cheaply."""

import re
import resource

import numpy as np
from hostile import suspects
from painted import numbers

from ringworld.data.media import read_clip
from ringworld.data.pick import Pick
from ringworld.data.sandbox import STRANGERS
from ringworld.errors import InputError

MOST_SECONDS = 3.0  # of processor time, whatever else the machine does
MOST_MEMORY = 512 << 20
LEAKS = re.compile(r"/|\\|0x|Traceback|Errno|[^ -~]|\bline \d|object at|secret|tmp|127\.0")


def spent() -> float:
    """The processor seconds of all decoders that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_a_hundred_hostile_files_are_refused_in_a_sentence_or_give_the_right_frames(tmp_path):
    assert STRANGERS.memory <= MOST_MEMORY  # kept by the kernel, as the next room's tests prove
    files = suspects(tmp_path)
    assert len(files) >= 100
    wrong = []
    for suspect in files:
        before = spent()
        try:
            clip = read_clip(suspect.path, Pick(fps=2.0), size=32, limits=STRANGERS)
            found = numbers(clip.frames)
            fine = suspect.frames == found or (suspect.or_frames and len(found) > 0)
            fine &= bool((np.diff(clip.seconds) >= 0).all())
        except InputError as error:
            found = str(error)
            fine = suspect.frames is None and re.search(suspect.words, found) is not None
            fine &= found.endswith(".") and LEAKS.search(found) is None and len(found) < 250
        if not fine or spent() - before > MOST_SECONDS:
            wrong.append(f"{suspect.name}: {found} after {spent() - before:.1f} s")
    assert not wrong, "\n".join(wrong)
