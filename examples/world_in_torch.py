"""A ringworld model in torch, with transformers and diffusers alone: read a picture, draw one.

    ringworld convert MODEL OUT                    # OUT: one LlamaForCausalLM, and vqgan/ beside it
    python examples/world_in_torch.py OUT picture.png "What is in the picture?" \\
        drawn.png "an image of a red circle"

To the language model a picture is words: code c of the codec is the id V + c, where V is the number
of text ids. The field "ringworld" of config.json says what the ids mean. A model that has seen only
films, as the shipped one has, is asked for "a video of a red circle moves left": its first frame is
drawn.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import VQModel
from PIL import Image
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

SYSTEM = "You are a helpful assistant."
# How far a picture is drawn away from one without a wish: that of `ringworld generate video`.
GUIDANCE = 3.0


class World:
    """The language model, the codec and the words of a folder that `ringworld convert` wrote."""

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.codec = VQModel.from_pretrained(folder / "vqgan", torch_dtype=torch.float32).eval()
        self.words = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.words.encode_special_tokens = True
        self.ids = self.model.config.ringworld
        self.side = int(self.ids["codes_per_frame"] ** 0.5)

    def spell(self, text: str) -> list[int]:
        """The ids of a text."""
        return self.words.encode(text, add_special_tokens=False).ids

    def mark(self, name: str) -> list[int]:
        """The id of `<vision>` or `</vision>`, or where there is none its spelling, as in LWM."""
        found = self.words.token_to_id(name)
        return self.spell(name) if found is None else [found]

    @torch.no_grad()
    def see(self, picture: Image.Image) -> list[int]:
        """A picture as ids: its codes and the marker that ends the last frame."""
        size = self.codec.config.sample_size
        pixels = np.asarray(picture.convert("RGB").resize((size, size)), np.float32) / 127.5 - 1
        latents = self.codec.encode(torch.from_numpy(pixels).permute(2, 0, 1)[None]).latents
        codes = self.codec.quantize(latents)[2][2].flatten().tolist()
        return [self.ids["text"] + c for c in [*codes, self.ids["codes"] + 1]]

    @torch.no_grad()
    def paint(self, ids: list[int]) -> Image.Image:
        """The picture of the codes of one frame."""
        codes = torch.tensor(ids) - self.ids["text"]
        shape = (1, self.side, self.side, self.codec.config.vq_embed_dim)
        drawn = self.codec.decode(codes, force_not_quantize=True, shape=shape).sample[0]
        pixels = (drawn.clamp(-1, 1).permute(1, 2, 0).numpy() + 1) * 127.5
        return Image.fromarray(pixels.round().astype(np.uint8))

    def question(self, asked: str, picture: Image.Image) -> list[int]:
        """The prompt of a question about a picture, up to the answer."""
        opening = [*self.mark("<s>"), *self.spell(f"{SYSTEM} USER: {asked}\n")]
        shown = [*self.mark("<vision>"), *self.see(picture), *self.mark("</vision>")]
        return [*opening, *shown, *self.spell(" ASSISTANT:")]

    def answer(self, asked: str, picture: Image.Image, most: int = 48) -> str:
        """What the model says of a picture: text ids only, the likeliest first."""
        prompt = self.question(asked, picture)
        written = self._write(prompt, most, slice(0, self.ids["text"]), do_sample=False)
        return self.words.decode(written).strip()

    def draw(self, wish: str) -> Image.Image:
        """The picture of a wish, or a video's first: codes only, as many as a frame has."""
        asked = f"{SYSTEM} USER: Generate {wish} ASSISTANT: "
        prompt = [*self.mark("<s>"), *self.spell(asked), *self.mark("<vision>")]
        codes = slice(self.ids["text"], self.ids["text"] + self.ids["codes"])
        freely = torch.tensor([[*self.mark("<s>"), *self.mark("<vision>")]])
        drawn = self._write(
            prompt,
            self.ids["codes_per_frame"],
            codes,
            do_sample=True,
            top_k=64,
            guidance_scale=GUIDANCE,
            negative_prompt_ids=freely,
            negative_prompt_attention_mask=torch.ones_like(freely),
        )
        return self.paint(drawn)

    @torch.no_grad()
    def _write(self, prompt: list[int], most: int, allowed: slice, **how: Any) -> list[int]:
        def only(_: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            kept = torch.full_like(scores, -torch.inf)
            kept[:, allowed] = scores[:, allowed]
            return kept

        ids = torch.tensor([prompt])
        written = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=most,
            logits_processor=[only],
            **how,
        )
        return written[0, len(prompt) :].tolist()


if __name__ == "__main__":
    if len(sys.argv) != 6:
        sys.exit(__doc__)
    folder, source, said, target, wish = sys.argv[1:]
    torch.manual_seed(0)
    world = World(folder)
    print(world.answer(said, Image.open(source)))
    world.draw(wish).save(target)
