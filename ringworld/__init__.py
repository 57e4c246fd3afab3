"""ringworld: world models on million-length video and language, with RingAttention in JAX.

These are the names to start from; everything else is imported from the module that holds it.
Importing them starts no device.
"""

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
