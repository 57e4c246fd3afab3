"""The rest of a layer: MLP, tables and heads in parts, the same numbers, and what is kept of it."""

import math
import re
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from jax.sharding import PartitionSpec

from ringworld import attention, layers, params
from ringworld.attention.block import BLOCKWISE
from ringworld.attention.mask import Where
from ringworld.batch import Batch
from ringworld.layers import FEW_ROWS, embed, over_tokens, product
from ringworld.mesh import make_mesh, shard
from ringworld.models.llama import Activations, Llama, blocks_specs, mlp, run_layers
from ringworld.models.world import World, specs
from ringworld.params import Int8
from ringworld.plan import hlo
from ringworld.settings import MeshShape
from ringworld.train import loss as loss_module
from ringworld.train.loss import loss
from ringworld.vocab import Vocabulary

B, T, D, F = 2, 48, 16, 40
EPS = 1e-5
MESHES = [MeshShape(seq=8), MeshShape(fsdp=2, seq=2, tensor=2), MeshShape(data=2, seq=4)]
RING, THREE_WAYS, _ = MESHES
# The same sums in another order: each number is compared with the largest of its array, and the
# project promises 1e-5. (Some 30 units of float32; 1e-6 is what is seen.)
TOLERANCE = 1e-5
by_mesh = pytest.mark.parametrize(
    "shape", MESHES, ids=lambda shape: "x".join(map(str, shape.sizes))
)

# What the arguments of the loss below are, in logical axes; weights come gathered.
AXES = [("batch", "seq", None), ("batch", "seq", None), (None,), (None, "mlp"), (None, "mlp")]
AXES += [("mlp", None)]


@cache
def arrays() -> list[np.ndarray]:
    """Weights of the sum, tokens, gain, and the three matrices."""
    rng = np.random.default_rng(0)
    shapes = [(B, T, D), (B, T, D), (D,), (D, F), (D, F), (F, D)]
    return [rng.standard_normal(shape, np.float32) / shape[0] ** 0.5 for shape in shapes]


def placed_arrays() -> list[jax.Array]:
    """The arrays on the mesh that is set."""
    return [shard(jnp.asarray(a), *axes) for a, axes in zip(arrays(), AXES, strict=True)]


def feed_forward(x: Any, *weights: Any) -> Any:
    """The MLP added to its input, as a layer does."""
    return x + over_tokens(partial(mlp, eps=EPS), x, weights)


