"""Worker: `torch.nn.functional.scaled_dot_product_attention` on the CPU.

It gets what suits it best: heads before tokens, fewer key heads as they are, and a packed row
document by document, so that it computes nothing that a mask would throw away.
"""

from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.protocol import Prepared, serve
from benchmarks.work import Case, make_arrays, sample


def prepare(request: dict[str, Any]) -> Prepared:
    """The case as tensors `[1, heads, T, H]`."""
    case = Case(**request)
    q, k, v, dout = (torch.tensor(x.swapaxes(1, 2)).contiguous() for x in make_arrays(case))
    stops = list(accumulate(case.documents))
    bounds = list(zip([0, *stops[:-1]], stops, strict=True))
    grouped = case.key_heads < q.shape[1]

    def attend() -> torch.Tensor:
        return torch.cat(
            [
                scaled_dot_product_attention(
                    q[:, :, start:stop],
                    k[:, :, start:stop],
                    v[:, :, start:stop],
                    is_causal=True,
                    enable_gqa=grouped,
                )
                for start, stop in bounds
            ],
            dim=2,
        )

    def run() -> list[torch.Tensor]:
        if not case.backward:
            with torch.no_grad():
                return [attend()]
        out = attend()
        return [out.detach(), *torch.autograd.grad(out, (q, k, v), dout)]

    for x in (q, k, v):
        x.requires_grad_(case.backward)
    return Prepared(run, sample([np.asarray(x).swapaxes(1, 2) for x in run()]))


if __name__ == "__main__":
    serve(prepare)
