"""Worker: transformers on torch's CPU, float32, with the leanest loop that its models allow."""

import time
from typing import Any

import torch
from transformers import AutoModelForCausalLM, DynamicCache

from benchmarks.peers.model_work import WRITTEN, draw_prompt
from benchmarks.protocol import Prepared, serve


def prepare(request: dict[str, Any]) -> Prepared:
    """The model of the folder, and the work that is asked for."""
    began = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(request["folder"], dtype=torch.float32).eval()
    loaded = time.perf_counter() - began
    prompt = torch.tensor(draw_prompt(request["length"])[None])
    cache = DynamicCache(config=model.config)

    @torch.inference_mode()
    def read(cache: DynamicCache) -> torch.Tensor:
        return model(prompt, past_key_values=cache, use_cache=True, logits_to_keep=1).logits

    @torch.inference_mode()
    def write(logits: torch.Tensor) -> list[int]:
        ids: list[int] = []
        for _ in range(WRITTEN):
            token = logits[:, -1:].argmax(-1)
            ids.append(int(token))
            logits = model(token, past_key_values=cache, use_cache=True).logits
        cache.crop(-WRITTEN)
        return ids

    if request["work"] == "prefill":
        read(cache)
        return Prepared(lambda: read(DynamicCache(config=model.config)), [loaded])
    last = read(cache)
    return Prepared(lambda: write(last), [loaded, *map(float, write(last)[:4])])


if __name__ == "__main__":
    serve(prepare)
