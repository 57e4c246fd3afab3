"""What attention and a training step would send and hold, from programs that nobody runs.

As a program, `JAX_NUM_CPU_DEVICES=512 python tests/budgets.py 512 10485760 ...` compiles both for a
ring and rows of each of these lengths, and prints what it finds as JSON. Nothing is allocated.
"""

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.stages import Compiled

from ringworld.attention import attend
from ringworld.attention.mask import Where, reach
from ringworld.attention.ring import count_hops
from ringworld.mesh import make_mesh, named_sharding, spec
from ringworld.models.llama import Llama
from ringworld.models.world import World
from ringworld.plan.aot import compile_step, report
from ringworld.plan.hlo import Computation, Op, read_program
from ringworld.vocab import Vocabulary

L, D, F, N, K, H, V = 2, 256, 512, 4, 2, 64, 512
# A collective among groups of one device sends nothing: the mesh axis has one place.
_ALONE = re.compile(r"replica_groups=(\{\{0\}[,}]|\[\d+,1\]<)")


@dataclass(frozen=True)
class Sent:
    """One collective: its kind, the most numbers in one of its results, and the loops around it."""

    kind: str
    numbers: int
    loops: tuple[int | None, ...]
    alone: bool


@dataclass(frozen=True)
class Budget:
    """What one device sends, and the bytes of its temporaries.

    `rotated` are the bytes that each part of the program hands on at a run, the least first: the
    body of a loop, or what stands around loops.
    """

    temporaries: int
    rotated: tuple[int, ...]
    sent: tuple[Sent, ...]


def model(context: int, **sizes: int) -> World:
    """Two layers, of text, at this length."""
    usual = dict(layers=L, model=D, mlp=F, heads=N, kv_heads=K, head_width=H)
    llama = Llama(**{**usual, **sizes}, context=context, rope_theta=1e6)
    return World(llama=llama, vocabulary=Vocabulary(text=V, bos=1, eos=2))


def read(compiled: Compiled) -> Budget:
    """What the program of one device sends and holds."""
    found = report(compiled, 0.0)
    program = read_program(compiled.as_text())
    rotated = (_permuted(computation) for computation in program.computations.values())
    return Budget(
        temporaries=found.memory.temporaries,
        rotated=tuple(sorted(size for size in rotated if size)),
        sent=tuple(
            Sent(c.kind, _numbers(c.op), c.loops, _is_alone(c.op)) for c in found.collectives
        ),
    )


def _permuted(computation: Computation) -> int:
    """The bytes of the permutes of one computation, not of those that it calls."""
    permutes = (op for op in computation.ops if op.opcode.startswith("collective-permute"))
    arrays = (computation.named[name] for op in permutes for name in op.operands)
    return sum(shape.bytes for array in arrays for shape in array.shapes)


def _numbers(op: Op) -> int:
    return max(int(np.prod(shape.sizes)) for shape in op.shapes)


def _is_alone(op: Op) -> bool:
    return _ALONE.search(op.attributes) is not None


@cache
def budget_of_step(mesh: Mesh, context: int, **sizes: int) -> Budget:
    """A whole training step: loss, gradients and update."""
    return read(compile_step(model(context, **sizes), mesh)[0])


@cache
def budget_of_attention(mesh: Mesh, context: int) -> Budget:
    """Attention alone: the output and all gradients."""

    def run(q: Any, k: Any, v: Any, dout: Any, where: Where) -> Any:
        out, pull = jax.vjp(partial(attend, where=where), q, k, v)
        return out, *pull(dout)

    def array(dtype: Any, *sizes: int) -> jax.ShapeDtypeStruct:
        axes = ("batch", "seq", "heads", None)[: len(sizes)]
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=named_sharding(mesh, *axes))

    heads = [array(jnp.float32, 1, context, n, H) for n in (N, K, K, N)]
    rows = array(jnp.int32, 1, context)
    with jax.set_mesh(mesh):
        return read(jax.jit(run).lower(*heads, Where(rows, rows)).compile())


def hops(mesh: Mesh, where: Where) -> int:
    """How often the ring turns for causal rows with these positions and segments."""
    with jax.set_mesh(mesh):
        placed = jax.device_put(where, named_sharding(mesh, "batch", "seq"))
        return int(_count(mesh)(placed))


@cache
def _count(mesh: Mesh) -> Any:
    def local(where: Where) -> Any:
        return count_hops(reach(where, True), where, "seq")

    return jax.jit(jax.shard_map(local, in_specs=spec("batch", "seq"), out_specs=spec()))


def main(ring: int, contexts: Sequence[int]) -> None:
    """Print the budgets by length, and the hops of one document over the whole ring."""
    mesh = make_mesh(seq=ring)
    one = Where(np.arange(ring, dtype=np.int32)[None], np.ones((1, ring), np.int32))
    budgets = {
        str(context): {
            "attention": asdict(budget_of_attention(mesh, context)),
            "step": asdict(budget_of_step(mesh, context)),
        }
        for context in contexts
    }
    print(json.dumps({"hops": hops(mesh, one), "budgets": budgets}))


if __name__ == "__main__":
    main(int(sys.argv[1]), [int(context) for context in sys.argv[2:]])
