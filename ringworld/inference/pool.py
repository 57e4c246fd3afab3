"""The pool of pages: its arrays on the mesh, and who reads which page.

A page that was read in full is found again by its key: a hash of the key of the page before it and
of its own tokens, chained from whose page it is. Its tokens are compared as well. A page without a
reader stays until room is needed, and then the one that was left longest ago goes first. A row
leaves its last page first, so no page goes before those that continue it.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ringworld.attention.paged import Pages
from ringworld.data.example import Example
from ringworld.mesh import axis_size, shard
from ringworld.models.llama import COMPUTE
from ringworld.models.world import World


def count_page_bytes(c: World, page: int, int8: bool) -> int:
    """The bytes of a page of `page` tokens on each device of the ring, over all of them."""
    width = c.llama.head_width
    head = width + 4 if int8 else width * COMPUTE[c.llama.dtype].dtype.itemsize
    return 2 * c.llama.layers * c.llama.kv_heads * head * page * axis_size("seq")


def make_pages(count: int, page: int, c: World, int8: bool) -> Pages:
    """A pool of `count` empty pages."""
    tokens = page * axis_size("seq")
    shape = (c.llama.layers, count, c.llama.kv_heads, tokens, c.llama.head_width)

    def keys() -> Array:
        kind = jnp.int8 if int8 else COMPUTE[c.llama.dtype]
        return shard(jnp.zeros(shape, kind), None, None, "kv_heads", "seq", None)

    def scales() -> Array | None:
        return shard(jnp.zeros(shape[:-1]), None, None, "kv_heads", "seq") if int8 else None

    return Pages(keys(), keys(), scales(), scales())


@partial(jax.jit, static_argnames="count")
def grow_pages(pages: Pages, count: int) -> Pages:
    """The pool with empty pages behind its own, `count` in all."""

    def grow(held: Array) -> Array:
        widths = [(0, count - held.shape[1] if axis == 1 else 0) for axis in range(held.ndim)]
        return jnp.pad(held, widths)

    return jax.tree.map(grow, pages)


@dataclass(frozen=True)
class Content:
    """What a full page holds: its key, that of the page before it, and its tokens as bytes."""

    key: bytes
    parent: bytes
    tokens: bytes


def chain_contents(prompt: Example, page_tokens: int, owner: bytes) -> Iterator[Content]:
    """The content of each full page of a prompt; `owner` tells apart who may share pages."""
    parent = hashlib.sha256(owner).digest()
    for start in range(0, len(prompt) - page_tokens + 1, page_tokens):
        part = slice(start, start + page_tokens)
        tokens = prompt.tokens[part].astype(np.int32).tobytes() + prompt.vision[part].tobytes()
        key = hashlib.sha256(parent + tokens).digest()
        yield Content(key, parent, tokens)
        parent = key


class PageBook:
    """Who reads which page: free pages, pages with readers, and full ones that are kept.

    Page 0 is nobody's.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.evicted = 0
        self._free = list(range(count - 1, 0, -1))
        self._readers: dict[int, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()  # kept and unread, oldest first
        self._contents: dict[int, Content] = {}
        self._found: dict[bytes, int] = {}

    @property
    def read(self) -> int:
        """The pages that have a reader."""
        return len(self._readers)

    @property
    def kept(self) -> int:
        """The pages without a reader that a later request may find."""
        return len(self._idle)

    @property
    def room(self) -> int:
        """The pages that can be taken: free ones, and kept ones that would go."""
        return len(self._free) + len(self._idle)

    def grow(self, count: int) -> None:
        """Add free pages, up to `count` in all."""
        self._free = [*range(count - 1, self.count - 1, -1), *self._free]
        self.count = count

    def find(self, content: Content) -> int | None:
        """The page that holds this content, if there is one."""
        page = self._found.get(content.key)
        return None if page is None or self._contents[page] != content else page

    def is_idle(self, page: int) -> bool:
        """Whether a page is kept without a reader."""
        return page in self._idle

    def hold(self, page: int) -> None:
        """Count one more reader of a page."""
        self._idle.pop(page, None)
        self._readers[page] = self._readers.get(page, 0) + 1

    def take(self) -> int:
        """A page to write into, with one reader; where none is free the oldest kept one goes."""
        if not self._free:
            page, _ = self._idle.popitem(last=False)
            del self._found[self._contents.pop(page).key]
            self.evicted += 1
            self._free.append(page)
        page = self._free.pop()
        self._readers[page] = 1
        return page

    def release(self, page: int) -> None:
        """Count one reader less; a page that nobody reads is kept if it is full, and else free."""
        self._readers[page] -= 1
        if self._readers[page]:
            return
        del self._readers[page]
        if page in self._contents:
            self._idle[page] = None
        else:
            self._free.append(page)

    def keep(self, page: int, content: Content) -> None:
        """Let a full page be found by its content, unless another one is."""
        if content.key not in self._found:
            self._found[content.key], self._contents[page] = page, content

    def forget(self) -> None:
        """Free every page that is kept without a reader."""
        for page in self._idle:
            del self._found[self._contents.pop(page).key]
            self._free.append(page)
        self._idle.clear()
