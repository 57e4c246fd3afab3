"""The page of checkpoints shows the tables of the code, and its commands do what it says."""

import gzip
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from foreign import PARITY, gguf_shapes
from gguf import GGMLQuantizationType, quants
from sentencepiece_files import SMALL
from tiny_hf import write_tiny

import ringworld
from ringworld import cli
from ringworld import fetch as fetch_module
from ringworld.models.vqgan import NANO_VQGAN
from ringworld.weights import open as open_module
from ringworld.weights.codecs import diffusers_name, lwm_name, their_names
from ringworld.weights.names import WEIGHT_NAMES
from ringworld.weights.shipped import NANO

PAGE = Path(__file__).resolve().parents[2] / "docs" / "checkpoints.md"


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown, every cell of it code."""
    cells = [[f"`{cell}`" if cell else "" for cell in row] for row in rows]
    lines = [head, ["---"] * len(head), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def names() -> str:
    """Every weight of a model on all sides."""
    rows = [[name.ours, name.hugging_face, name.gguf, name.lwm] for name in WEIGHT_NAMES]
    return table(["ours", "Hugging Face", "GGUF", "LWM"], rows)


def codec() -> str:
    """The weights of a codec of two levels, one block each, without those that differ in number."""
    config = replace(NANO_VQGAN, multipliers=(1, 2), blocks=1)
    rows = [
        [ours, diffusers_name(ours), lwm_name(ours)]
        for ours in their_names(config, diffusers_name)
        if "levels.0." not in ours.replace("levels.0.resample", "") and ".blocks.1" not in ours
    ]
    rows = [row for row in rows if ".bias" not in row[0] and ".mid.1" not in row[0]]
    return table(["ours", "diffusers", "LWM"], rows)


def test_every_name_is_on_the_page() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert names() in page
    assert codec() in page


# ---- the journeys

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
WIDTH, MLP, HEADS, KV_HEADS, CONTEXT = 32, 64, 4, 2, 512


def write_small_smollm(path: Path) -> Path:
    """A random Llama as SmolLM2 comes: matrices of 8 bits, tied, a token a byte, a template."""
    rng, writer = np.random.default_rng(0), gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [i for i in range(256) if i not in printed]
    letters = [chr(i) for i in printed] + [chr(256 + n) for n in range(len(others))]
    writer.add_token_list([*MARKS, *letters, "he"])
    writer.add_token_types([3] * 3 + [1] * 257)
    writer.add_token_merges(["h e"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(CHAT)
    shapes = {"token_embd": (260, WIDTH), "output_norm": (WIDTH,)}
    shapes |= {f"blk.0.{name}": shape for name, shape in gguf_shapes(WIDTH, MLP).items()}
    for name, shape in shapes.items():
        drawn = rng.normal(size=shape).astype(np.float32)
        if drawn.ndim == 1:
            writer.add_tensor(f"{name}.weight", drawn)
            continue
        packed = quants.quantize(drawn, GGMLQuantizationType.Q8_0)
        writer.add_tensor(f"{name}.weight", packed, raw_dtype=GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def journeys() -> list[list[list[str]]]:
    """The words of each command, a list for each block of them."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.S | re.M)
    return [
        [re.findall(r'"[^"]*"|\S+', line)[1:] for line in block.splitlines()] for block in blocks
    ]


def test_the_journeys_of_the_page_go_where_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_tiny(tmp_path / "Llama-3.2-1B")
    shutil.copytree(NANO / "codec", tmp_path / "vqgan")
    lwm = tmp_path / "LWM-Chat-1M-Jax"
    lwm.mkdir()
    packed = PARITY / "lwm_vision"
    (lwm / "params").write_bytes(gzip.decompress((packed / "streaming_params.gz").read_bytes()))
    (lwm / "config.json").write_bytes((packed / "config.json").read_bytes())
    (lwm / "tokenizer.model").write_bytes(SMALL)
    small = write_small_smollm(tmp_path / "smollm2-135m.gguf")
    for module in (fetch_module, open_module):
        monkeypatch.setattr(module, "fetch", lambda name: small)
    known, answers = journeys(), []
    for block in known:
        for words in block:
            cli.run([word.strip('"') for word in words], lambda said: None)
            answers += [capsys.readouterr().out] * (words[0] == "chat")
    assert [len(block) for block in known] == [2, 2, 4]
    world = ringworld.load(tmp_path / "runs" / "llama-world")
    assert world.config.vocabulary.codes == world.codec.config.codebook
    out = json.loads((tmp_path / "runs" / "lwm-for-transformers" / "config.json").read_text())
    assert out["architectures"] == ["LlamaForCausalLM"] and out["ringworld"]["codes"] == 8192
    assert ringworld.load(tmp_path / "runs" / "lwm-for-transformers").tokenizer.opening == [1]
    # Greedy, from the same numbers, be they dequantised as they are read or before.
    assert answers[0] == answers[1] and len(answers[0]) > 1
