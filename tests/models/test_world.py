"""The model and its loss: the same numbers on every mesh, nothing leaking, and what it costs."""

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
from jax.sharding import Mesh, PartitionSpec
from lwm_7b import LWM_7B
from tiny_models import tiny_world

from ringworld import attention, params
from ringworld.attention.block import BLOCKWISE
from ringworld.batch import Batch
from ringworld.data import example
from ringworld.data.example import Example
from ringworld.data.packing.loader import PackedRows, make_batches
from ringworld.data.packing.pack import pack_row, split_long
from ringworld.errors import InputError
from ringworld.layers import rms_norm
from ringworld.mesh import AXES, RULES, Rules, abstract_mesh, make_mesh, named_sharding
from ringworld.models import llama
from ringworld.models.llama import Llama
from ringworld.models.world import World, embed_tokens, forward, specs
from ringworld.plan.memory import bytes_held
from ringworld.settings import MeshShape
from ringworld.train import loss as loss_module
from ringworld.train.build import abstract_batch, build, make_step, start
from ringworld.train.loss import loss, nll_sums
from ringworld.train.optimizer import AdamW, make_optimizer
from ringworld.vocab import Vocabulary

CONTEXT = 64
VOCABULARY = Vocabulary(text=32, bos=1, eos=2, codes=6, codes_per_frame=4, vision_rows=16)
TINY = tiny_world(VOCABULARY, CONTEXT)
ONE = MeshShape()
RING = MeshShape(seq=8)
SPREAD = Rules(embed=("fsdp", "seq"))
SHARE = 0.3
# The same sums in another order: each number of a gradient is compared with the largest of its
# array, and the project promises 1e-5. (Some 30 units of float32; 3e-7 is what is seen.)
TOLERANCE = 1e-5


@pytest.fixture(autouse=True, scope="module")
def many_tiles_and_chunks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(attention.KERNELS, "xla", replace(BLOCKWISE, tile=4))
        patch.setattr(loss_module, "LOSS_CHUNK", 12)
        yield


def draw_examples(count: int, longest: int) -> list[Example]:
    """Text, frames and text, of many lengths up to `longest`."""
    rng = np.random.default_rng(0)
    examples = []
    for _ in range(count):
        frames = int(rng.integers(1, 3))
        codes = rng.integers(0, VOCABULARY.codes, (frames, VOCABULARY.codes_per_frame))
        rest = int(rng.integers(2, longest - 3 - frames * VOCABULARY.frame_length))
        asked = example.text([VOCABULARY.bos, *rng.integers(3, 32, 3).tolist()], 0.0)
        seen = example.frames(codes, VOCABULARY, 0.7)
        said = example.text(rng.integers(3, 32, rest).tolist(), 1.0)
        examples.append(example.join([asked, seen, said]))
    return examples


@cache
def weights_of(c: World) -> Any:
    return jax.device_get(jax.jit(lambda: params.init(specs(c), seed=1))())


@cache
def batches_of(shape: MeshShape) -> Any:
    rows = PackedRows(draw_examples(12, 40), CONTEXT)
    return make_batches(rows, batch=2, seed=0, ring=shape.seq)


@cache
def differentiate(c: World) -> Any:
    return jax.jit(
        lambda weights, batch: jax.value_and_grad(loss, has_aux=True)(weights, batch, c, SHARE)
    )


@cache
def on_mesh(shape: MeshShape, rules: Rules = RULES) -> Any:
    """The loss, its parts and the gradients of one batch, on the host."""
    with jax.set_mesh(mesh_of(shape)):
        return fetch(differentiate(TINY)(placed_weights(rules), batches_of(shape)(0)))


def mesh_of(shape: MeshShape) -> Mesh:
    return make_mesh(**asdict(shape))


def placed_weights(rules: Rules = RULES) -> Any:
    """The weights on the mesh that is set."""
    mesh = jax.sharding.get_mesh()
    return jax.device_put(weights_of(TINY), params.shardings(specs(TINY), mesh, rules))


def fetch(result: Any) -> Any:
    """((loss, its parts), gradients) as numbers and numpy arrays."""
    (value, parts), grads = jax.device_get(result)
    return (float(value), {name: float(part) for name, part in parts.items()}), grads