def loss_of(chunk: int) -> Any:
    """A weighted sum of what the MLP gives and its gradients, `chunk` tokens at a time."""

    def run(*a: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(layers, "MLP_CHUNK", chunk)
            return jax.value_and_grad(
                lambda scale, *rest: jnp.sum(scale * feed_forward(*rest)), tuple(range(1, 6))
            )(*a)

    return run


def whole(scale: Any, x: Any, gain: Any, w_gate: Any, w_up: Any, w_down: Any) -> Any:
    """The same sum by its definition, of all tokens at once."""
    h = x / jnp.sqrt(jnp.mean(x * x, -1, keepdims=True) + EPS) * gain
    gate = h @ w_gate
    return jnp.sum(scale * (x + (gate / (1 + jnp.exp(-gate)) * (h @ w_up)) @ w_down))


def assert_close(found: Any, wanted: Any) -> None:
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.abs(a - b).max() <= TOLERANCE * np.abs(b).max()


def mesh_of(shape: MeshShape) -> Any:
    return make_mesh(**asdict(shape))


def equations(jaxpr: Any) -> Iterator[Any]:
    """Every equation of a jaxpr and of those within it."""
    for eqn in jaxpr.eqns:
        yield eqn
        for sub in jaxprs_in_params(eqn.params):
            yield from equations(sub)


def shapes_in(text: str) -> set[tuple[int, ...]]:
    """The shapes of all arrays that a compiled program names."""
    return {tuple(map(int, n.split(","))) for n in re.findall(r"\w\[(\d[\d,]*)\]", text)}


# ---- the MLP in chunks


@pytest.mark.parametrize("chunk", [1, 7, 16, 95, 96, 1000])
def test_the_mlp_in_chunks_gives_the_values_and_gradients_of_the_whole(chunk: int) -> None:
    wanted = jax.value_and_grad(whole, tuple(range(1, 6)))(*arrays())
    assert_close(jax.jit(loss_of(chunk))(*arrays()), wanted)


@by_mesh
@pytest.mark.parametrize("chunk", [5, 1000])
def test_the_mlp_in_chunks_is_the_same_on_every_mesh(shape: MeshShape, chunk: int) -> None:
    wanted = jax.value_and_grad(whole, tuple(range(1, 6)))(*arrays())
    with jax.set_mesh(mesh_of(shape)):
        found = jax.jit(loss_of(chunk))(*placed_arrays())
    assert_close(found, wanted)


@by_mesh
def test_tokens_stay_where_they_are(shape: MeshShape) -> None:
    with jax.set_mesh(mesh_of(shape)):
        placed = placed_arrays()
        text = jax.jit(loss_of(5)).lower(*placed).compile().as_text()
        out = jax.typeof(feed_forward(*placed[1:]))
        few = feed_forward(shard(placed[1], "batch", None, None), *placed[2:])
    assert " all-reduce" in text, "the program was not read"
    for moves in ("all-gather", "all-to-all", "collective-permute"):
        assert f" {moves}" not in text
    assert out.sharding.spec == placed[1].sharding.spec
    # New tokens of a text that is being written are on every device of the ring.
    assert few.sharding.spec == PartitionSpec(("data", "fsdp"), None, None)


def collectives(jaxpr: Any) -> list[str]:
    """The names of what makes devices wait for each other."""
    waits = ("psum", "pmax", "ppermute", "all_gather", "all_to_all", "reduce_scatter")
    return [e.primitive.name for e in equations(jaxpr) if e.primitive.name.startswith(waits)]


@by_mesh
def test_devices_sum_once_and_not_once_a_chunk(shape: MeshShape) -> None:
    with jax.set_mesh(mesh_of(shape)):
        jaxpr = jax.make_jaxpr(loss_of(5))(*placed_arrays()).jaxpr
    loops = [e for e in equations(jaxpr) if e.primitive.name == "scan"]
    assert len(loops) == 2, "forward and backward walk the chunks"
    assert collectives(jaxpr)
    assert not any(collectives(sub) for e in loops for sub in jaxprs_in_params(e.params))


def test_the_features_of_all_tokens_never_exist_and_chunks_are_equal() -> None:
    jaxpr = jax.make_jaxpr(loss_of(20))(*arrays()).jaxpr
    of_features = {x.aval.shape for e in equations(jaxpr) for x in e.outvars if F in x.aval.shape}
    # 96 tokens in 5 chunks of at most 20 are 20 each, with 4 of padding; the rest are weights.
    assert of_features == {(20, F), (D, F), (F, D)}


def test_rows_no_longer_than_a_chunk_are_not_cut() -> None:
    jaxpr = jax.make_jaxpr(loss_of(B * T))(*arrays()).jaxpr
    assert not [e for e in equations(jaxpr) if e.primitive.name in ("scan", "pad", "remat2")]
    assert (B * T, F) in {x.aval.shape for e in equations(jaxpr) for x in e.outvars}


def test_memory_of_the_mlp_does_not_grow_with_the_features_of_the_row() -> None:
    tokens = 4096
    shapes = [(1, tokens, 8), (1, tokens, 8), (8,), (8, 512), (8, 512), (512, 8)]
    abstract = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]

    def temporary(chunk: int) -> int:
        compiled = jax.jit(loss_of(chunk)).lower(*abstract).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    features = 4 * tokens * 512
    assert temporary(tokens) > 2 * features
    assert temporary(64) < features / 4


def test_gradients_of_weights_are_summed_in_float32_over_bfloat16_chunks() -> None:
    narrow = [jnp.asarray(a, jnp.bfloat16) for a in arrays()[:2]]
    jaxpr = jax.make_jaxpr(loss_of(5))(*narrow, *arrays()[2:]).jaxpr
    loops = [e for e in equations(jaxpr) if e.primitive.name == "scan"]
    carried = [x.aval for e in loops for x in e.outvars[: e.params["num_carry"]]]
    sums = [(x.shape, x.dtype) for x in carried if x.shape]
    assert sorted(sums) == [(a.shape, jnp.float32) for a in sorted(arrays()[2:], key=np.shape)]


# ---- tables and heads in parts

ROWS = 1000
LOGITS = 16
TINY = World(
    llama=Llama(
        layers=3,
        model=D,
        mlp=F,
        heads=4,
        kv_heads=2,
        head_width=4,
        context=64,
        rope_theta=100.0,
    ),
    vocabulary=Vocabulary(text=ROWS, bos=1, eos=2),
)


