"""`runners.eval` on generated answers: from a checkpoint and from real servers."""

from __future__ import annotations

import html.parser
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

pytest.importorskip("torch", reason="needs the extra [hf]")
pytest.importorskip("transformers", reason="needs the extra [hf]")
pytest.importorskip("rouge_score", reason="needs the extra [hf]")

from conftest import child_environment
from flows import PATIENCE_S
from hf_tiny import (
    make_task,
    make_tokenizer,
    one_thread,
    read_json,
    read_jsonl,
    run_task,
    save_llama,
    sentences,
    step_view,
    write_jsonl,
)

from nexa_hpc.core.handlers import Progress, find_handler
from nexa_hpc.core.servers import Handle, Servers
from nexa_hpc.errors import StepError, UnknownNameError, UserError

one_thread()

TEMPLATE = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"
SETTINGS: dict[str, Any] = {"task": "generation", "max_new_tokens": 8}


class Project:
    """A project with a tiny causal model, prompts and chats."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.model = save_llama(root / "tiny")
        tokenizer = make_tokenizer()
        tokenizer.chat_template = TEMPLATE
        tokenizer.save_pretrained(self.model)
        self.prompts = [row["text"] for row in sentences(24, 3)]
        rows = [
            # A third of the references are what the model says.
            {
                "prompt": text,
                "reference": self.says(text) if number % 3 == 0 else "the cast is fine",
            }
            for number, text in enumerate(self.prompts)
        ]
        self.rows = write_jsonl(root / "rows.jsonl", rows)
        chats: list[dict[str, Any]] = [
            {"messages": [_said("user", text), _said("assistant", "the plot is good")]}
            for text in self.prompts
        ]
        chats.append({"messages": [_said("user", "the film")]})
        self.chats = write_jsonl(root / "chats.jsonl", chats)
        texts = [{"text": text} for text in self.prompts]
        texts.append({"text": " ".join(["the film is good and the story is fine"] * 9)})
        self.texts = write_jsonl(root / "texts.jsonl", texts)
        (root / "nexa.yaml").write_text("{}\n")
        self.servers = Servers(root / ".nexa_state/serve")

    def says(self, prompt: str, *, plain: bool = False) -> str:
        """Return what transformers' own greedy search makes of `prompt`, alone; of a `plain` one
        without special tokens.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model = AutoModelForCausalLM.from_pretrained(self.model)
        tokenizer = AutoTokenizer.from_pretrained(self.model)
        ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=not plain)["input_ids"]
        done = model.generate(ids, max_new_tokens=8, do_sample=False)
        return str(tokenizer.decode(done[0][ids.shape[1] :], skip_special_tokens=True))

    def evaluate(
        self,
        name: str,
        dataset: Path | None = None,
        *,
        on_progress: Callable[[Progress], None] = lambda _: None,
        **params: Any,
    ) -> Path:
        """Evaluate the checkpoint, or the endpoint among `params`, and return the result."""
        inputs = {"dataset": dataset or self.rows}
        if "endpoint" not in params:
            inputs["checkpoint"] = self.model
        task = make_task(
            "runners.eval",
            self.root,
            self.root / name,
            {**SETTINGS, **params},
            inputs,
            on_progress=on_progress,
        )
        return run_task(replace(task, servers=self.servers.folder))

    def serve(self, name: str, *options: str) -> Handle:
        """Start a server of the model, by the command line, as a user does."""
        flags = [
            part for option in ("token=true", "threads=1", *options) for part in ("-O", option)
        ]
        subprocess.run(
            [sys.executable, "-m", "nexa_hpc", "serve", "start", "tiny", "--name", name, *flags],
            cwd=self.root, env=child_environment(), capture_output=True, check=True, timeout=180,
        )  # fmt: skip
        return self.servers.get(name)


def _said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def evaluated(project: Project) -> Path:
    return project.evaluate("evaluated", batch_size=5)


def predictions(out: Path) -> list[str]:
    return [line["prediction"] for line in read_jsonl(out / "predictions.jsonl")]


# ------------------------------------------------------------------------------------ a checkpoint


def test_answers_in_batches_are_those_of_greedy_search_one_by_one(
    project: Project, evaluated: Path
) -> None:
    assert predictions(evaluated) == [project.says(text) for text in project.prompts]


