"""Tiny random folders as Hugging Face has them, made without torch."""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from ringworld.models.world import specs
from ringworld.params import paths
from ringworld.text.tokenizer import train_tokenizer
from ringworld.weights.huggingface import read_world
from ringworld.weights.names import BY_OURS

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rope_theta": 50000.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def draw_tensors(config: dict[str, Any], dtype: Any = ml_dtypes.bfloat16) -> dict[str, np.ndarray]:
    """Random tensors by Hugging Face name, of the shapes that the config asks for."""
    rng, found = np.random.default_rng(0), {}
    for ours, param in paths(specs(read_world(config))).items():
        name = BY_OURS[ours]
        shape = name.shape_there(param.shape[1:] if name.layered else param.shape)
        for l in range(param.shape[0] if name.layered else 1):
            start = 1.0 if ours.endswith("norm") else 0.0
            drawn = rng.normal(start, 0.2, shape).astype(np.float32)
            found[name.hugging_face.format(l)] = drawn.astype(dtype)
    return found


def write_tiny(path: Path, dtype: Any = ml_dtypes.bfloat16, **more: Any) -> dict[str, np.ndarray]:
    """Write a whole folder at `path`, tokenizer and template too; returns its tensors."""
    config = CONFIG | more
    tensors = draw_tensors(config, dtype)
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    train_tokenizer(iter(["one two three"] * 8), 280).backend.save(str(path / "tokenizer.json"))
    (path / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    (path / "generation_config.json").write_text('{"eos_token_id": [2, 3]}', encoding="utf-8")
    return tensors
