"""LWM's 7B, for the tests that trace or compile its training step."""

from ringworld.models.llama import Llama
from ringworld.models.world import World
from ringworld.vocab import LWM_VOCABULARY

LWM_7B = World(
    llama=Llama(
        layers=32,
        model=4096,
        mlp=11008,
        heads=32,
        kv_heads=32,
        head_width=128,
        context=2**20,
        rope_theta=5e7,
        dtype="bfloat16",
    ),
    vocabulary=LWM_VOCABULARY,
)
