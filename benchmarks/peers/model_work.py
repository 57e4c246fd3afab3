"""What the workers of `benchmarks.weights` share: the model's shape, its folder, the tokens."""

import json
import math
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

# SmolLM2-135M, as its config.json says.
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "hidden_act": "silu",
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "rope_theta": 100000.0,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "mlp_bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "float32",
}
WRITTEN = 128


def list_shapes() -> dict[str, tuple[int, ...]]:
    """The shape of every tensor, by its name in Hugging Face's files."""
    D, F, N, K, H = 576, 1536, 9, 3, 64
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (49152, D),
        "model.norm.weight": (D,),
    }
    for i in range(30):
        shapes |= {
            f"model.layers.{i}.self_attn.q_proj.weight": (N * H, D),
            f"model.layers.{i}.self_attn.k_proj.weight": (K * H, D),
            f"model.layers.{i}.self_attn.v_proj.weight": (K * H, D),
            f"model.layers.{i}.self_attn.o_proj.weight": (D, N * H),
            f"model.layers.{i}.mlp.gate_proj.weight": (F, D),
            f"model.layers.{i}.mlp.up_proj.weight": (F, D),
            f"model.layers.{i}.mlp.down_proj.weight": (D, F),
            f"model.layers.{i}.input_layernorm.weight": (D,),
            f"model.layers.{i}.post_attention_layernorm.weight": (D,),
        }
    return shapes


def make_folder(folder: Path) -> None:
    """A model of that shape with random weights: what is timed does not depend on their values."""
    draft = folder.with_name(f".{folder.name}.part")
    draft.mkdir(parents=True, exist_ok=True)
    rng, tensors = np.random.default_rng(0), {}
    for name, shape in list_shapes().items():
        gain = np.ones(shape, np.float32)
        scale = 1 / math.sqrt(shape[-1])
        tensors[name] = gain if len(shape) == 1 else scale * rng.standard_normal(shape, np.float32)
    save_file(tensors, draft / "model.safetensors", metadata={"format": "pt"})
    (draft / "config.json").write_text(json.dumps(CONFIG, indent=2), encoding="utf-8")
    draft.rename(folder)


def draw_prompt(length: int) -> np.ndarray:
    """The same random tokens for every worker."""
    return np.random.default_rng(1).integers(3, 49152, length).astype(np.int64)
