"""Clients that need packages of their own, against a server process: pytest -s shows figures."""

import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.environment import make_environment
from ringworld.inference.generate import score_texts
from ringworld.recipes.nano import NANO_SIZES
from ringworld.train.fresh_model import FreshModel
from ringworld.weights.model import load_model
from ringworld.weights.shipped import NANO
from tests.serving import BOOK, Process, film, serving, user

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
CHOICES = """
task: cities
dataset_path: json
dataset_kwargs: {data_files: {test: choices.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{label}}"
metric_list: [{metric: acc}]
"""
BOOKS = """
task: books
dataset_path: json
dataset_kwargs: {data_files: {test: books.jsonl}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: byte_perplexity}]
"""
QUESTIONS = [
    {"question": "It was the best of", "choices": ["times", "men", "days"], "label": 0},
    {"question": "And God said, Let there be", "choices": ["light", "a city"], "label": 0},
]
FILMS = """
task: films
dataset_path: json
dataset_kwargs: {data_files: {test: films.jsonl}}
test_split: test
output_type: generate_until
doc_to_visual: !function films.find_films
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {max_new_tokens: 8, temperature: 0}
metric_list: [{metric: exact_match}]
"""
FIND_FILMS = """
def find_films(row):
    return [row["film"]]
"""
CHECKS = "not_a_server_error,status_code_conformance,response_schema_conformance"
# Seconds that schemathesis may take; its own --max-time would repeat the examples until then.
FUZZED = 5400


@pytest.fixture(scope="module")
def python() -> Path:
    return make_environment(Path(__file__).with_name("clients.txt"), print)


@pytest.fixture(scope="module")
def server() -> Iterator[Process]:
    with serving("--max-new-tokens", "4", "--max-queued-requests", "1000000") as running:
        yield running


