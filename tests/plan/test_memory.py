"""The memory of a step from shapes alone, beside what the compiler says."""

from dataclasses import replace

import jax
import pytest
from lwm_7b import LWM_7B
from tiny_models import tiny_world

from ringworld.mesh import abstract_mesh, make_mesh
from ringworld.models.llama import Activations
from ringworld.plan.memory import bytes_held, count_activations, estimate_memory
from ringworld.settings import MeshShape
from ringworld.train.build import abstract_batch
from ringworld.train.loop import Loop
from ringworld.train.model_stage import ModelStage, build_stage
from ringworld.train.optimizer import AdamW
from ringworld.vocab import Vocabulary

GIB = 1 << 30
CONTEXT = 512
TINY = tiny_world(Vocabulary(text=64, bos=1, eos=2), CONTEXT)


def stage(shape: MeshShape, context: int, rows: int) -> ModelStage:
    """A stage of AdamW on this mesh."""
    return ModelStage(
        name="tiny",
        context=context,
        batch=rows,
        loop=Loop(steps=10),
        optimizer=AdamW(warmup_steps=1),
        mesh=shape,
        weights_over=("fsdp", "seq"),
        shares={},
    )


@pytest.mark.parametrize("shape", [MeshShape(), MeshShape(fsdp=2, seq=2, tensor=2)])
def test_weights_and_moments_are_what_the_compiled_step_takes(shape: MeshShape) -> None:
    mesh = make_mesh(data=shape.data, fsdp=shape.fsdp, seq=shape.seq, tensor=shape.tensor)
    with jax.set_mesh(mesh):
        built, _ = build_stage(stage(shape, CONTEXT, 2), TINY, mesh)
        batch = abstract_batch(mesh, 2, CONTEXT)
        compiled = built.step.lower(built.state, batch).compile()
    found = estimate_memory(built.state, TINY.llama, 2 * TINY.llama.context, shape)
    taken = compiled.memory_analysis().argument_size_in_bytes
    counters = 64  # of steps, and what aligning them adds
    assert found.weights + found.moments + bytes_held(batch) == pytest.approx(taken, abs=counters)


def test_the_state_and_the_activations_of_7b_at_a_million_tokens_are_those_of_the_formulas() -> (
    None
):
    shape = MeshShape(fsdp=8, seq=16)
    one = replace(stage(shape, 1 << 20, 8), weights_over=("fsdp",))
    mesh = abstract_mesh(shape)
    with jax.set_mesh(None), jax.sharding.use_abstract_mesh(mesh):
        built, _ = build_stage(one, LWM_7B, mesh)
    found = estimate_memory(built.state, LWM_7B.llama, 8 * LWM_7B.llama.context, shape)
    # 12 bytes a parameter over 8; norms are held whole. As compiled for v5p: 9.5 GiB.
    assert found.weights + found.moments == pytest.approx(12 * 6_807_621_632 / 8, rel=1e-3)
    assert found.gradients == found.weights
    # 65,536 tokens: 4,096 bfloat16 of input and as many of output, 32 float32 of log-sum-exp.
    assert found.activations == 32 * 65_536 * (2 * 2 * 4096 + 4 * 32)
    assert 32 * GIB < found.activations < 33 * GIB


@pytest.mark.parametrize(
    ("kept", "numbers"), [("attention", 16 + 16 + 4), ("nothing", 16), ("offload", 0)]
)
def test_what_layers_keep_is_counted_as_the_choice_says(kept: Activations, numbers: int) -> None:
    c = replace(TINY.llama, activations=kept)
    assert count_activations(c, 100, tensor=1) == 2 * 100 * 4 * numbers
