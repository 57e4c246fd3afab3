"""What is read from compiled programs, against programs whose traffic is counted by hand."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from ringworld.mesh import make_mesh
from ringworld.plan.hlo import Collective, collectives, loop_turns, read_program

RING = 8
ROWS, WIDTH = 4, 16
SHARD = 4 * ROWS * WIDTH  # bytes: ROWS x WIDTH float32 on a device


def compiled_text(f: Callable[..., Any], *divided: bool) -> str:
    """`f` over a ring of eight, its arguments [8 ROWS, WIDTH]: divided, or whole."""
    mesh = make_mesh(seq=RING)
    specs = tuple(PartitionSpec("seq") if split else PartitionSpec() for split in divided)
    arguments = [
        jax.ShapeDtypeStruct((RING * ROWS, WIDTH), jnp.float32, sharding=NamedSharding(mesh, s))
        for s in specs
    ]
    with jax.set_mesh(mesh):
        run = jax.shard_map(f, in_specs=specs, out_specs=PartitionSpec("seq"), check_vma=False)
        return jax.jit(run).lower(*arguments).compile().as_text()


def turn(x: jax.Array) -> jax.Array:
    return lax.ppermute(x, "seq", [(i, (i + 1) % RING) for i in range(RING)])


def ring(turns: int, x: jax.Array, layers: int = 1) -> jax.Array:
    """`turns` rotations of x in a loop, that loop in another of `layers` turns."""

    def step(carry: Any, _: None) -> Any:
        here, total = carry
        return (turn(here), total + jnp.tanh(here)), None

    def layer(x: jax.Array, _: None) -> Any:
        return lax.scan(step, (x, x), length=turns)[0][1], None

    return lax.scan(layer, x, length=layers)[0]


def found(text: str, kind: str) -> list[Collective]:
    return [c for c in collectives(read_program(text)) if c.kind == kind]


@pytest.mark.parametrize("turns", [3, 7])
def test_a_rotation_in_a_loop_counts_once_a_turn(turns: int) -> None:
    text = compiled_text(partial(ring, turns), True)
    [permute] = found(text, "collective-permute")
    assert permute.runs() == turns
    assert permute.bytes == SHARD
    assert [(s.dtype, s.sizes) for s in permute.shapes] == [("f32", (ROWS, WIDTH))]
    assert "ppermute" in permute.op.source


def test_loops_within_loops_multiply() -> None:
    [permute] = found(compiled_text(partial(ring, 7, layers=3), True), "collective-permute")
    assert permute.loops == (3, 7) and permute.runs() == 21


def test_a_rotation_outside_of_loops_runs_once() -> None:
    [permute] = found(compiled_text(turn, True), "collective-permute")
    assert permute.runs() == 1


def test_a_loop_that_ends_by_what_it_computes_has_no_count() -> None:
    def until_large(x: jax.Array) -> jax.Array:
        return lax.while_loop(lambda x: lax.psum(x.sum(), "seq") < 9.0, lambda x: turn(x) * 2, x)

    [permute] = found(compiled_text(until_large, True), "collective-permute")
    assert permute.loops == (None,)
    assert permute.runs() is None and permute.runs(open_turns=5) == 5


def test_a_condition_is_asked_once_more_than_the_loop_turns() -> None:
    def seven_times(x: jax.Array) -> jax.Array:
        def go_on(carry: Any) -> Any:
            i, x = carry
            return (i < 7) & (lax.psum(x.sum(), "seq") < 1e9)

        return lax.while_loop(go_on, lambda carry: (carry[0] + 1, turn(carry[1])), (0, x))[1]

    text = compiled_text(seven_times, True).replace(
        "body=", 'backend_config={"known_trip_count":{"n":"7"}}, body='
    )
    [permute], [total] = found(text, "collective-permute"), found(text, "all-reduce")
    assert (permute.runs(), total.runs()) == (7, 8)


@pytest.mark.parametrize(
    ("f", "kind", "sent"),
    [
        (lambda x: lax.all_gather(x, "seq", tiled=True)[:ROWS], "all-gather", SHARD),
        (lambda x: lax.psum(x, "seq"), "all-reduce", SHARD),
        (lambda x: lax.psum_scatter(jnp.tile(x, (8, 1)), "seq", tiled=True), None, 8 * SHARD),
        (lambda x: lax.all_to_all(x.reshape(8, -1), "seq", 0, 0), "all-to-all", SHARD),
    ],
    ids=["gather", "sum", "scatter", "exchange"],
)
def test_every_collective_is_found_with_what_a_device_puts_in(
    f: Callable[[jax.Array], jax.Array], kind: str | None, sent: int
) -> None:
    every = collectives(read_program(compiled_text(f, True)))
    assert [c.bytes for c in every] == [sent]
    # The CPU has no reduce-scatter of its own: it sums everything and keeps a part.
    assert every[0].kind in ((kind,) if kind else ("reduce-scatter", "all-reduce"))


def test_a_program_for_one_device_has_no_collectives() -> None:
    compiled = jax.jit(lambda x: jnp.tanh(x) @ x).lower(jnp.ones((8, 8))).compile()
    assert collectives(read_program(compiled.as_text())) == []


def test_text_that_is_no_program_is_refused() -> None:
    with pytest.raises(ValueError, match="no ENTRY"):
        read_program("HloModule nothing\n")


# What a TPU's compiler writes, cut down: the transfer is two operations and the loop's count stands
# in its condition alone, its bounds among what the loop carries.
ASYNCHRONOUS = """HloModule jit_f, is_scheduled=true