@pytest.fixture(scope="module")
def small_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A server of a model of one narrow layer: what it is asked to draw holds up nobody."""
    llama = replace(NANO_SIZES.llama, layers=1, model=32, mlp=32, heads=1, head_width=32)
    folder = tmp_path_factory.mktemp("models") / "small"
    model = replace(NANO_SIZES, llama=llama)
    FreshModel(name="small", model=model, parts=NANO, seed=0).write(folder, None)
    asked = ("--max-queued-requests", "1000000", "--max-queued-tokens", "1000000000")
    with serving(str(folder), "--max-new-tokens", "4", *asked) as running:
        yield running


def test_litellm_asks_streams_and_is_refused(server: Process, python: Path) -> None:
    url = f"http://127.0.0.1:{server.port}/v1"
    done = subprocess.run([python, "-c", LITELLM, url], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


def test_lm_eval_has_the_scores_of_our_own_scoring(server: Process, tmp_path: Path) -> None:
    python = make_environment(Path(__file__).with_name("lm_eval.txt"), print)
    texts = [{"text": BOOK[:400]}, {"text": "In the beginning God created the heaven."}]
    for name, task, rows in (("choices", CHOICES, QUESTIONS), ("books", BOOKS, texts)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (tmp_path / f"{name}.yaml").write_text(task)
    place = f"model=nano,base_url=http://127.0.0.1:{server.port}/v1/completions"
    asked = ["--model", "local-completions", "--model_args", f"{place},tokenizer_backend=remote"]
    done = subprocess.run(
        [python, "-m", "lm_eval", *asked, "--tasks", "cities,books", "--include_path", "."]
        + ["--log_samples", "--output_path", "out"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    model = load_model(NANO)
    words, weights = model.tokenizer, model.sharded_weights()

    def score(ids: list[int], start: int) -> float:
        """The log-probability of the ids from `start` on."""
        row = np.asarray([ids], np.int32)
        return float(score_texts(weights, row, model.config)[0][start - 1 :].sum())

    def said(task: str) -> list[list[Any]]:
        [path] = (tmp_path / "out").rglob(f"samples_{task}_*.jsonl")
        samples = [json.loads(line) for line in path.read_text().splitlines()]
        return [each["resps"] for each in sorted(samples, key=lambda each: each["doc_id"])]

    for found, row in zip(said("cities"), QUESTIONS, strict=True):
        for answer, choice in zip(found, row["choices"], strict=True):
            context = words.encode(row["question"])
            ids = words.encode(row["question"] + " " + choice)
            assert float(answer[0][0]) == pytest.approx(score(ids, len(context)), abs=1e-5)
    for found, row in zip(said("books"), texts, strict=True):
        whole = score([words.bos, *words.encode(row["text"])], 1)
        assert float(found[0][0]) == pytest.approx(whole, rel=1e-5)
    print("lm-eval: 5 choices and 2 texts as scored by us")


def test_lmms_eval_shows_films_and_counts_right_answers(tmp_path: Path) -> None:
    """The answers that we get for the same frames are right, and as many others are wrong."""
    python, frames = make_environment(Path(__file__).with_name("lmms_eval.txt"), print), 5
    # A torchvision that was built for another torch is worse than none: transformers needs neither.
    if subprocess.run([python, "-c", "import torchvision"], capture_output=True).returncode:
        subprocess.run([python, "-m", "pip", "uninstall", "--yes", "torchvision"], check=True)
    rows = []
    with serving("--allowed-local-media-path", str(tmp_path)) as server:
        for place, asked in enumerate(("What is shown?", "Describe the video.")):
            film(tmp_path, 8 + place)
            path = (tmp_path / "film.mp4").rename(tmp_path / f"{place}.mp4")
            part = {"type": "video_url", "video_url": {"url": path.as_uri()}}
            status, answer = server.post(
                "/v1/chat/completions",
                messages=user(part, {"type": "text", "text": asked}),
                max_tokens=8,
                temperature=0,
                media_io_kwargs={"video": {"num_frames": frames}},
            )
            assert status == 200 and answer["choices"][0]["message"]["content"]
            for said in (answer["choices"][0]["message"]["content"], "something else"):
                rows.append({"question": asked, "film": str(path), "answer": said})
        (tmp_path / "films.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (tmp_path / "films.yaml").write_text(FILMS)
        (tmp_path / "films.py").write_text(FIND_FILMS)
        place = f"model=nano,base_url=http://127.0.0.1:{server.port}/v1,api_key=none,timeout=300"
        done = subprocess.run(
            [python, "-m", "lmms_eval", "--model", "openai", "--model_args"]
            + [f"{place},pass_video_url=True,max_frames_num={frames}", "--tasks", "films"]
            + ["--include_path", ".", "--log_samples", "--output_path", "out"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=900,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    (told,) = tmp_path.glob("out/**/*results.json")
    assert json.loads(told.read_text())["results"]["films"]["exact_match,none"] == 0.5


# More videos than a server keeps are refused with 503, on purpose; everything else may not fail.
SETTINGS = """
[[operations]]
include-path = "/v1/videos"

[operations.checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", "503"]
"""


# In two of the phases more than one worker makes Python 3.11 fail to parse lambdas of hypothesis
# ("AST constructor recursion depth mismatch").
@pytest.mark.parametrize(("phases", "workers"), [("fuzzing", "4"), ("coverage,stateful", "1")])
def test_no_request_of_schemathesis_makes_the_server_fail(
    phases: str, workers: str, small_server: Process, python: Path, tmp_path: Path
) -> None:
    program = [str(python), "-m", "schemathesis.cli", "run"]
    place = f"http://127.0.0.1:{small_server.port}/openapi.json"
    asked = ["--max-examples", "500", "--workers", workers, "--request-timeout", "600"]
    asked += ["--checks", CHECKS, "--phases", phases]
    (tmp_path / "schemathesis.toml").write_text(SETTINGS)
    done = subprocess.run(
        [*program, place, *asked, "--no-shrink", "--continue-on-failure", "--no-color"],
        cwd=tmp_path,  # where it keeps what it has found
        capture_output=True,
        text=True,
        timeout=FUZZED,
    )
    print(done.stdout[-2500:])
    assert done.returncode == 0, done.stdout[-6000:]
    assert re.search(r"[1-9][\d,]* (test cases|generated)", done.stdout)
    assert small_server.post("/v1/completions", prompt="Hi", max_tokens=1)[0] == 200
