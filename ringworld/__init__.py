"""ringworld: world models on million-length video and language, with RingAttention in JAX.

These are the names to start from; everything else is imported from the module that holds it. Each
is imported when it is first used, so that the command line can show its help without JAX. None of
them starts a device.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ringworld.attention import attend
    from ringworld.attention.mask import Where
    from ringworld.batch import Batch
    from ringworld.errors import InputError
    from ringworld.mesh import make_mesh
    from ringworld.models.llama import Llama
    from ringworld.models.world import World
    from ringworld.vocab import Vocabulary
    from ringworld.weights.codecs import load_float_codec as load_codec
    from ringworld.weights.model import load_model
    from ringworld.weights.model import load_model as load

__version__ = "0.2.0"
__all__ = [
    "Batch",
    "InputError",
    "Llama",
    "Vocabulary",
    "Where",
    "World",
    "__version__",
    "attend",
    "load",
    "load_codec",
    "load_model",
    "make_mesh",
]

_HOMES = {
    "Batch": "batch",
    "InputError": "errors",
    "Llama": "models.llama",
    "Vocabulary": "vocab",
    "Where": "attention.mask",
    "World": "models.world",
    "attend": "attention",
    "load": "weights.model:load_model",
    "load_codec": "weights.codecs:load_float_codec",
    "load_model": "weights.model",
    "make_mesh": "mesh",
}


def __getattr__(name: str) -> object:
    """Import a public name from its module when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home, _, there = _HOMES[name].partition(":")
    found = getattr(import_module(f"{__name__}.{home}"), there or name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """The public names, for completion."""
    return sorted([*globals(), *_HOMES])