def abstract_batch(rows: int, context: int) -> Batch:
    """A batch on the mesh that is set, without memory."""

    def array(dtype: Any) -> Any:
        return jax.eval_shape(lambda: shard(jnp.zeros((rows, context), dtype), "batch", "seq"))

    ints, floats, bools = array(jnp.int32), array(jnp.float32), array(jnp.bool_)
    return Batch(ints, bools, ints, bools, floats, ints, ints)


@cache
def compiled_loss() -> str:
    """The program of the loss and its gradients on 2 x 2 x 2 devices: 32 tokens on each."""
    run = jax.jit(partial(jax.value_and_grad(loss, has_aux=True), c=TINY, vision_share=0.0))
    with jax.set_mesh(mesh_of(THREE_WAYS)), pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss_module, "LOSS_CHUNK", LOGITS)
        weights = jax.eval_shape(lambda: params.init(specs(TINY), 0))
        return run.lower(weights, abstract_batch(2, 64)).compile().as_text()


def test_no_device_ever_holds_a_whole_table_or_head() -> None:
    shapes = shapes_in(compiled_loss())
    assert {(D, ROWS // 2), (ROWS // 2, D)} <= shapes, "gathered over fsdp, in parts over tensor"
    assert not [shape for shape in shapes if ROWS in shape]


def test_logits_exist_for_one_chunk_and_one_part_of_the_vocabulary() -> None:
    shapes = [shape for shape in shapes_in(compiled_loss()) if ROWS // 2 in shape]
    assert (LOGITS, ROWS // 2) in shapes
    assert max(math.prod(shape) for shape in shapes) == D * ROWS // 2 == LOGITS * ROWS // 2


def test_sums_of_gradients_are_scattered_where_weights_are_divided() -> None:
    found = hlo.collectives(hlo.read_program(compiled_loss()))
    scattered = [c for c in found if c.kind == "reduce-scatter"]
    # Seven matrices of a layer, the table and the head; in float32, whatever the products are in.
    assert len(scattered) == 9 and all(c.shapes[0].dtype == "f32" for c in scattered)
    largest = max(c.bytes for c in scattered)
    assert largest == 4 * D * ROWS // 2
    # Along the ring, which does not divide the weights here, the parts of fsdp are summed.
    summed = [shape.bytes for c in found if c.kind == "all-reduce" for shape in c.shapes]
    assert max(summed) == largest // 2


@by_mesh
def test_the_lookup_in_parts_gives_the_rows_and_gradients_of_the_whole_table(
    shape: MeshShape,
) -> None:
    rng = np.random.default_rng(0)
    table, scale = rng.standard_normal((ROWS, D)), rng.standard_normal((B, T, D))
    table, scale = table.astype(np.float32), scale.astype(np.float32)
    ids = rng.integers(0, ROWS, (B, T), np.int32)
    ids[:, 0], ids[:, 1] = 0, ROWS - 1
    keep = rng.random((B, T)) < 0.7
    wanted = np.zeros_like(table)
    np.add.at(wanted, ids[keep], scale[keep])
    with jax.set_mesh(mesh_of(shape)):
        placed = shard(jnp.asarray(table), "vocab", None)
        rows = [shard(jnp.asarray(a), "batch", "seq") for a in (ids, keep, scale)]
        found, pull = jax.vjp(lambda table: embed(table, *rows[:2]), placed)
        (grads,) = pull(rows[2])
    np.testing.assert_array_equal(found, np.where(keep[..., None], table[ids], 0))
    assert_close(grads, wanted)


# ---- what is kept until the backward

CHOICES: list[Activations] = ["attention", "nothing", "offload"]
BLOCKS = blocks_specs(TINY.llama)


def pull_of_layers(activations: Activations) -> Any:
    """The gradients of a weighted sum of what the layers give, keeping this of each."""
    c = replace(TINY.llama, activations=activations)

    def run(scale: Any, x: Any, blocks: Any, where: Where) -> Any:
        return jax.grad(lambda x, w: jnp.sum(scale * run_layers(x, w, where, c)), (0, 1))(x, blocks)

    return jax.jit(run)


def inputs_of_layers(length: int) -> Any:
    """Weights of the sum, tokens, weights and one segment a row, on the mesh that is set."""
    rng = np.random.default_rng(0)
    scale, x = (jnp.asarray(rng.standard_normal((B, length, D), np.float32)) for _ in range(2))
    positions = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (B, length))
    where = Where(positions, jnp.ones_like(positions))
    where = jax.tree.map(lambda a: shard(a, "batch", "seq"), where)
    scale, x = (shard(a, "batch", "seq", None) for a in (scale, x))
    return scale, x, params.init(BLOCKS, 0), where


@pytest.mark.parametrize("shape", [RING, THREE_WAYS], ids=["ring8", "2x2x2"])
def test_what_is_kept_changes_no_gradient(shape: MeshShape) -> None:
    with jax.set_mesh(mesh_of(shape)):
        given = jax.jit(inputs_of_layers, static_argnums=0)(64)
        wanted, *others = (pull_of_layers(choice)(*given) for choice in CHOICES)
    for found in others:
        assert_close(found, wanted)


def bytes_of_layers(activations: Activations) -> int:
    """What a device of a ring needs for the gradients of the layers beside what it is given."""
    with jax.set_mesh(mesh_of(RING)), pytest.MonkeyPatch.context() as patch:
        patch.setitem(attention.KERNELS, "xla", replace(BLOCKWISE, tile=16))
        given = jax.eval_shape(partial(inputs_of_layers, 1024))
        compiled = pull_of_layers(activations).lower(*given).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_keeping_nothing_takes_less_memory_than_keeping_attention() -> None:
    saved = bytes_of_layers("attention") - bytes_of_layers("nothing")
    # The output and the log-sum-exp of every layer, for 128 tokens of each row.
    assert saved >= 0.9 * TINY.llama.layers * B * 128 * (D + 4) * 4


def kept(activations: Activations) -> dict[tuple[int, ...], Any]:
    """Shape and memory of what the scan over layers hands to its backward, a layer on axis 0."""
    with jax.set_mesh(mesh_of(RING)):
        given = jax.eval_shape(partial(inputs_of_layers, 64))
        jaxpr = jax.make_jaxpr(pull_of_layers(activations))(*given).jaxpr
    forward = next(
        e
        for e in equations(jaxpr)
        if e.primitive.name == "scan" and e.params["length"] == TINY.llama.layers
    )
    return {
        x.aval.shape: x.aval.memory_space
        for x in forward.outvars
        if x.aval.shape[:1] == (TINY.llama.layers,)
    }


def test_what_is_kept_lies_where_the_choice_says() -> None:
    device, host = jax.memory.Space.Device, jax.memory.Space.Host
    found = {choice: kept(choice) for choice in CHOICES}
    residual = (TINY.llama.layers, B, 64, D)
    assert found["nothing"] == {residual: device}
    assert found["attention"].keys() == found["offload"].keys() > found["nothing"].keys()
    assert len(found["offload"]) == 3
    assert set(found["attention"].values()) == {device}
    assert set(found["offload"].values()) == {host}


@pytest.mark.parametrize("rows", [1, FEW_ROWS, FEW_ROWS + 1])
@pytest.mark.parametrize(
    ("subscripts", "inputs", "outputs"),
    [
        ("td,df->tf", (16,), (40,)),
        ("td,df->tf", (15,), (40,)),
        ("btd,dnh->btnh", (16,), (3, 8)),
        ("btnh,nhd->btd", (4, 8), (16,)),
    ],
)
def test_few_rows_go_through_an_int8_matrix_in_parts_and_give_the_product_of_the_whole(
    rng: np.random.Generator,
    rows: int,
    subscripts: str,
    inputs: tuple[int, ...],
    outputs: tuple[int, ...],
) -> None:
    x = rng.standard_normal((*(1,) * subscripts.startswith("b"), rows, *inputs), np.float32)
    values = rng.integers(-127, 128, (*inputs, *outputs), np.int8)
    scales = rng.random(outputs, np.float32)
    given = jnp.asarray(x), Int8(jnp.asarray(values), jnp.asarray(scales))
    found = np.asarray(product(subscripts, *given))
    wanted = np.einsum(subscripts, x.astype(np.float64), values * scales.astype(np.float64))
    assert np.abs(found - wanted).max() < TOLERANCE * np.abs(wanted).max()
    program = str(jax.make_jaxpr(partial(product, subscripts))(*given))
    assert ("reduce_sum" in program) == (rows <= FEW_ROWS and inputs[0] % 2 == 0)