def test_the_figures_are_flat_numbers_over_all_rows(evaluated: Path) -> None:
    metrics = read_json(evaluated / "metrics.json")
    lines = read_jsonl(evaluated / "predictions.jsonl")
    for name in ("exact_match", "rouge1", "rouge2", "rougeL", "rougeLsum"):
        mean = sum(line[name] for line in lines) / len(lines)
        assert metrics[name] == pytest.approx(mean, abs=1e-6)
    assert 8 / 24 <= metrics["exact_match"] < 1
    assert metrics["n"] == 24 and 0 < metrics["mean_new_tokens"] <= 8
    assert metrics["seconds_per_row"] > 0


@pytest.mark.parametrize(
    ("reference", "answer", "rouge1", "rouge2", "rougel", "rougelsum"),
    [
        ("the cat sat", "the cat sat on the mat", 2 / 3, 4 / 7, 2 / 3, 2 / 3),
        ("the cat sat", "sat cat the", 1, 0, 1 / 3, 1 / 3),
        ("The Cat!", "the cat", 1, 1, 1, 1),
        ("one two\nthree four", "three four\none two", 1, 2 / 3, 1 / 2, 1),
        ("one", "", 0, 0, 0, 0),
    ],
)
def test_rouge_is_the_librarys_own_on_pairs_worked_out_by_hand(
    reference: str, answer: str, rouge1: float, rouge2: float, rougel: float, rougelsum: float
) -> None:
    from rouge_score import rouge_scorer

    from nexa_hpc.backends.hf import generation
    from nexa_hpc.backends.hf.chats import Answer, Example

    (scored,) = generation.score([Example("p", reference)], [Answer(answer, 1, "stop")])
    found = [scored.scores[name] for name in generation.ROUGE]
    assert found == pytest.approx([rouge1, rouge2, rougel, rougelsum])
    library = rouge_scorer.RougeScorer(list(generation.ROUGE)).score(reference, answer)
    assert found == [library[name].fmeasure for name in generation.ROUGE]


def test_exact_match_passes_over_white_space_around_and_over_nothing_else() -> None:
    from nexa_hpc.backends.hf import generation
    from nexa_hpc.backends.hf.chats import Answer, Example

    said = (" Paris\n", "paris", "Paris.")
    scored = generation.score([Example("p", "Paris")] * 3, [Answer(s, 1, "stop") for s in said])
    assert [row.scores["exact_match"] for row in scored] == [1, 0, 0]


