"""The names of the files in a model's folder: ours, Hugging Face's, diffusers' and LWM's.

Those of a tokenizer are in `ringworld.text.load`.
"""

CONFIG = "config.json"
TENSORS = "model.safetensors"
INDEX = f"{TENSORS}.index.json"  # which shard holds which tensor
CHAT_TEMPLATE = "chat_template.jinja"
GENERATION = "generation_config.json"
ABOUT = "about.txt"  # its first line says what a model was trained for

CODEC = "codec"  # the codec's folder in a model folder of ours
VQGAN_FOLDER = "vqgan"  # that of diffusers' VQModel in a folder for transformers
LWM_CODEC = "vqgan"  # the pickled file of LWM's
DIFFUSERS_TENSORS = "diffusion_pytorch_model.safetensors"
LWM_FILES = ("streaming_params", "streaming_train_state", "params")
