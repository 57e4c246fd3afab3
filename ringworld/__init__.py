"""ringworld: world models on million-length video and language, with RingAttention in JAX.

These are the names to start from; everything else is imported from the module that holds it.
Importing them starts no device.
"""

from ringworld.attention import attend
from ringworld.attention.mask import Where
from ringworld.batch import Batch
from ringworld.convert.diffusers import load_pictures as load_codec
from ringworld.errors import InputError
from ringworld.generate.model import load_model
from ringworld.generate.model import load_model as load
from ringworld.mesh import make_mesh
from ringworld.models.llama import Llama
from ringworld.models.world import World
from ringworld.vocab import Vocabulary

__all__ = [
    "Batch",
    "InputError",
    "Llama",
    "Vocabulary",
    "Where",
    "World",
    "attend",
    "load",
    "load_codec",
    "load_model",
    "make_mesh",
]