def largest_error(found: Any, wanted: Any) -> tuple[float, str]:
    """The greatest relative difference between the leaves of two trees, and where it is."""
    found, wanted = params.paths(found), params.paths(wanted)
    assert found.keys() == wanted.keys()
    errors = [(np.abs(found[n] - w).max() / np.abs(w).max(), n) for n, w in wanted.items()]
    return max(errors)


# ---- the same numbers


MESHES = [
    MeshShape(seq=8),
    MeshShape(fsdp=2, seq=2, tensor=2),
    MeshShape(data=2, seq=4),
]


@pytest.mark.parametrize("shape", MESHES, ids=lambda shape: "x".join(map(str, shape.sizes)))
def test_the_mesh_changes_neither_loss_nor_gradients(shape: MeshShape) -> None:
    (wanted, parts), wanted_grads = on_mesh(ONE)
    (found, found_parts), found_grads = on_mesh(shape)
    assert found == pytest.approx(wanted, rel=TOLERANCE)
    assert found_parts == pytest.approx(parts, rel=TOLERANCE)
    error, name = largest_error(found_grads, wanted_grads)
    assert error <= TOLERANCE, f"the gradient of {name} is off by {error:.1e}"


@pytest.mark.parametrize(
    "shape", [MeshShape(seq=8), MeshShape(fsdp=2, seq=2, tensor=2)], ids=["ring", "all axes"]
)
def test_weights_divided_over_the_ring_change_neither_loss_nor_gradients(shape: MeshShape) -> None:
    (wanted, _), wanted_grads = on_mesh(ONE)
    (found, _), found_grads = on_mesh(shape, SPREAD)
    assert found == pytest.approx(wanted, rel=TOLERANCE)
    assert largest_error(found_grads, wanted_grads)[0] <= TOLERANCE


def test_a_device_of_the_ring_holds_its_share_of_weights_and_gradients() -> None:
    shape = MeshShape(seq=8)
    with jax.set_mesh(mesh_of(shape)):
        weights = placed_weights(SPREAD)
        grads = differentiate(TINY)(weights, batches_of(shape)(0))[1]
    for name, param in params.paths(specs(TINY)).items():
        share = math.prod(param.shape) // (8 if "embed" in param.axes else 1)
        for tree in (weights, grads):
            assert params.paths(tree)[name].addressable_shards[0].data.size == share, name


def test_the_loss_is_the_balanced_mean_of_its_definition() -> None:
    (value, parts), _ = on_mesh(ONE)
    batch = jax.device_get(batches_of(ONE)(0))
    weights = weights_of(TINY)
    x = np.asarray(
        jax.jit(forward, static_argnums=4)(weights, batch.tokens, batch.vision, batch.where, TINY),
        np.float64,
    )
    for name, head, mask in (
        ("text_loss", weights.heads.text, ~batch.target_vision),
        ("vision_loss", weights.heads.vision, batch.target_vision),
    ):
        logits = x @ np.asarray(head, np.float64)
        log_total = np.log(np.exp(logits).sum(-1))
        targets = np.where(mask, batch.targets, 0)
        nll = log_total - np.take_along_axis(logits, targets[..., None], -1)[..., 0]
        wanted = (nll * batch.weights * mask).sum() / (batch.weights * mask).sum()
        assert parts[name] == pytest.approx(wanted, rel=TOLERANCE)
    balanced = (1 - SHARE) * parts["text_loss"] + SHARE * parts["vision_loss"]
    assert value == pytest.approx(balanced, rel=1e-6)


# ---- nothing leaks


def stack(rows: list[Batch]) -> Batch:
    return jax.tree.map(lambda *x: np.stack(x), *rows)


def test_a_packed_row_learns_what_its_examples_learn_alone() -> None:
    examples = draw_examples(2, 30)
    pieces = split_long([len(e) for e in examples], CONTEXT)
    assert len(pieces) == 2 and sum(p.inputs for p in pieces) <= CONTEXT
    nothing = pack_row([], examples.__getitem__, CONTEXT)
    together = stack([pack_row(pieces, examples.__getitem__, CONTEXT), nothing])
    apart = stack([pack_row([piece], examples.__getitem__, CONTEXT) for piece in pieces])
    packed, packed_grads = fetch(differentiate(TINY)(weights_of(TINY), together))
    alone, alone_grads = fetch(differentiate(TINY)(weights_of(TINY), apart))
    assert packed[0] == pytest.approx(alone[0], rel=TOLERANCE)
    assert packed[1] == pytest.approx(alone[1], rel=TOLERANCE)
    error, name = largest_error(packed_grads, alone_grads)
    assert error <= TOLERANCE, f"the gradient of {name} is off by {error:.1e}"


