"""LWM's 7B at its full context, for the tests that trace or compile its training step."""

from dataclasses import replace

from ringworld.recipes import lwm

LWM_7B = replace(
    lwm.LWM_7B,
    llama=replace(lwm.LWM_7B.llama, context=2**20, rope_theta=5e7, dtype="bfloat16"),
)
