"""Large bodies: parsed in a thread, to what the parser of Python makes of them."""

import asyncio
import json
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringworld.serve import bodies
from tests.serving import Running

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.text('\\"a', max_size=9),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(VALUES, st.integers(1, 8))
def test_a_body_that_is_cut_is_the_same(value: Any, long: int) -> None:
    with pytest.MonkeyPatch.context() as small:
        small.setattr(bodies, "LONG", long)
        for ascii_only in (True, False):
            body = json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
            assert bodies.parse_large(body) == json.loads(body)


@pytest.mark.parametrize(
    "body", [b'"a\nb"', b'["\x00"]', b'"', b'{"a": "', b'["x" "y"]', b"\\", b'"\\', b"", b'"a\xff"']
)
def test_what_is_no_json_is_none_when_it_is_cut(body: bytes, monkeypatch: Any) -> None:
    monkeypatch.setattr(bodies, "LONG", 0)
    with pytest.raises(ValueError):
        bodies.parse_large(body)


def test_a_large_body_is_parsed_in_a_thread_and_answered(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[bool] = []
    parse = bodies.parse_large

    def watch(body: bytes) -> Any:
        with pytest.raises(RuntimeError):
            asyncio.get_running_loop()
        parsed.append(threading.current_thread() is not threading.main_thread())
        return parse(body)

    monkeypatch.setattr(bodies, "parse_large", watch)
    padded = {"prompt": "Hi", "max_tokens": 1, "user": "x" * (1 << 20)}
    assert server.post("/v1/completions", **padded)[0] == 200
    assert server.post("/v1/completions", prompt="x y " * (1 << 19))[0] == 400
    assert parsed == [True, True]
    deep = b"[" * 100_000 + b"]" * 100_000
    status, _, _ = server.send("POST", "/v1/completions", deep)
    assert status == 400
