"""Clips as jobs: begun, watched, fetched and deleted, over real connections."""

import json
import time
import warnings
from typing import Any

import numpy as np
import openai
import pytest

from ringworld.errors import InputError
from ringworld.media.clip import read_clip
from ringworld.media.sampling import FrameSampling
from ringworld.serve import videos
from ringworld.serve.bodies import parse_form
from tests.serving import Running, wait_until_idle

ASKED: dict[str, Any] = dict(prompt="a red circle moves left", num_frames=2, fps=2, seed=5)


def frames_of(content: bytes) -> np.ndarray:
    return read_clip(content, FrameSampling(fps=2.0), size=64).frames


def wait_for(server: Running, name: str) -> Any:
    for _ in range(6000):
        told = json.loads(server.ask("GET", f"/v1/videos/{name}")[2])
        if told["status"] in ("completed", "failed"):
            return told
        time.sleep(0.05)
    raise AssertionError("the video is not finished within five minutes")


def test_a_video_is_a_job_whose_file_is_that_of_the_direct_answer(server: Running) -> None:
    status, told = server.post("/v1/videos", **ASKED)
    assert status == 200 and told["status"] == "queued" and told["size"] == "64x64"
    assert told["seconds"] == "1" and told["id"] in server.ask("GET", "/v1/videos")[2].decode()
    done = wait_for(server, told["id"])
    assert (done["status"], done["progress"], done["error"]) == ("completed", 100, None)
    path = f"/v1/videos/{told['id']}"
    code, headers, content = server.ask("GET", f"{path}/content")
    assert code == 200 and headers["content-type"] == "video/mp4"
    assert frames_of(content).shape == (2, 64, 64, 3)
    code, _, direct = server.ask("POST", "/v1/videos/sync", ASKED)
    assert code == 200
    np.testing.assert_array_equal(frames_of(direct), frames_of(content))
    code, headers, moving = server.ask(
        "POST",
        "/v1/videos/sync",
        {**ASKED, "output_format": "gif", "num_frames": None, "seconds": 1},
    )
    assert headers["content-type"] == "image/gif" and len(frames_of(moving)) == 2
    other = {"Authorization": "Bearer another"}
    assert server.ask("GET", path, **other)[0] == 404
    assert server.ask("DELETE", path, **other)[0] == 404
    assert json.loads(server.ask("DELETE", path)[2])["deleted"] is True
    assert server.ask("GET", path)[0] == 404


def test_openais_client_asks_for_a_video_by_a_form_and_fetches_it(server: Running) -> None:
    client, more = server.client, {"num_frames": 2, "fps": 2, "seed": 5, "output_format": "webm"}
    asked: Any = dict(prompt=ASKED["prompt"], model="nano", extra_body=more)
    with warnings.catch_warnings():  # the vendor has ended its own service
        warnings.simplefilter("ignore", DeprecationWarning)
        job = client.videos.create_and_poll(**asked)
        assert (job.status, job.size, job.seconds) == ("completed", "64x64", "1")
        answer = client.videos.download_content(job.id)
        film = answer.content
        with pytest.raises(openai.BadRequestError, match="input_reference is not supported"):
            client.videos.create(**asked, input_reference=("a.png", b"123", "image/png"))
        with pytest.raises(openai.BadRequestError, match="seconds"):
            client.videos.create(prompt="x", seconds="many")  # type: ignore[arg-type]
    assert answer.response.headers["content-type"] == "video/webm"
    direct = server.ask("POST", "/v1/videos/sync", {**ASKED, "output_format": "webm"})[2]
    np.testing.assert_array_equal(frames_of(film), frames_of(direct))
    status, told = server.post("/v1/videos", **ASKED, input_reference={"image_url": "x"})
    assert status == 400 and told["error"]["param"] == "input_reference"


def test_a_form_is_the_object_of_its_fields() -> None:
    body = (
        b'--cut\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n\xc3\xa9\r\n\r\nx\r\n'
        b'--cut\r\nContent-Disposition: form-data; name="input_reference"; filename="a.png"\r\n'
        b"Content-Type: image/png\r\n\r\n\x89PNG\r\n\x00--cut\r\n--cut--\r\n"
    )
    assert parse_form("multipart/form-data; boundary=cut", body) == {
        "prompt": "\xe9\r\n\r\nx",
        "input_reference": {"filename": "a.png"},
    }
    for kind in ("multipart/form-data", "multipart/form-data; boundary=other"):
        assert parse_form(kind, body) == {}


def test_a_video_that_is_deleted_frees_the_engine_and_one_that_fails_says_why(
    server: Running, monkeypatch: Any
) -> None:
    status, told = server.post("/v1/videos", prompt="x", num_frames=12)
    assert status == 200
    assert server.ask("GET", f"/v1/videos/{told['id']}/content")[0] == 400
    monkeypatch.setattr(videos, "MOST_JOBS", 1)
    assert server.post("/v1/videos", **ASKED)[0] == 503
    assert server.ask("DELETE", f"/v1/videos/{told['id']}")[0] == 200
    assert wait_until_idle(server)

    def fail(*given: Any) -> bytes:
        raise InputError("a sentence")

    with monkeypatch.context() as broken:
        broken.setattr(videos, "write_clip", fail)
        failed = wait_for(server, server.post("/v1/videos", **ASKED)[1]["id"])
    assert failed["status"] == "failed" and failed["error"]["message"] == "a sentence"
    status, told = server.post("/v1/videos", prompt="x", num_frames=1000)
    assert status == 400 and "the model's context is 1,024" in told["error"]["message"]
    assert server.post("/v1/videos", prompt="x", size="720x1280")[0] == 400
    assert server.post("/v1/videos/sync", prompt="x", num_frames=1000)[0] == 400
