"""What can be asked of `ringworld serve`. Imports no JAX."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from ringworld.errors import InputError
from ringworld.settings import Extension, MeshShape, WeightOptions

# Addresses that only this machine reaches, and the names that a browser has for them.
LOOPBACK = ("127.0.0.1", "localhost", "::1")
# One part in so many of the cache is for codes.
CODES_PART = 16
# The environment's name of the key, which a list of processes does not show.
KEY_VARIABLE = "RINGWORLD_API_KEY"


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Serve a model over HTTP as OpenAI's API, with a page to talk to it."""

    model: Positional[Path]
    """a model folder, a weights file, or the name of a fetched model"""
    host: str = "127.0.0.1"
    """the address to listen on; others than this machine's own need a key"""
    port: int = 8000
    """the port to listen on"""
    api_key: str | None = None
    """the key that requests must bring, or several with commas; without it RINGWORLD_API_KEY"""
    insecure: bool = False
    """listen on any address without a key"""
    served_model_name: str | None = None
    """what clients call the model; without it the name of its folder or file"""
    context: int | None = None
    """tokens of prompt and answer; more than the model was trained for extends its RoPE"""
    rope: Extension = "yarn"
    """how RoPE is extended to a longer context"""
    template: str | None = None
    """lwm, needle or a file of Jinja; without it the model's own"""
    rows: int = 8
    """answers that are written at one time"""
    cache_gib: float = 4.0
    """the most GiB of keys and values and of films' codes, over all devices"""
    int8: bool = False
    """keep keys and values as int8"""
    max_new_tokens: int = 512
    """the longest answer of a chat request that does not say"""
    max_queued_requests: int = 64
    """requests that may wait; more are refused with 503"""
    max_queued_tokens: int = 4 << 20
    """tokens of prompts that may wait; more are refused with 503"""
    drain_seconds: int = 30
    """how long answers that are being written have to end after SIGTERM or Ctrl-C"""
    fps: float = 1.0
    """frames taken from a film, per second, where a request does not say"""
    allowed_local_media_path: Path | None = None
    """a folder whose films and pictures requests may name as file:// URLs; without it none"""
    allowed_media_domains: tuple[str, ...] = ()
    """hosts whose films and pictures requests may name, over https; http://HOST for plain HTTP"""
    reports: Path | None = None
    """a folder of reports that the page shows; without it the run that the model lies in"""
    weights: Annotated[WeightOptions, arg(name="")] = WeightOptions()
    mesh: MeshShape = field(default_factory=MeshShape)

    def __post_init__(self) -> None:
        for name in ("rows", "max_new_tokens", "max_queued_requests", "max_queued_tokens"):
            if getattr(self, name) < 1:
                raise InputError(
                    f"{name} is {getattr(self, name)} and nothing could be served: use 1 or more",
                    setting=name,
                )
        if self.drain_seconds < 0:
            raise InputError(
                f"drain_seconds is {self.drain_seconds}: use 0 or more", setting="drain_seconds"
            )
        if not 0 <= self.port < 1 << 16:
            raise InputError(f"there is no port {self.port}: use 0 to 65535", setting="port")
        if not self.is_local and not self.keys and not self.insecure:
            raise InputError(
                f"everyone who reaches {self.host} could use the model: give a key or allow it",
                setting="api_key",
            )

    @property
    def cache_bytes(self) -> int:
        """The most bytes of keys and values and of films' codes."""
        return int(self.cache_gib * (1 << 30))

    @property
    def code_bytes(self) -> int:
        """The part of `cache_bytes` for the codes of pictures and films, where the model has any.

        A code is 4 bytes, and its keys and values are 64 and more: what is left of a film longest
        is its codes.
        """
        return self.cache_bytes // CODES_PART

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of which requests must bring one; empty when they need none."""
        given = (self.api_key or os.environ.get(KEY_VARIABLE) or "").split(",")
        return tuple(key for part in given if (key := part.strip()))

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches the server."""
        return self.host in LOOPBACK

    @property
    def name(self) -> str:
        """What clients call the model."""
        return self.served_model_name or self.model.stem or "model"
