"""Games in the dream of a model with actions, over real connections."""

import base64
import io
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image

from ringworld.chat.dream import Dream
from ringworld.chat.game import Game
from ringworld.serve import play
from ringworld.serve.engine_thread import EngineThread
from ringworld.serve.served import Served
from ringworld.tasks.play_world import ACTIONS, draw_level
from tests.serve.conftest import PLAYED
from tests.serving import Running, listening

ACTED = ("up", "left", "stay", "right", "right", "down")


def pixels_of(url: str) -> np.ndarray:
    kind, _, content = url.partition(",")
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))


def begin(server: Running, **body: Any) -> dict[str, Any]:
    status, told = server.post("/v1/play", **body)
    assert status == 200, told
    return told


def move(server: Running, told: dict[str, Any], action: str) -> dict[str, Any]:
    status, after = server.post(f"/v1/play/{told['id']}", action=action)
    assert status == 200, after
    return after


def play_here(server: Running, seed: int, actions: tuple[str, ...]) -> Iterator[Game]:
    """The game without a server: as it begins, and after each action."""
    dream = server.served.dream
    assert dream is not None
    game = Game(server.thread.call(dream.another).result())
    server.thread.call(lambda: game.begin(seed)).result()
    yield game
    for action in actions:
        server.thread.call(lambda action=action: game.move(action)).result()
        yield game


def test_a_game_shows_the_frames_of_the_dream_and_the_truth(world: Running) -> None:
    """Two games at one time, step by step, so that neither may disturb the other."""
    played = {seed: begin(world, seed=seed) for seed in (3, 4)}
    own = {seed: play_here(world, seed, ACTED) for seed in played}
    for i, action in enumerate((None, *ACTED)):
        for seed, told in played.items():
            if action is not None:
                told = played[seed] = move(world, told, action)
            game = next(own[seed])
            np.testing.assert_array_equal(pixels_of(told["frame"]), game.dream.frame)
            np.testing.assert_array_equal(pixels_of(told["truth"]), draw_level(game.truth))
            assert (told["seed"], told["step"], told["action"]) == (seed, i, action)
            assert told["agrees"] == game.agrees and told["agreed"] == i - game.wrong
            assert (told["passes"] > 0) == (i > 0) and told["goals"] in (1, 2)
    assert begin(world)["seed"] != begin(world)["seed"], "any level, where none is named"


def test_a_world_is_told_and_its_frames_are_counted(world: Running) -> None:
    def count() -> float:
        lines = world.ask("GET", "/metrics")[2].decode().splitlines()
        name = 'ringworld:dreamed_frames_total{model_name="nano-play"}'
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))

    listed = json.loads(world.ask("GET", "/v1/models")[2])["data"][0]
    assert tuple(listed["actions"]) == tuple(ACTIONS) == get_args(play.PlayAction)
    before = count()
    move(world, begin(world, seed=1), "left")
    assert count() == before + 2


def test_what_cannot_be_played_is_refused_in_one_sentence(world: Running, server: Running) -> None:
    assert json.loads(server.ask("GET", "/v1/models")[2])["data"][0]["actions"] == []
    told = begin(world, seed=1)
    place = f"/v1/play/{told['id']}"
    for asked, path, body, status, said, setting in (
        (server, "/v1/play", {}, 400, "this model has no actions", None),
        (server, "/v1/play/game_1", {"action": "up"}, 404, "there is no such game", None),
        (world, "/v1/play/game_1", {"action": "up"}, 404, "there is no such game", None),
        (world, "/v1/play", {"model": "other"}, 404, "no model of that name", "model"),
        (world, "/v1/play", {"seed": "first"}, 400, "seed: ", "seed"),
        (world, place, {"action": "jump"}, 400, "'up', 'down', 'left', 'right'", "action"),
        (world, place, {}, 400, "action: Field required", "action"),
    ):
        code, answer = asked.post(path, **body)
        assert code == status and said in answer["error"]["message"], answer
        assert answer["error"]["param"] == setting
    assert move(world, told, "up")["step"] == 1, "the game goes on"


def test_a_game_is_its_tenants_own_and_makes_room_for_newer_ones(
    dreaming: tuple[Served, EngineThread], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(play, "MOST_GAMES", 3)
    monkeypatch.setattr(play, "MOST_OF_A_TENANT", 2)
    with listening(replace(PLAYED, api_key="one,two,three"), *dreaming) as server:

        def ask(key: str, path: str = "", **body: Any) -> tuple[int, Any]:
            headers = {"Authorization": f"Bearer {key}"}
            status, _, answer = server.ask("POST", f"/v1/play{path}", body, **headers)
            return status, json.loads(answer)

        def go_on(key: str, game: str) -> int:
            return ask(key, f"/{game}", action="stay")[0]

        assert ask("four")[0] == ask("four", "/x", action="up")[0] == 401
        first, second = (ask("one")[1]["id"] for _ in range(2))
        assert go_on("two", first) == 404, "it is another tenant's"
        assert go_on("one", first) == 200
        third, other = ask("one")[1]["id"], ask("two")[1]["id"]
        assert go_on("one", second) == 404, "it was left longest ago"
        status, told = ask("three")
        assert status == 503 and "as many games" in told["error"]["message"]
        newer = ask("two")[1]["id"]
        assert go_on("two", other) == 404 and go_on("two", newer) == 200
        assert go_on("one", first) == go_on("one", third) == 200, "no game of another is given up"
        for key, status in (("two", 404), ("one", 200), ("one", 404)):
            found, _, answer = server.ask(
                "DELETE", f"/v1/play/{third}", None, Authorization=f"Bearer {key}"
            )
            assert found == status, answer
        assert go_on("one", third) == 404, "it was deleted"
        assert ask("one")[0] == 200, "which made room"
        monkeypatch.setattr(play, "KEPT_SECONDS", 0.0)
        assert go_on("one", first) == 404, "it was left too long"


def test_a_frame_that_fails_ends_its_game_and_no_other(
    world: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing, other = begin(world, seed=1), begin(world, seed=2)

    def fail(dream: Dream, action: str) -> None:
        raise RuntimeError("of the machine")

    with monkeypatch.context() as broken:
        broken.setattr(Dream, "step", fail)
        status, told = world.post(f"/v1/play/{failing['id']}", action="up")
        assert status == 500 and "machine" not in told["error"]["message"]
    assert world.post(f"/v1/play/{failing['id']}", action="up")[0] == 404
    assert move(world, other, "up")["step"] == 1


def test_one_frame_at_a_time_is_dreamed_and_what_waits_is_bounded(
    dreaming: tuple[Served, EngineThread],
) -> None:
    with listening(replace(PLAYED, max_queued_requests=2), *dreaming) as server:
        told, held = begin(server, seed=1), threading.Event()
        server.thread.call(held.wait)
        with ThreadPoolExecutor(6) as several:
            asked = [
                several.submit(server.post, f"/v1/play/{told['id']}", action="stay")
                for _ in range(6)
            ]
            done = as_completed(asked)
            assert {next(done).result()[0] for _ in range(4)} == {503}
            held.set()
            assert sorted(one.result()[1]["step"] for one in done) == [1, 2]
