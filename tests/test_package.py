"""What `from ringworld import ...` gives, and what it costs."""

import inspect
import subprocess
import sys

import ringworld


def test_public_names_are_there() -> None:
    assert {"make_mesh", "Where", "attend", "load_model"} <= set(ringworld.__all__)
    for name in ringworld.__all__:
        assert getattr(ringworld, name).__doc__, name


def test_attend_keeps_its_signature() -> None:
    parameters = inspect.signature(ringworld.attend).parameters
    assert list(parameters) == ["q", "k", "v", "where", "causal", "impl"]
    keywords = {name: p.default for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
    assert keywords == {"causal": True, "impl": None}


def test_importing_the_package_starts_no_device() -> None:
    code = "import ringworld; from jax._src import xla_bridge; print(len(xla_bridge._backends))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0"
