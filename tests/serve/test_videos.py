"""Clips as jobs: begun, watched, fetched and deleted, over real connections."""

import json
import time
from typing import Any

import numpy as np

from ringworld.media.clip import read_clip
from ringworld.media.sampling import FrameSampling
from ringworld.serve import videos
from tests.serving import Running, wait_until_idle

ASKED: dict[str, Any] = dict(prompt="a red circle moves left", num_frames=2, fps=2, seed=5)


def frames_of(content: bytes) -> np.ndarray:
    return read_clip(content, FrameSampling(fps=2.0), size=64).frames


def wait_for(server: Running, name: str) -> Any:
    for _ in range(600):
        told = json.loads(server.ask("GET", f"/v1/videos/{name}")[2])
        if told["status"] in ("completed", "failed"):
            return told
        time.sleep(0.05)
    raise AssertionError("the video is not finished within half a minute")


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
    _, told = server.post("/v1/videos", prompt="x", num_frames=1000)
    failed = wait_for(server, told["id"])
    assert failed["status"] == "failed" and "1,024" in failed["error"]["message"]
    assert server.post("/v1/videos", prompt="x", size="720x1280")[0] == 400
    assert server.post("/v1/videos/sync", prompt="x", num_frames=1000)[0] == 400
