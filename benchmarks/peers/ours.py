"""Worker: `ringworld.attend` on one device, on a ring of several, or by its definition.

A ring is given the row in the order that `choose_layout` chooses, as training gives it.
"""

from typing import Any

import jax
import numpy as np

from benchmarks.protocol import Prepared, Refused, serve
from benchmarks.work import Case, make_arrays, make_segments, sample
from ringworld import Where, attend, make_mesh
from ringworld.attention.balance import choose_layout
from ringworld.attention.layout import invert
from ringworld.cpu import widen_vectors
from ringworld.mesh import named_sharding

# Scores of the definition are 8 S^2 numbers, several times over: it is run where they fit in this.
DENSE_BYTES = 8e9


def prepare(request: dict[str, Any]) -> Prepared:
    """The case on a ring of all devices. Raises Refused when the definition takes too much."""
    impl = request.pop("impl")
    case = Case(**request)
    ring = jax.device_count()
    mesh = make_mesh(seq=ring)
    segments, positions = make_segments(case.documents)
    order = choose_layout(Where(positions, segments), ring).order

    def place(x: np.ndarray) -> jax.Array:
        axes = ("batch", "seq", "heads", None)[: x.ndim]
        return jax.device_put(x[:, order], named_sharding(mesh, *axes))

    def work(q: jax.Array, k: jax.Array, v: jax.Array, dout: jax.Array, where: Where) -> Any:
        if not case.backward:
            return [attend(q, k, v, where, impl=impl)]
        out, pull = jax.vjp(lambda q, k, v: attend(q, k, v, where, impl=impl), q, k, v)
        return [out, *pull(dout)]

    arrays = [place(x) for x in make_arrays(case)]
    where = Where(place(positions), place(segments))
    with jax.set_mesh(mesh):
        compiled = jax.jit(work).lower(*arrays, where).compile()
    needs = compiled.memory_analysis().temp_size_in_bytes
    if impl == "dense" and needs > DENSE_BYTES:
        raise Refused(f"would need {needs / 1e9:.1f} GB")
    back = invert(order, case.length)
    results = [np.asarray(x)[:, back] for x in compiled(*arrays, where)]
    return Prepared(lambda: jax.block_until_ready(compiled(*arrays, where)), sample(results))


if __name__ == "__main__":
    widen_vectors()
    serve(prepare)