@cache
def pull_of_one_target() -> Any:
    """The gradient of the nll at one place of row 0, with respect to the input embeddings."""

    def run(weights: Any, batch: Batch, place: Any) -> Any:
        def nll(x: Any) -> Any:
            x = llama.run_layers(x, weights.blocks, batch.where, TINY.llama)
            x = rms_norm(x, weights.heads.norm, TINY.llama.norm_eps)
            here = jnp.where(place, 1.0, jnp.zeros_like(batch.weights))
            one = Batch(**{**vars(batch), "weights": here})
            return nll_sums(x, params.gather(weights.heads, specs(TINY).heads), one)[0].sum()

        return jax.grad(nll)(embed_tokens(weights, batch.tokens, batch.vision, TINY))

    return jax.jit(run)


@pytest.mark.parametrize("shape", [ONE, RING], ids=["1", "ring8"])
def test_no_gradient_comes_from_the_future_or_from_another_segment(shape: MeshShape) -> None:
    with jax.set_mesh(mesh_of(shape)):
        mesh = jax.sharding.get_mesh()
        weights, batch = placed_weights(), batches_of(shape)(0)
        segments, positions = jax.device_get((batch.segments, batch.positions))
        assert segments[0].max() >= 2
        for t in (0, 17, 18, 41, 63):
            place = np.zeros(segments.shape, np.bool_)
            place[0, t] = True
            place = jax.device_put(place, named_sharding(mesh, "batch", "seq"))
            grads = np.asarray(pull_of_one_target()(weights, batch, place))
            past = (segments[0] == segments[0, t]) & (positions[0] <= positions[0, t])
            past &= segments[0] > 0
            if segments[0, t] == 0:
                past[t] = True  # padding knows itself, by the residual stream
            assert (grads[0][~past] == 0).all()
            assert (np.abs(grads[0][past]).max(-1) > 0).all()
            assert (grads[1] == 0).all()


def changed(batch: Batch, where: np.ndarray) -> Batch:
    """The batch with other targets, of the same vocabulary, at some places."""
    return Batch(**{**vars(batch), "targets": np.where(where, batch.targets ^ 1, batch.targets)})


def assert_same_bits(found: Any, wanted: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), jax.device_get(wanted))


def test_a_weight_of_zero_is_not_learned() -> None:
    batch, run = jax.device_get(batches_of(ONE)(0)), differentiate(TINY)
    silent = (batch.weights == 0) & (batch.segments > 0)
    assert silent.any()
    weights = weights_of(TINY)
    assert_same_bits(run(weights, changed(batch, silent)), run(weights, batch))


def test_the_loss_of_one_modality_ignores_the_targets_of_the_other() -> None:
    batch, run = jax.device_get(batches_of(ONE)(0)), differentiate(TINY)
    weights = weights_of(TINY)
    (_, parts), grads = run(weights, batch)
    for name, mask in (("text", ~batch.target_vision), ("vision", batch.target_vision)):
        (_, other), other_grads = run(weights, changed(batch, ~mask))
        assert other[f"{name}_loss"] == parts[f"{name}_loss"]
        assert_same_bits(getattr(other_grads.heads, name), getattr(grads.heads, name))
        only = Batch(**{**vars(batch), "weights": np.where(mask, 0, batch.weights)})
        (_, parts_of_rest), grads_of_rest = run(weights, only)
        assert np.isnan(parts_of_rest[f"{name}_loss"])
        assert not np.asarray(getattr(grads_of_rest.heads, name)).any()


def test_text_ids_and_codes_of_the_same_number_have_rows_of_their_own() -> None:
    weights = weights_of(TINY)
    ids, vision = np.full((1, 2), 5, np.int32), np.array([[False, True]])
    x = np.asarray(jax.jit(embed_tokens, static_argnums=3)(weights, ids, vision, TINY))
    np.testing.assert_array_equal(x[0], [weights.text_embed[5], weights.vision_embed[5]])


