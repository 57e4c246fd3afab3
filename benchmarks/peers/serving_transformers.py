"""Worker: transformers on torch's CPU, float32, with a batch of 1, 4 or 16 prompts."""

from typing import Any

import torch
from transformers import AutoModelForCausalLM, DynamicCache

from benchmarks.peers.model_work import WRITTEN, draw_prompt
from benchmarks.protocol import Prepared, serve


def prepare(asked: dict[str, Any]) -> Prepared:
    """The model of the folder, and the work that is asked for."""
    model = AutoModelForCausalLM.from_pretrained(asked["model"], dtype=torch.float32).eval()
    row = torch.tensor(draw_prompt(asked["length"]))
    prompts = torch.stack([(row + i) % 49152 for i in range(asked["requests"])])

    @torch.inference_mode()
    def read(cache: DynamicCache) -> torch.Tensor:
        return model(prompts, past_key_values=cache, use_cache=True, logits_to_keep=1).logits

    if asked["work"] == "prefill":
        read(DynamicCache(config=model.config))
        return Prepared(lambda: read(DynamicCache(config=model.config)), [])
    cache = DynamicCache(config=model.config)
    last = read(cache)

    @torch.inference_mode()
    def write() -> None:
        logits = last
        for _ in range(WRITTEN):
            token = logits[:, -1:].argmax(-1)
            logits = model(token, past_key_values=cache, use_cache=True).logits
        cache.crop(-WRITTEN)

    write()
    return Prepared(write, [])


if __name__ == "__main__":
    serve(prepare)
