"""Worker: `ringattention` 0.1.2, the package that LWM trains with, in plain JAX as on any CPU.

Its blocks are as long as was measured to be fastest for it. It has no grouped heads: keys and
values are repeated, and the sum of their gradients is part of the work.
"""

from functools import partial
from math import gcd
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.shard_map import shard_map
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ringattention import ringattention

from benchmarks.protocol import Prepared, serve
from benchmarks.work import Case, make_arrays, make_segments, sample

BLOCK = 512


def prepare(request: dict[str, Any]) -> Prepared:
    """The case on a ring of all devices, the row in its order."""
    case = Case(**request)
    block = gcd(BLOCK, case.length // jax.device_count())
    mesh = Mesh(np.asarray(jax.devices()), ("seq",))
    row, everywhere = PartitionSpec(None, "seq"), PartitionSpec()
    attend = partial(
        ringattention,
        axis_name="seq",
        float32_logits=True,
        blockwise_kwargs=dict(
            causal_block_size=1,
            query_chunk_size=block,
            key_chunk_size=block,
            deterministic=True,
            dropout_rng=None,
            attn_pdrop=0.0,
            dtype=jnp.float32,
            policy=jax.checkpoint_policies.nothing_saveable,
            precision=None,
            prevent_cse=False,
        ),
    )
    segments = jnp.asarray(make_segments(case.documents)[0]) if case.kind == "packed" else None

    def local(q: jax.Array, k: jax.Array, v: jax.Array, segments: Any) -> jax.Array:
        repeat = q.shape[2] // k.shape[2]
        k, v = (jnp.repeat(x, repeat, axis=2) for x in (k, v))
        return attend(q, k, v, None, segments, None)

    ring = shard_map(
        local, mesh, in_specs=(row, row, row, everywhere), out_specs=row, check_rep=False
    )

    def work(q: jax.Array, k: jax.Array, v: jax.Array, dout: jax.Array) -> list[jax.Array]:
        if not case.backward:
            return [ring(q, k, v, segments)]
        out, pull = jax.vjp(lambda *qkv: ring(*qkv, segments), q, k, v)
        return [out, *pull(dout)]

    arrays = [jax.device_put(x, NamedSharding(mesh, row)) for x in make_arrays(case)]
    compiled = jax.jit(work).lower(*arrays).compile()
    results = [np.asarray(x) for x in compiled(*arrays)]
    return Prepared(lambda: jax.block_until_ready(compiled(*arrays)), sample(results))


if __name__ == "__main__":
    serve(prepare)