%product (a: bf16[64,64], b: bf16[64,64]) -> bf16[64,64] {
  %a = bf16[64,64]{1,0:T(8,128)(2,1)} parameter(0)
  %b = bf16[64,64]{1,0:T(8,128)(2,1)} parameter(1)
  ROOT %convolution.1 = bf16[64,64]{1,0:T(8,128)(2,1)} convolution(%a, %b), dim_labels=bf_io->bf
}

%body (p: (s32[], bf16[64,64], bf16[64,64], s32[])) -> (s32[], bf16[64,64], bf16[64,64], s32[]) {
  %p = (s32[]{:T(128)}, bf16[64,64]{1,0}, bf16[64,64]{1,0}, /*index=3*/s32[]{:T(128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %one = s32[]{:T(128)} get-tuple-element(%p), index=3
  %next = s32[]{:T(128)} add(%i, %one)
  %x = bf16[64,64]{1,0} get-tuple-element(%p), index=1
  %total = bf16[64,64]{1,0} get-tuple-element(%p), index=2
  %start = (bf16[64,64]{1,0:T(8,128)(2,1)}, bf16[64,64]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) START(%x)
BETWEEN  %done = bf16[64,64]{1,0} DONE(%start)
AFTER  ROOT %out = (s32[], bf16[64,64], bf16[64,64], s32[]) tuple(%next, %done, %fusion.1, %one)
}

%condition (q: (s32[], bf16[64,64], bf16[64,64], s32[])) -> pred[] {
  %seven = s32[]{:T(128)} constant(7)
  %q = (s32[], bf16[64,64]{1,0}, bf16[64,64]{1,0}, s32[]) parameter(0)
  %j = s32[]{:T(128)} get-tuple-element(%q), index=0
  ROOT %lt = pred[]{:T(512)} compare(%j, %seven), direction=LT
}

ENTRY %main (x: bf16[64,64]) -> bf16[64,64] {
  %zero = s32[]{:T(128)} constant(0)
  %step = s32[]{:T(128)} constant(STEP)
  %copied = s32[]{:T(128)} copy(%zero)
  %x.1 = bf16[64,64]{1,0} parameter(0)
  %first = (s32[], bf16[64,64], bf16[64,64], s32[]) tuple(%copied, %x.1, %x.1, %step)
  %loop = (s32[], bf16[64,64], bf16[64,64], s32[]) while(%first), condition=%condition, body=%body
  ROOT %result = bf16[64,64]{1,0} get-tuple-element(%loop), index=2
}
"""
PRODUCT = "  %fusion.1 = bf16[64,64]{1,0} fusion(%x, %total), kind=kOutput, calls=%product\n"


def asynchronous(between: str, after: str, step: int = 1) -> str:
    text = ASYNCHRONOUS.replace("START", "collective-permute-start")
    text = text.replace("DONE", "collective-permute-done").replace("STEP", str(step))
    return text.replace("BETWEEN", between).replace("AFTER", after)


def test_a_transfer_is_hidden_by_the_product_between_its_start_and_its_end() -> None:
    [permute] = collectives(read_program(asynchronous(PRODUCT, "")))
    assert permute.during is not None
    assert [op.opcode for op in permute.during] == ["fusion"] and permute.hidden
    assert permute.bytes == 2 * 64 * 64


def test_a_transfer_is_not_hidden_by_a_product_after_its_end() -> None:
    [permute] = collectives(read_program(asynchronous("", PRODUCT)))
    assert permute.during == () and not permute.hidden


@pytest.mark.parametrize(("step", "turns"), [(1, 7), (2, 4), (7, 1)])
def test_the_turns_of_a_loop_are_read_from_its_condition(step: int, turns: int) -> None:
    program = read_program(asynchronous(PRODUCT, "", step))
    entry = program.computations[program.entry]
    assert loop_turns(program, entry, entry.named["loop"]) == turns
    assert [c.runs() for c in collectives(program)] == [turns]


def test_a_counter_that_does_not_count_gives_no_turns() -> None:
    text = asynchronous(PRODUCT, "").replace("%next = s32[]{:T(128)} add", "%next = s32[] multiply")
    assert [c.runs() for c in collectives(read_program(text))] == [None]
