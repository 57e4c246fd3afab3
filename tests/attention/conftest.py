"""What the tests of attention share."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from ringworld import attention
from ringworld.attention.block import BLOCKWISE


@pytest.fixture(scope="module")
def set_tile() -> Iterator[Callable[[int], None]]:
    """Sets how many tokens a tile of the blockwise kernel has, for the rest of the module."""
    with pytest.MonkeyPatch.context() as patch:
        yield lambda tile: patch.setitem(attention.KERNELS, "xla", replace(BLOCKWISE, tile=tile))