# ---- text alone


def test_a_world_of_text_alone_has_no_vision_table_and_learns() -> None:
    c = World(llama=TINY.llama, vocabulary=Vocabulary(text=32, bos=1, eos=2))
    table = specs(c)
    assert table.vision_embed is None and table.heads.vision is None
    assert params.count(table) == params.count(specs(TINY)) - 2 * 16 * 16
    examples = [example.text(np.random.default_rng(0).integers(3, 32, 50).tolist(), 1.0)]
    row = pack_row(split_long([50], CONTEXT), examples.__getitem__, CONTEXT)
    weights = weights_of(c)
    ((value, parts), grads) = jax.jit(
        lambda w, b: jax.value_and_grad(loss, has_aux=True)(w, b, c, 0.0)
    )(weights, stack([row]))
    assert value == parts["text_loss"] and np.isnan(parts["vision_loss"])
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(grads))


# ---- what it is and what it costs


def test_lwm_7b_has_as_many_parameters_as_were_published() -> None:
    assert params.count(specs(LWM_7B)) == 6_807_621_632


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="3 key heads do not divide 4 heads"):
        Llama(**{**vars(TINY.llama), "kv_heads": 3})
    with pytest.raises(InputError, match="head_width 5 is odd"):
        Llama(**{**vars(TINY.llama), "head_width": 5})
    with pytest.raises(InputError, match="at least 8"):
        Vocabulary(text=32, bos=1, eos=2, codes=6, codes_per_frame=4, vision_rows=7)


def spec_of(x: jax.ShapeDtypeStruct) -> PartitionSpec:
    return PartitionSpec() if x.sharding is None else x.sharding.spec


def test_7b_step_at_one_million_tokens_typechecks_on_4096_devices() -> None:
    mesh = abstract_mesh(MeshShape(fsdp=8, seq=64, tensor=8))
    with jax.set_mesh(None), jax.sharding.use_abstract_mesh(mesh):
        optimizer = make_optimizer(AdamW(), 1000, specs(LWM_7B))
        learned = partial(loss, c=LWM_7B, vision_share=0.5)
        built = build(specs(LWM_7B), mesh, optimizer, learned)
        state = built.state
        after, metrics = jax.eval_shape(built.step, state, abstract_batch(mesh, 8, 2**20))
    assert all(x.shape == () for x in jax.tree.leaves(metrics))
    assert jax.tree.structure(after) == jax.tree.structure(state)
    for old, new in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        assert (new.shape, new.dtype, spec_of(new)) == (old.shape, old.dtype, spec_of(old))
    # Every matrix is divided by 8 x 8; what is held whole, gains and counters, is a few MB.
    assert bytes_held(after.weights) < 4 * 6_807_621_632 / 64 + 4e6


def equations(jaxpr: Any) -> Iterator[Any]:
    """Every equation of a jaxpr and of those within it."""
    for eqn in jaxpr.eqns:
        yield eqn
        yield from equations_within(eqn)


def equations_within(eqn: Any) -> Iterator[Any]:
    for sub in jaxprs_in_params(eqn.params):
        yield from equations(sub)


def trace_of_loss(c: World, shape: MeshShape, context: int) -> Any:
    """The jaxpr of the loss and its gradients for one row."""
    with jax.set_mesh(mesh_of(shape)):
        mesh = jax.sharding.get_abstract_mesh()
        weights = jax.eval_shape(lambda: params.init(specs(c), 0))
        run = partial(jax.value_and_grad(loss, has_aux=True), c=c, vision_share=SHARE)
        return jax.make_jaxpr(run)(weights, abstract_batch(mesh, 1, context)).jaxpr


@pytest.mark.parametrize("shape", [ONE, RING], ids=["1", "ring8"])
def test_the_logits_of_all_tokens_never_exist(
    shape: MeshShape, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss_module, "LOSS_CHUNK", 64)
    rows = 1000
    c = World(llama=TINY.llama, vocabulary=Vocabulary(text=rows, bos=1, eos=2))
    jaxpr = trace_of_loss(c, shape, 1024)
    shapes = [x.aval.shape for eqn in equations(jaxpr) for x in eqn.outvars]
    of_vocabulary = [math.prod(shape) for shape in shapes if rows in shape]
    assert (64, rows) in shapes, "the walk did not find the logits of a chunk"
    assert max(of_vocabulary) < 1024 * rows / 4


