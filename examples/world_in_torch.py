"""A ringworld model in torch, with transformers and diffusers alone: describe a picture, draw one.

    ringworld convert MODEL OUT                    # OUT: one LlamaForCausalLM, and vqgan/ beside it
    python examples/world_in_torch.py OUT picture.png "What is in the picture?" \\
        drawn.png "an image of a red circle"

The language model reads and writes pictures as ids: code c of the codec is the id V + c, where V is
the number of text ids. The field "ringworld" of config.json says what the ids mean. A model that
was trained on films only, such as the shipped one, is asked for "a video of a red circle moves
left"; the first frame is saved.
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
# The scale of classifier-free guidance: the default of `ringworld generate video`.
GUIDANCE = 3.0


class World:
    """The language model, the codec and the tokenizer of a folder from `ringworld convert`."""

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.codec = VQModel.from_pretrained(folder / "vqgan", torch_dtype=torch.float32).eval()
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.encode_special_tokens = True
        self.ids = self.model.config.ringworld
        self.side = int(self.ids["codes_per_frame"] ** 0.5)

    def encode_text(self, text: str) -> list[int]:
        """The ids of a text."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def special(self, name: str) -> list[int]:
        """The id of a special token such as `<vision>`; the ids of its text where there is none."""
        found = self.tokenizer.token_to_id(name)
        return self.encode_text(name) if found is None else [found]

    @torch.no_grad()
    def encode_picture(self, picture: Image.Image) -> list[int]:
        """The ids of a picture: its codes and the marker that ends the last frame."""
        size = self.codec.config.sample_size
        pixels = np.asarray(picture.convert("RGB").resize((size, size)), np.float32) / 127.5 - 1
        latents = self.codec.encode(torch.from_numpy(pixels).permute(2, 0, 1)[None]).latents
        codes = self.codec.quantize(latents)[2][2].flatten().tolist()
        return [self.ids["text"] + c for c in [*codes, self.ids["codes"] + 1]]

    @torch.no_grad()
    def decode_picture(self, ids: list[int]) -> Image.Image:
        """The picture of the ids of one frame."""
        codes = torch.tensor(ids) - self.ids["text"]
        shape = (1, self.side, self.side, self.codec.config.vq_embed_dim)
        drawn = self.codec.decode(codes, force_not_quantize=True, shape=shape).sample[0]
        pixels = (drawn.clamp(-1, 1).permute(1, 2, 0).numpy() + 1) * 127.5
        return Image.fromarray(pixels.round().astype(np.uint8))

    def make_prompt(self, question: str, picture: Image.Image) -> list[int]:
        """The ids of a question about a picture, up to the answer."""
        opening = [*self.special("<s>"), *self.encode_text(f"{SYSTEM} USER: {question}\n")]
        shown = [
            *self.special("<vision>"),
            *self.encode_picture(picture),
            *self.special("</vision>"),
        ]
        return [*opening, *shown, *self.encode_text(" ASSISTANT:")]

    def answer(self, question: str, picture: Image.Image, max_new_tokens: int = 48) -> str:
        """The answer to a question about a picture: greedy, restricted to text ids."""
        prompt = self.make_prompt(question, picture)
        text_ids = slice(0, self.ids["text"])
        written = self._generate(prompt, max_new_tokens, text_ids, do_sample=False)
        return self.tokenizer.decode(written).strip()

    def draw(self, caption: str) -> Image.Image:
        """A picture for a caption: one frame of codes, sampled with guidance."""
        request = f"{SYSTEM} USER: Generate {caption} ASSISTANT: "
        prompt = [
            *self.special("<s>"),
            *self.encode_text(request),
            *self.special("<vision>"),
        ]
        codes = slice(self.ids["text"], self.ids["text"] + self.ids["codes"])
        unconditional = torch.tensor([[*self.special("<s>"), *self.special("<vision>")]])
        drawn = self._generate(
            prompt,
            self.ids["codes_per_frame"],
            codes,
            do_sample=True,
            top_k=64,
            guidance_scale=GUIDANCE,
            negative_prompt_ids=unconditional,
            negative_prompt_attention_mask=torch.ones_like(unconditional),
        )
        return self.decode_picture(drawn)

    @torch.no_grad()
    def _generate(
        self, prompt: list[int], max_new_tokens: int, allowed: slice, **options: Any
    ) -> list[int]:
        def only(_: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            kept = torch.full_like(scores, -torch.inf)
            kept[:, allowed] = scores[:, allowed]
            return kept

        ids = torch.tensor([prompt])
        written = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            logits_processor=[only],
            **options,
        )
        return written[0, len(prompt) :].tolist()


if __name__ == "__main__":
    if len(sys.argv) != 6:
        sys.exit(__doc__)
    folder, source, question, target, caption = sys.argv[1:]
    torch.manual_seed(0)
    world = World(folder)
    print(world.answer(question, Image.open(source)))
    world.draw(caption).save(target)
