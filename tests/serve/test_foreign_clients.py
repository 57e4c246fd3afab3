"""Clients that need packages of their own, against a server process: pytest -s shows figures."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.environment import make_environment
from tests.serving import Process, serving

pytestmark = pytest.mark.slow

LITELLM = """
import sys
import litellm

place = dict(model="openai/nano", api_base=sys.argv[1], api_key="none", num_retries=0)
said = [{"role": "user", "content": "What is a city?"}]
asked = dict(place, messages=said, max_tokens=12, seed=1)
whole = litellm.completion(**asked)
chunks = litellm.completion(**asked, stream=True)
pieces = [chunk.choices[0].delta.content or "" for chunk in chunks]
assert "".join(pieces) == whole.choices[0].message.content != "", pieces
assert whole.usage.completion_tokens <= 12
told = litellm.responses(**place, input="What is a city?", max_output_tokens=12)
assert told.output[0].content[0].text
claude = dict(place, model="anthropic/nano", api_base=sys.argv[1].removesuffix("/v1"))
same = litellm.completion(**dict(claude, messages=asked["messages"], max_tokens=12))
assert same.choices[0].message.content == whole.choices[0].message.content
try:
    litellm.completion(**dict(asked, max_tokens=5000))
    raise SystemExit("a request beyond the context was answered")
except litellm.BadRequestError as error:
    assert "1,024" in str(error)
"""
CHECKS = "not_a_server_error,status_code_conformance,response_schema_conformance"
# Seconds that schemathesis may take; it tries the operations in turn, all of them first.
FUZZED = 600


@pytest.fixture(scope="module")
def python() -> Path:
    return make_environment(Path(__file__).with_name("clients.txt"), print)


@pytest.fixture(scope="module")
def server() -> Iterator[Process]:
    with serving("--max-new-tokens", "4") as running:
        yield running


def test_litellm_asks_streams_and_is_refused(server: Process, python: Path) -> None:
    url = f"http://127.0.0.1:{server.port}/v1"
    done = subprocess.run([python, "-c", LITELLM, url], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


def test_no_request_of_schemathesis_makes_the_server_fail(server: Process, python: Path) -> None:
    program = [str(python.with_name("schemathesis")), "run"]
    place = f"http://127.0.0.1:{server.port}/openapi.json"
    asked = ["--max-examples", "500", "--max-time", str(FUZZED), "--checks", CHECKS]
    done = subprocess.run(
        [*program, place, *asked, "--no-shrink", "--continue-on-failure", "--no-color"],
        capture_output=True,
        text=True,
    )
    print(done.stdout[-2500:])
    assert done.returncode == 0, done.stdout[-6000:]
    assert re.search(r"[1-9][\d,]* (test cases|generated)", done.stdout)
    assert server.post("/v1/completions", prompt="Hi", max_tokens=1)[0] == 200
