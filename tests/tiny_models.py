"""Models that compile in a moment, for the tests of more than one file."""

from ringworld.models.llama import Llama
from ringworld.models.world import World
from ringworld.vocab import Vocabulary


def tiny_world(vocabulary: Vocabulary, context: int, **sizes: int) -> World:
    """Two layers of width 16 with two queries to a key, unless `sizes` say otherwise."""
    usual = dict(layers=2, model=16, mlp=24, heads=4, kv_heads=2, head_width=4)
    llama = Llama(**{**usual, **sizes}, context=context, rope_theta=100.0)
    return World(llama=llama, vocabulary=vocabulary)


# The least that learns: text alone, one layer, one head.
ONE_LAYER = tiny_world(
    Vocabulary(text=32, bos=1, eos=2),
    context=16,
    layers=1,
    model=8,
    mlp=8,
    heads=1,
    kv_heads=1,
    head_width=8,
)