def axes_of(eqn: Any) -> set[str]:
    """The mesh axes along which an equation makes devices wait for each other."""
    if eqn.primitive.name in ("axis_index", "pvary", "pcast"):
        return set()
    axes = eqn.params.get("axes", eqn.params.get("axis_name", ()))
    axes = (axes,) if isinstance(axes, str) else axes
    return set(axes) & set(AXES) if isinstance(axes, tuple | frozenset) else set()


def test_no_device_waits_in_a_branch_that_another_may_skip() -> None:
    jaxpr = trace_of_loss(TINY, RING, CONTEXT)
    everywhere = set().union(*(axes_of(eqn) for eqn in equations(jaxpr)))
    assert {"seq", "tensor"} <= everywhere, "the walk did not find the ring"
    branches = [
        axes_of(eqn)
        for cond in equations(jaxpr)
        if cond.primitive.name == "cond"
        for eqn in equations_within(cond)
    ]
    # All devices along `tensor` hold the same tokens, so they take the same branch.
    assert set().union(*branches) <= {"tensor"}


def bytes_of_gradients(shape: MeshShape, context: int) -> int:
    """What one device needs beside weights, batch and gradients for one row of this length."""
    run = jax.jit(partial(jax.value_and_grad(loss, has_aux=True), c=TINY, vision_share=SHARE))
    with jax.set_mesh(mesh_of(shape)):
        mesh = jax.sharding.get_abstract_mesh()
        weights = jax.eval_shape(lambda: params.init(specs(TINY), 0))
        compiled = run.lower(weights, abstract_batch(mesh, 1, context)).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_memory_grows_with_the_length_and_falls_with_the_ring(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(attention.KERNELS, "xla", replace(BLOCKWISE, tile=64))
    short, long = bytes_of_gradients(ONE, 1024), bytes_of_gradients(ONE, 2048)
    # What does not grow, tiles and weights, leaves the ratio below 2: with the square it is 4.
    assert long <= 2.05 * short
    # A shard of 256 tokens is not much larger than what a device holds of every length.
    assert bytes_of_gradients(RING, 2048) <= long / 4


def test_a_step_never_gathers_the_sequence_and_goes_round_the_ring_twice() -> None:
    optimizer = make_optimizer(AdamW(), 1000, specs(TINY))
    with jax.set_mesh(mesh_of(RING)):
        step = make_step(partial(loss, c=TINY, vision_share=SHARE), optimizer)
        state = start(placed_weights(), optimizer)
        compiled = step.lower(state, batches_of(RING)(0)).compile()
    text = compiled.as_text()
    # fsdp is 1, so there is no weight to gather either: the one gather is of each shard's ends.
    gathered = [
        math.prod(map(int, n.split(","))) for n in re.findall(r"\[([\d,]+)\]\S* all-gather", text)
    ]
    assert all(size <= 7 * 2 * RING.seq for size in gathered) and "all-to-all" not in text
    # Keys, values, positions and segments forward; the same and dk, dv backward; dk, dv to the last
    # shard, and home, on or back. The backward recomputes each layer but its attention: the ring is
    # not walked a third time.
    assert len(re.findall(r" collective-permute(?:-start)?\(", text)) == 4 + 6 + 2 + 2 * 2


# ---- what cannot be a model or a mesh is refused in a sentence


@pytest.mark.parametrize("name", ["layers", "model", "mlp", "heads", "kv_heads", "context"])
def test_a_decoder_without_a_size_is_refused_by_that_sizes_name(name: str) -> None:
    with pytest.raises(InputError, match=f"^{name} is 0: make it 1 or more"):
        replace(TINY.llama, **{name: 0})


def test_a_vocabulary_of_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="cannot have 0 text ids"):
        Vocabulary(text=0, bos=1, eos=2)
    with pytest.raises(InputError, match="-1 codes"):
        Vocabulary(text=9, bos=1, eos=2, codes=-1)


@pytest.mark.parametrize("size", [0, -2])
def test_a_mesh_axis_below_one_is_refused(size: int) -> None:
    with pytest.raises(InputError, match=f"mesh axis seq is {size} and must be at least 1"):
        make_mesh(seq=size)