class _Words(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []

    def handle_data(self, data: str) -> None:
        self.words += data.split()


def words_of(page: Path) -> str:
    reader = _Words()
    reader.feed(page.read_text())
    return " ".join(reader.words)


def test_the_report_shows_figures_with_intervals_and_the_worst_and_best_answers(
    evaluated: Path,
) -> None:
    text = words_of(evaluated / "report.html")
    share = read_json(evaluated / "metrics.json")["exact_match"]
    assert f"Exact match {share:.1%} 95 % interval" in text
    for words in ("ROUGE-1", "ROUGE-Lsum", "Worst answers", "Best answers", "max_new_tokens 8"):
        assert words in text
    assert predictions(evaluated)[0] in text
    assert (evaluated / "scores.png").read_bytes().startswith(b"\x89PNG")


def test_of_a_chat_the_last_message_is_the_reference(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = read_jsonl(project.evaluate("chats", project.chats) / "predictions.jsonl")
    assert len(lines) == 24
    assert "1 of 25 rows have no prompt, or no answer" in capsys.readouterr().out
    assert lines[0]["prompt"] == [_said("user", project.prompts[0])]
    assert lines[0]["reference"] == "the plot is good"
    assert lines[0]["prediction"] == project.says(f"user {project.prompts[0]} ", plain=True)


def test_chats_want_a_template(project: Project, tmp_path: Path) -> None:
    model = save_llama(tmp_path / "plain")
    inputs = {"checkpoint": model, "dataset": project.chats}
    task = make_task("runners.eval", project.root, tmp_path / "out", SETTINGS, inputs)
    with pytest.raises(StepError, match="makes no prompt of a chat"):
        run_task(task)


def test_columns_of_other_names_are_taken_as_named(project: Project) -> None:
    rows = [{"question": text, "answer": "good", "prompt": "x"} for text in project.prompts[:3]]
    file = write_jsonl(project.root / "questions.jsonl", rows)
    named = {"prompt_column": "question", "reference_column": "answer"}
    lines = read_jsonl(project.evaluate("named", file, **named) / "predictions.jsonl")
    assert [line["prompt"] for line in lines] == project.prompts[:3]
    with pytest.raises(StepError, match=r"which column .* is the reference"):
        project.evaluate("unnamed", file)


def test_only_the_metrics_asked_for_are_given(project: Project) -> None:
    out = project.evaluate("chosen", metrics=["rougeL"], max_rows=4)
    names = {"rougeL", "mean_new_tokens", "seconds_per_row", "n"}
    assert set(read_json(out / "metrics.json")) == names


def test_an_answer_ends_before_a_stop_text(project: Project, evaluated: Path) -> None:
    whole = predictions(evaluated)
    word = next(text for text in whole if text.split()).split()[-1]
    cut = predictions(project.evaluate("stopped", stop=[word]))
    assert cut == [text[: text.find(word)] if word in text else text for text in whole]


def test_sampled_answers_are_the_same_for_the_same_seed(project: Project) -> None:
    first, again, other = (
        predictions(project.evaluate(f"sampled{number}", temperature=1.5, seed=seed))
        for number, seed in enumerate((1, 1, 2))
    )
    assert first == again != other


def test_prompts_that_leave_no_room_are_refused_before_any_answer(project: Project) -> None:
    with pytest.raises(StepError, match=r"take .* tokens, and a checkpoint reads 32"):
        project.evaluate("long", max_new_tokens=30)


# ------------------------------------------------------------------------------ refused at planning


def problems(project: Path, params: dict[str, Any], **view: Any) -> dict[str, str]:
    step = step_view("runners.eval", project, {"dataset": "glue", **params}, **view)
    return {str(key): text for key, text in find_handler("runners.eval", project).validate(step)}


URL = "http://127.0.0.1:8000"


@pytest.mark.parametrize(
    ("params", "key", "words"),
    [
        ({"model": "m", "task": "generation", "metrics": ["accuracy"]}, "metrics", "no accuracy"),
        ({"model": "m", "metrics": ["accuracy", "loss"]}, "metrics", "no task has all of"),
        ({"model": "m", "task": "generation", "max_length": 9}, "max_length", "other tasks"),
        ({"model": "m", "max_new_tokens": 9}, "max_new_tokens", "task: generation"),
        ({"model": "m", "task": "generation", "stop": "."}, "stop", "a list of texts"),
        ({"model": "m", "concurrency": 2}, "concurrency", "no.* is named"),
        ({"task": "generation", "endpoint": "host:80"}, "endpoint", "a URL such as"),
        ({"task": "generation", "endpoint": "http://u:p@h"}, "endpoint", "without credentials"),
        ({"endpoint": URL}, "task", "say which"),
        ({"task": "text_classification", "endpoint": URL}, "task", "say which"),
        ({"task": "generation", "endpoint": URL, "batch_size": 2}, "batch_size", "concurrency"),
        ({"task": "generation", "endpoint": URL, "token_variable": "T"}, "token_variable", "env"),
        ({"task": "generation", "endpoint": "x", "token_variable": "T"}, "token_variable", "URL"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(
    tmp_path: Path, params: dict[str, Any], key: str, words: str
) -> None:
    import re

    assert re.search(words, problems(tmp_path, params)[f"params.{key}"])


def test_of_checkpoint_model_and_endpoint_one_is_named(tmp_path: Path) -> None:
    params = {"task": "causal_lm", "endpoint": URL}
    assert "keep one" in problems(tmp_path, {**params, "model": "m"})["in.model"]
    inputs = {"checkpoint": "c", "endpoint": "serve"}
    assert "keep one" in problems(tmp_path, {"task": "causal_lm"}, inputs=inputs)["in.checkpoint"]
    assert problems(tmp_path, {"task": "causal_lm"}, inputs={"endpoint": "serve"}) == {}


def test_a_secret_that_is_listed_may_hold_the_token(tmp_path: Path) -> None:
    params = {"task": "generation", "endpoint": URL, "token_variable": "T"}
    assert problems(tmp_path, params, env={"secrets": ["T"]}) == {}


def test_columns_that_a_file_does_not_have_are_refused_at_planning(project: Project) -> None:
    params = {"model": "m", "task": "generation", "dataset": "rows.jsonl"}
    found = problems(project.root, {**params, "prompt_column": "promt"})
    assert "did you mean 'prompt'?" in found["params.prompt_column"]
    assert problems(project.root, {**params, "prompt_column": "prompt"}) == {}
    (project.root / "made").symlink_to("rows.jsonl")
    assert problems(project.root, {**params, "dataset": "made", "prompt_column": "new"}) == {}
    (project.root / "rows.csv").write_text("question,answer\na,b\n")
    found = problems(project.root, {**params, "dataset": "rows.csv", "reference_column": "label"})
    assert "it has: question, answer" in found["params.reference_column"]


def test_planning_says_that_the_key_does_not_know_what_answers(tmp_path: Path) -> None:
    params = {"dataset": "glue", "task": "generation", "endpoint": "shared"}
    step = step_view("runners.eval", tmp_path, params)
    (warning,) = find_handler("runners.eval", tmp_path).warn(step)
    assert "'shared' by that text alone" in warning


def test_a_library_that_is_missing_is_told_at_planning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    told = problems(tmp_path, {"task": "generation", "endpoint": URL})["backend"]
    assert "pip install 'nexa-hpc[hf]'" in told


def test_an_endpoint_where_nobody_listens_is_told_with_its_url(project: Project) -> None:
    with pytest.raises(StepError, match=r"http://127.0.0.1:9 does not answer") as told:
        project.evaluate("nobody", endpoint="http://127.0.0.1:9")
    assert told.value.hint == "nexa-hpc serve list"
    with pytest.raises(UnknownNameError, match="no server 'nobody'"):
        project.evaluate("unknown", endpoint="nobody")
    with pytest.raises(UserError, match="NEXA_TEST_ABSENT is not set"):
        project.evaluate("absent", endpoint=URL, token_variable="NEXA_TEST_ABSENT")


class Answers(http.server.BaseHTTPRequestHandler):
    """Answers as some server elsewhere does that is not ours: `said` is status and body by path."""

    said: ClassVar[dict[str, list[tuple[int, str]]]] = {}
    meets: ClassVar[threading.Barrier | None] = None
    """Where completions wait until as many are there at once."""
    present: ClassVar[list[int]] = []
    most: ClassVar[list[int]] = []

    def do_POST(self) -> None:
        if self.meets is not None:
            self.present.append(1)
            self.most.append(len(self.present))
            self.meets.wait(PATIENCE_S)
            self.present.pop()
        self.do_GET()

    def do_GET(self) -> None:
        answers = self.said.get(self.path, [(404, "")])
        status, text = answers[0] if len(answers) == 1 else answers.pop(0)
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(status)
        kind = "application/json" if text.startswith("{") else "text/html"
        headers = {"Content-Type": kind, "Content-Length": len(text), "Retry-After": "0.01"}
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def elsewhere() -> Iterator[str]:
    """The URL of a server whose answers a test writes into `Answers.said`."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def models(*names: str) -> list[tuple[int, str]]:
    """Return the answer of /v1/models."""
    return [(200, json.dumps({"object": "list", "data": [{"id": name} for name in names]}))]


def test_of_several_models_one_is_to_be_named(project: Project, elsewhere: str) -> None:
    Answers.said = {"/v1/models": models("small", "large")}
    with pytest.raises(StepError, match="serves several models or none: small, large"):
        project.evaluate("several", endpoint=elsewhere)


def test_a_page_of_another_kind_of_server_is_no_endpoint(project: Project, elsewhere: str) -> None:
    Answers.said = {"/v1/models": [(200, "<html>Welcome</html>")]}
    with pytest.raises(StepError, match="does not answer as OpenAI's endpoints do"):
        project.evaluate("page", endpoint=elsewhere)


def test_perplexity_wants_a_server_that_tells_tokens(project: Project, elsewhere: str) -> None:
    Answers.said = {"/v1/models": models("m")}
    with pytest.raises(StepError, match=r"has no /tokenize, which perplexity takes") as told:
        project.evaluate("no_tokens", project.texts, endpoint=elsewhere, task="causal_lm")
    assert "hf_runtime and vllm have it" in str(told.value.hint)
    choice = {"index": 0, "text": "", "finish_reason": "stop", "logprobs": None}
    Answers.said["/tokenize"] = [(200, json.dumps({"tokens": [1, 2, 3]}))]
    Answers.said["/v1/completions"] = [(200, json.dumps({"choices": [choice]}))]
    with pytest.raises(StepError, match="does not tell how probable"):
        project.evaluate("no_logprobs", project.texts, endpoint=elsewhere, task="causal_lm")


def test_a_server_that_is_overloaded_is_asked_again_as_it_wishes(
    project: Project, elsewhere: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy = [(503, "{}"), (429, "{}")] * 6
    done = {"choices": [{"index": 0, "text": "good", "finish_reason": "stop"}]}
    Answers.said = {"/v1/models": [*busy, *models("m")]}
    Answers.said["/v1/completions"] = [*busy, (200, json.dumps(done))]
    out = project.evaluate("overloaded", endpoint=elsewhere, max_rows=3)
    assert predictions(out) == ["good"] * 3
    monkeypatch.setattr("nexa_hpc.backends.hf.endpoint.PATIENCE_S", 0.05)
    Answers.said["/v1/completions"] = [(503, '{"error": {"message": "overloaded"}}')]
    with pytest.raises(StepError, match=r"has been too busy for .*: overloaded"):
        project.evaluate("given_up", endpoint=elsewhere, max_rows=3)


def test_as_many_requests_are_made_at_once_as_asked_for_and_no_more(
    project: Project, elsewhere: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = {"choices": [{"index": 0, "text": "good", "finish_reason": "stop"}]}
    said = {"/v1/models": models("m"), "/v1/completions": [(200, json.dumps(done))]}
    monkeypatch.setattr(Answers, "said", said)
    monkeypatch.setattr(Answers, "meets", threading.Barrier(3))
    project.evaluate("three", endpoint=elsewhere, concurrency=3, max_rows=12)
    assert len(Answers.most) == 12 and max(Answers.most) == 3


# ------------------------------------------------------------------------------------ real servers


@pytest.fixture(scope="module")
def server(project: Project) -> Iterator[Handle]:
    """A server that wants a token; what runs at the end is stopped."""
    pytest.importorskip("fastapi", reason="needs the extra [serve]")
    yield project.serve("shared")
    for name in project.servers.names():
        project.servers.stop(project.servers.get(name))


@pytest.mark.slow
def test_a_server_gives_the_answers_of_its_checkpoint(
    project: Project, server: Handle, evaluated: Path
) -> None:
    out = project.evaluate("served", endpoint="shared")
    assert predictions(out) == predictions(evaluated)
    ours, theirs = (read_json(folder / "metrics.json") for folder in (evaluated, out))
    del ours["seconds_per_row"], theirs["seconds_per_row"]
    assert ours == theirs
    assert f"tiny, server 'shared' at {server.url}" in words_of(out / "report.html")


@pytest.mark.slow
def test_a_server_answers_chats_as_its_checkpoint_does(project: Project, server: Handle) -> None:
    local = predictions(project.evaluate("local_chats", project.chats, stop=["the"]))
    served = project.evaluate("served_chats", project.chats, endpoint="shared", stop=["the"])
    assert predictions(served) == local


@pytest.mark.slow
def test_perplexity_of_a_server_is_that_of_its_checkpoint(project: Project, server: Handle) -> None:
    settings = {"task": "causal_lm", "max_length": 16}
    local = project.evaluate("local_lm", project.texts, **settings)
    served = project.evaluate("served_lm", project.texts, **settings, endpoint="shared")
    ours, theirs = (read_json(out / "metrics.json") for out in (local, served))
    assert theirs["tokens"] == ours["tokens"]
    assert theirs == pytest.approx(ours, rel=1e-6)
    lines = (read_jsonl(out / "predictions.jsonl") for out in (local, served))
    for ours, theirs in zip(*lines, strict=True):
        assert theirs["tokens"] == ours["tokens"]
        assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-5)


@pytest.mark.slow
def test_a_token_is_wanted_taken_from_its_variable_and_kept_nowhere(
    project: Project, server: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "somebody-elses")
    with pytest.raises(StepError, match="refuses the token, or the lack of one") as told:
        project.evaluate("no_token", endpoint=server.url)
    assert "token_variable" in str(told.value.hint)
    token = project.servers.token("shared")
    assert token is not None
    monkeypatch.setenv("NEXA_TEST_TOKEN", token)
    url = f"{server.url}/v1"
    out = project.evaluate("token", endpoint=url, token_variable="NEXA_TEST_TOKEN", max_rows=2)
    for file in out.iterdir():
        assert token.encode() not in file.read_bytes()


@pytest.mark.slow
def test_a_model_that_is_not_served_is_told_with_those_that_are(
    project: Project, server: Handle
) -> None:
    with pytest.raises(StepError, match="serves no model 'large'; it has: tiny"):
        project.evaluate("other", endpoint="shared", endpoint_model="large")
    assert project.evaluate("same", endpoint="shared", endpoint_model="tiny", max_rows=1)


@pytest.mark.slow
def test_a_row_that_a_server_refuses_is_named(project: Project, server: Handle) -> None:
    with pytest.raises(StepError, match=r"refuses row \d+: .*more than the 32 of this model"):
        project.evaluate("too_long", endpoint="shared", max_new_tokens=31)


@pytest.mark.slow
def test_a_server_that_is_too_busy_is_asked_again_until_all_is_answered(
    project: Project, evaluated: Path, server: Handle
) -> None:
    project.serve("busy", "max_queue=1", "max_batch=1")
    out = project.evaluate("busy", endpoint="busy", concurrency=12)
    assert predictions(out) == predictions(evaluated)


@pytest.mark.slow
def test_a_server_that_is_killed_half_way_ends_the_step_in_words(
    project: Project, server: Handle
) -> None:
    doomed = project.serve("doomed")
    tag = f"NEXA_HPC_SERVER={doomed.tag}".encode()

    def kill(_: Progress) -> None:
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if tag in (folder / "environ").read_bytes().split(b"\0"):
                    os.kill(int(folder.name), signal.SIGKILL)
            except OSError:
                continue

    with pytest.raises(StepError, match=f"'doomed' at {doomed.url} does not answer") as told:
        project.evaluate("killed", endpoint="doomed", concurrency=1, on_progress=kill)
    assert told.value.hint == "nexa-hpc serve list"
    with pytest.raises(StepError, match="server 'doomed' is CRASHED"):
        project.evaluate("after", endpoint="doomed")


@pytest.mark.slow
def test_a_pipeline_asks_an_endpoint_and_promotes_by_rouge_with_the_token_in_no_record(
    project: Project, server: Handle
) -> None:
    answers = {
        "id": "eval",
        "uses": "runners.eval",
        "in": {"dataset": "rows.jsonl"},
        "out": "artifacts/eval",
        "params": {**SETTINGS, "endpoint": server.url, "token_variable": "NEXA_TEST_TOKEN"},
        # In a process of its own, where the params are checked once more.
        "env": {"python": sys.executable, "secrets": ["NEXA_TEST_TOKEN"]},
    }
    model = {
        "id": "model",
        "uses": "runners.command",
        "out": "artifacts/model",
        "params": {"command": "echo > $OUT/weights"},
    }
    register = {
        "id": "register",
        "uses": "core.registry.register",
        "params": {"name": "tiny", "uri": "model", "meta": "eval/metrics.json"},
    }
    require = {"metric": "eval.rougeL", "min": 0.3, "better_than": "tiny@production"}
    promote = {
        "id": "promote",
        "uses": "core.registry.promote",
        "after": ["register", "eval"],
        "params": {
            "name": "tiny",
            "version": "registered",
            "tag": "production",
            "require": require,
        },
    }
    steps = [model, answers, register, promote]
    file = project.root / "flow.yaml"
    file.write_text(json.dumps({"pipeline": {"name": "flow", "steps": steps}}))
    token = project.servers.token("shared")
    assert token is not None
    done = subprocess.run(
        [sys.executable, "-m", "nexa_hpc", "run", "flow.yaml"],
        cwd=project.root,
        env=child_environment(NEXA_TEST_TOKEN=token),
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "by that text alone" in done.stderr
    state = read_json(project.root / ".nexa_state/flow/pipeline_state.json")
    assert {entry["status"] for entry in state["steps"].values()} == {"COMPLETED"}
    written = [*project.root.glob(".nexa_state/**/*"), *project.root.glob("artifacts/.store/**/*")]
    holding = [p for p in written if p.is_file() and token.encode() in p.read_bytes()]
    assert holding == [project.servers.file("shared", "token")]
    assert token not in done.stdout + done.stderr
