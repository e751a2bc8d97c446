"""Serving as a step: real servers, asked by later steps, and taken down whatever happens.

What has to do with a server's life is tried with a stand-in that answers within a moment; that a
model is really served, with `hf_runtime`.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from flows import Flow, Process, StepDict, until
from serve_steps import ASK, WAIT, Site, site
from served import save_tiny_model, write_model

from nexa_hpc import Pipeline
from nexa_hpc.backends.hf import addresses
from nexa_hpc.core.answering import silence
from nexa_hpc.core.drivers import BEAT_INTERVAL_S, Driver
from nexa_hpc.core.endpoints import Endpoint, require_living, server_name
from nexa_hpc.core.holding import HeldServers
from nexa_hpc.core.leases import Leases
from nexa_hpc.core.servers import Condition, Handle, Servers
from nexa_hpc.core.states import Standing, State
from nexa_hpc.core.truths import Truth
from nexa_hpc.errors import SpecError, StepError

__all__ = ["site"]

READS_DOTTED: StepDict = {"in": {"endpoint": "a.server"}}


# ------------------------------------------------------------------------------------- at planning


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"params": {"max_bach": 1}},
            "params.max_bach: unknown name 'max_bach'; did you mean 'max_batch'",
        ),
        ({"params": {"port": 70000}}, "params.port"),
        ({"params": {"keep": "yes"}}, "params.keep: expected true or false"),
        ({"params": {"name": "mine"}}, "is called after the step and its key"),
        ({"params": {"model": "nothing"}}, "no such file or folder"),
        ({"params": {"tensor_parallel": 2}}, "hf_runtime runs on one device"),
        (
            {"resources": {"gpus_per_node": 2}},
            "over 1 GPUs, and `resources` asks for 2: say `gpus_per_node: 1`",
        ),
        ({"backend": "hf_runtim"}, "did you mean 'hf_runtime'"),
        ({"in": {"data": "model"}}, "in.data: a server reads its `model` alone"),
        ({"env": {"container": "x.sif"}}, "env.container: a server would have to outlive it"),
        ({"out": "out/x"}, "has no files to put there"),
    ],
)
def test_what_is_wrong_with_a_serve_step_is_said_at_planning(
    site: Site, change: StepDict, words: str
) -> None:
    step = site.serve()
    step |= {**change, "params": {**step["params"], **change.get("params", {})}}
    with pytest.raises(SpecError) as found:
        site.plan(step, site.ask())
    assert words in str(found.value)


def test_tensor_parallel_is_the_number_of_gpus_that_is_asked_for(site: Site) -> None:
    step = site.serve(tensor_parallel=2, pipeline_parallel_size=2) | {"backend": "vllm"}

    def told(gpus: int) -> str:
        step["resources"] = {"gpus_per_node": gpus}
        with pytest.raises(SpecError) as found:
            site.plan(step, site.ask())
        return str(found.value)

    assert "spread over 4 GPUs, and `resources` asks for 2" in told(2)
    assert "has no vllm" in told(4) and "spread" not in told(4)


def test_a_server_that_nothing_reads_is_refused_unless_it_is_kept(site: Site) -> None:
    with pytest.raises(SpecError, match=r"no step reads it, .* say `keep: true`"):
        site.plan(site.serve(), site.flow.step("other"))
    kept = site.plan(site.serve(keep=True))
    assert kept.instances["serve"].action == "RUN"


def test_a_server_is_no_file_and_a_dry_run_is_no_server(site: Site) -> None:
    def told(*steps: StepDict) -> str:
        with pytest.raises(SpecError) as found:
            site.plan(*steps)
        return str(found.value)

    train = {"id": "t", "uses": "runners.train", "in": {"model": "serve"}, "params": {}}
    assert "'serve' is a server, and has no files to be the model" in told(site.serve(), train)
    below = site.ask(**{"in": {"endpoint": "serve/x"}})
    assert "has no files" in told(site.serve(), below)
    dry = told(site.serve(dry_run=True), site.ask())
    assert "in.endpoint: step 'serve' is a dry run: it starts no server" in dry


def test_what_changes_no_answer_changes_no_key(site: Site) -> None:
    def key(**params: Any) -> str:
        return site.plan(site.serve(**params), site.ask()).instances["ask"].key

    assert key() == key(host="localhost", port=4711, keep=True, token=True, python="/bin/python")
    assert len({key(), key(max_batch=4), key(dtype="bfloat16")}) == 3
    write_model(site.project / "other", vocab_size=3)
    assert key() != key(model="other", served_model_name="model")


def test_a_dry_run_prints_the_very_command_and_starts_nothing(site: Site) -> None:
    said = site.run(site.serve(dry_run=True, host="::1", port=8123, max_batch=4))
    line = next(line for line in said.splitlines() if str(site.stand_in.python) in line)
    argv = shlex.split(line)
    assert argv[argv.index("--port") + 1] == "8123" and argv[argv.index("--host") + 1] == "::1"
    assert argv[argv.index("--model") + 1] == str(site.project / "model")
    assert "COMPLETED" in said
    assert site.stand_in.starts() == [] and site.listed() == {}


# ------------------------------------------------------------------------------------ up, and down


def test_its_log_shows_neither_secrets_nor_its_token(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_KEY", "hush-hush")
    secret = {"env": {"secrets": ["WANDB_KEY"]}}
    site.run(site.serve(token=True, keep=True), site.ask(command=f"{ASK}; true", **secret))
    (name,) = site.servers.names()
    token = site.servers.token(name)
    printed = site.servers.file(name, "log").read_text()
    assert token and token not in printed and "hush-hush" not in printed
    assert "'WANDB_KEY': '***'" in printed


def test_a_step_asks_the_server_which_is_taken_down_after_the_last_that_does(site: Site) -> None:
    look = 'curl -s "$(tail -1 ../urls)/health" && exit 3; test $? = 7'
    steps = [site.serve(), site.ask(), site.ask("again")]
    gone = f"for i in $(seq 100); do ({look}) && exit 0; sleep 0.1; done; exit 1"
    site.run(*steps, site.flow.step("later", gone))
    assert site.flow.executed() == ["ask", "again", "later"]
    assert len(site.urls()) == 2 and len(set(site.urls())) == 1
    assert site.nothing_lives() and site.listed() == {}
    assert set(site.flow.states().values()) == {"COMPLETED"}


def test_with_results_there_no_server_is_started(site: Site) -> None:
    steps = [site.serve(), site.ask()]
    site.run(*steps)
    said = site.cli("plan", site.flow.file).stdout
    assert "nothing that reads it has to run" in said
    site.run(*steps)
    site.cli("resume")
    assert site.flow.executed() == ["ask"] and len(site.stand_in.starts()) == 1
    assert site.flow.states() == {"serve": "SKIPPED", "ask": "SKIPPED"}
    assert "SKIPPED" in site.cli("status").stdout
    # A result that has gone since is made again, and its server started for that.
    (site.project / "nexa.yaml").touch()
    for folder in (site.project / "artifacts/.store").glob("*/*"):
        next(folder.glob("answer")).unlink()
    site.run(*steps)
    assert site.flow.executed() == ["ask"] and len(site.stand_in.starts()) == 2


def test_side_by_side_it_stays_until_the_slower_one_has_ended(site: Site) -> None:
    slow = site.ask("slow", f"{WAIT}\n{ASK}", after=[])
    process = site.start("run", site.flow.write(site.serve(), site.ask(), slow), "--jobs", "2")
    until(lambda: site.flow.count("slow") and (site.project.parent / "urls").exists(), "both")
    until(lambda: site.flow.states()["ask"] == "COMPLETED", "the quick one to end")
    assert list(site.listed().values()) == ["HEALTHY"]
    site.let_go()
    process.wait()
    assert len(set(site.urls())) == 1 and site.nothing_lives()


def test_a_function_of_the_project_is_given_the_endpoint(site: Site) -> None:
    (site.project / "asking.py").write_text(
        "import urllib.request\n"
        "def ask(inputs, endpoints, out_dir):\n"
        "    found = endpoints['server']\n"
        "    assert str(inputs['server']) == found.name and found.token_file is None\n"
        "    answer = urllib.request.urlopen(found.url + '/health').read()\n"
        "    (out_dir / 'answer').write_bytes(answer)\n"
    )
    step = {"id": "ask", "uses": "asking:ask", "in": {"server": "serve"}, "out": "out/ask"}
    site.run(site.serve(), step)
    assert (site.project / "out/ask/answer").read_text() == "served"


def test_it_outlives_the_process_of_its_step_in_an_environment_of_its_own(site: Site) -> None:
    site.run({**site.serve(id_="a.server"), "env": {"setup": "true"}}, site.ask(**READS_DOTTED))
    assert site.flow.executed() == ["ask"] and site.nothing_lives()


def test_a_failed_step_takes_it_down_and_a_resume_starts_it_anew(site: Site) -> None:
    failing = "test -e ../go || exit 3\n" + ASK
    said = site.run(site.serve(), site.ask(command=failing), expect=1)
    assert "exited with 3" in said and "server" not in said.partition("exited with 3")[2]
    assert site.nothing_lives() and site.listed() == {}
    site.let_go()
    site.cli("resume")
    assert len(site.stand_in.starts()) == 2 and site.nothing_lives()
    assert set(site.flow.states().values()) == {"COMPLETED"}
    site.cli("resume")
    assert len(site.stand_in.starts()) == 2
    assert site.flow.states()["serve"] == "SKIPPED"


def test_a_server_that_does_not_come_up_fails_its_step_and_blocks_the_others(site: Site) -> None:
    site.stand_in.python.write_text("#!/bin/sh\necho no GPU here; exit 1\n")
    said = site.run(site.serve(), site.ask(), expect=1)
    assert "did not come up: the server exited with 1" in said and "no GPU here" in said
    assert site.flow.states() == {"serve": "FAILED", "ask": "BLOCKED"}
    assert site.nothing_lives()


# ------------------------------------------------------------------------------------ interrupted


@pytest.mark.parametrize("jobs", ["1", "2"])
@pytest.mark.parametrize(
    "stop",
    [Process.interrupt, lambda process: process.send(signal.SIGTERM)],
    ids=["Ctrl-C", "SIGTERM"],
)
def test_a_stopped_run_leaves_no_server_and_goes_on_with_a_new_one(
    site: Site, stop: Callable[[Process], None], jobs: str
) -> None:
    command = f"{ASK}\n{WAIT}"
    file = site.flow.write(site.serve(), site.ask(command=command))
    process = site.start("run", file, "--jobs", jobs)
    until(lambda: (site.project.parent / "urls").exists(), "the step to ask")
    stop(process)
    process.wait(expect=130)
    assert site.nothing_lives() and site.listed() == {}
    site.let_go()
    site.cli("resume")
    assert len(site.stand_in.starts()) == 2 and site.nothing_lives()
    assert set(site.flow.states().values()) == {"COMPLETED"}


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_ctrl_c_while_it_starts_leaves_nothing(site: Site, jobs: str) -> None:
    site.stand_in.gate.touch()
    process = site.start("run", site.flow.write(site.serve(), site.ask()), "--jobs", jobs)
    until(site.stand_in.starts, "the server to be started")
    process.interrupt()
    process.wait(expect=130)
    assert site.nothing_lives() and site.listed() == {}


def test_cancel_takes_it_down(site: Site) -> None:
    file = site.flow.write(site.serve(), site.ask(command=f"{ASK}\n{WAIT}"))
    process = site.start("run", file)
    until(lambda: (site.project.parent / "urls").exists(), "the step to ask")
    site.cli("cancel")
    process.wait(expect=130)
    assert site.nothing_lives() and site.listed() == {}


@pytest.mark.parametrize("jobs", ["1", "2"])
@pytest.mark.parametrize("is_starting", [True, False], ids=["starting", "read"])
def test_when_its_driver_is_killed_the_server_ends_and_its_url_is_not_handed_out_again(
    site: Site, is_starting: bool, jobs: str
) -> None:
    if is_starting:
        site.stand_in.gate.touch()
    file = site.flow.write(site.serve(), site.ask(command=f"{ASK}\n{WAIT}"))
    process = site.start("run", file, "--jobs", jobs)
    if is_starting:
        until(site.stand_in.starts, "the server to be started")
    else:
        until(lambda: (site.project.parent / "urls").exists(), "the step to ask")
    process.kill()
    until(site.nothing_lives, "the server to end")
    assert "HEALTHY" not in site.listed().values()
    site.stand_in.gate.unlink(missing_ok=True)
    site.let_go()
    site.cli("resume")
    assert set(site.flow.states().values()) == {"COMPLETED"}
    assert len(set(site.urls())) == len(site.urls()) and site.nothing_lives()


# ------------------------------------------------------------------------------------ a dead server


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_step_whose_server_is_killed_is_ended_and_says_so(site: Site, jobs: str) -> None:
    file = site.flow.write(site.serve(), site.ask(command=f"{ASK}\n{WAIT}"))
    process = site.start("run", file, "--jobs", jobs)
    until(lambda: (site.project.parent / "urls").exists(), "the step to ask")
    os.kill(site.stand_in.starts()[0], signal.SIGKILL)
    process.wait(expect=1)
    ask = site.flow.steps()["ask"]
    assert ask["status"] == "FAILED"
    assert "is CRASHED: the server was killed by SIGKILL" in ask["message"]
    assert "nexa-hpc serve logs serve-" in ask["message"]
    assert list(site.listed().values()) == ["CRASHED"] and site.nothing_lives()
    site.let_go()
    site.cli("resume")
    assert set(site.flow.states().values()) == {"COMPLETED"} and site.listed() == {}


def test_a_step_that_fails_for_want_of_its_server_says_so(site: Site) -> None:
    kill = f"kill -9 $(tail -1 {site.stand_in.python.parent}/starts)\n"
    said = site.run(site.serve(), site.ask(command=f"{kill}{ASK}"), expect=1)
    assert "CRASHED: the server was killed by SIGKILL; so: the command exited with" in said


def test_a_step_that_starts_after_the_end_of_its_server_fails_at_once(site: Site) -> None:
    name = "$(basename $(ls ../project/.nexa_state/serve/*.json | grep -v lease) .json)"
    stop = site.flow.step("stop", f"$PYTHON -m nexa_hpc serve stop {name}")
    said = site.run(site.serve(), stop, site.ask(), expect=1)
    assert "of step 'serve' is not there: it was stopped" in said
    assert site.flow.states()["ask"] == "FAILED" and site.flow.executed() == ["stop"]


def _elsewhere(site: Site) -> Handle:
    """Leave a kept server whose handle says that another machine has it, as after a reboot."""
    site.run(site.serve(keep=True), site.flow.step("other"))
    (name,) = site.servers.names()
    handle = site.servers.get(name)
    site.servers.stop(handle)
    there = replace(handle, supervisor={**(handle.supervisor or {}), "machine": "x", "host": "far"})
    site.servers.update(there)
    return there


def test_a_server_from_before_a_reboot_is_not_handed_out(site: Site) -> None:
    name = _elsewhere(site).name
    said = site.run(site.serve(keep=True), site.ask(), expect=1)
    assert f"server '{name}' was started on far, and does not answer here" in said
    assert f"nexa-hpc serve stop {name}" in said
    assert site.flow.states() == {"serve": "FAILED", "ask": "BLOCKED"}


def test_what_answers_here_is_not_taken_for_what_another_machine_had(site: Site) -> None:
    there = _elsewhere(site)
    site.cli("serve", "start", "model", "--name", "here", "--python", site.stand_in.python)
    here = site.servers.get("here")
    site.servers.update(replace(there, url=here.url))
    said = site.run(site.serve(keep=True), site.ask(), expect=1)
    assert "was started on far, and does not answer here" in said
    with pytest.raises(StepError, match=r"listens on 127.0.0.1 of far, which .* does not reach"):
        addresses.find(there.name, None, site.servers)


def test_of_a_server_elsewhere_it_is_seen_when_nobody_listens_any_more(site: Site) -> None:
    there = replace(_elsewhere(site), host="0.0.0.0")
    patient = Servers(site.servers.folder)
    with tokens_wanted() as url:
        patient.update(replace(there, url=url))
        endpoint = Endpoint("serve", there.name, url, None)
        require_living(patient, [endpoint])
    with pytest.raises(StepError, match=f"nobody listens at {url} any more"):
        require_living(patient, [endpoint])


def test_what_does_not_know_its_token_is_another_server(site: Site) -> None:
    started = ["serve", "start", "model", "--python", site.stand_in.python, "-O", "token=true"]
    site.cli(*started, "--name", "first")
    handle = site.servers.get("first")
    assert silence(site.servers, handle) is None
    with tokens_wanted() as url:
        told = silence(site.servers, replace(handle, url=url))
    assert told == "/v1/models says 401"


@contextmanager
def tokens_wanted() -> Iterator[str]:
    """Serve /health to all, and nothing else to anybody."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/health" else 401)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_what_is_not_seen_and_does_not_answer_is_listed_as_silent(site: Site) -> None:
    there = _elsewhere(site)
    beat = site.servers.folder / str((there.supervisor or {})["heartbeat"])
    beat.write_text("{}")
    os.utime(beat, (time.time() - 3600,) * 2)
    (row,) = json.loads(site.cli("serve", "list", "--json").stdout)
    assert (row["state"], row["url"]) == ("SILENT", "")
    assert "of far, which is not reached from here; last heard of 1:00:0" in row["note"]
    assert f"nexa-hpc serve stop {there.name}" in row["note"]
    site.servers.update(replace(there, host="0.0.0.0", url="http://127.0.0.1:1"))
    (row,) = json.loads(site.cli("serve", "list", "--json").stdout)
    assert row["state"] == "SILENT" and "refused" in row["note"]


def test_a_server_that_is_silent_when_it_is_to_stop_has_gone(site: Site) -> None:
    site.servers.stop(_elsewhere(site))
    assert site.servers.names() == []


def test_what_a_job_left_on_another_machine_makes_way_once_its_driver_is_silent(site: Site) -> None:
    pipeline = Pipeline.from_yaml(site.flow.write(site.serve(), site.ask()), project=site.project)
    run, _ = pipeline.start()
    serve, state = run.instances["serve"], run.paths.state
    here = Driver.this_process(run.place.drivers, state)
    there = replace(_elsewhere(site), name=server_name(serve), leased=True)
    site.servers.update(there)
    Leases(site.servers).take(there.name, replace(here, machine="x", heartbeat="a/other.json"))
    holding = HeldServers(run, here, silence_s=0.5)
    assert holding.look(serve, Truth(Standing(State.PENDING))).standing.state is State.PENDING
    assert site.servers.find(there.name) is None
    (lease,) = site.servers.folder.glob("*.lease.*")
    assert lease.name.endswith(Path(here.heartbeat).name)
    holding.close()
    assert not [*site.servers.folder.glob("*.lease.*")]


def test_a_lease_counts_while_its_driver_may_live(site: Site) -> None:
    state = site.project / ".nexa_state"
    leases = Leases(site.servers)
    here = Driver.this_process(state, state)
    leases.take("a", here)
    assert leases.lives("a") and not leases.lives("b")
    leases.drop("a", here)
    assert not leases.lives("a")
    # Another process has its number by now.
    leases.take("a", replace(here, started="long ago"))
    assert not leases.lives("a") and list(site.servers.folder.iterdir()) == []
    leases.take("a", replace(here, machine="another"))
    assert leases.lives("a")


# ---------------------------------------------------------------------------------- kept and shared


def test_a_kept_server_stays_and_is_taken_for_what_it_is_by_the_next_run(site: Site) -> None:
    site.run(site.serve(keep=True), site.ask())
    ((name, state),) = site.listed().items()
    assert state == "HEALTHY" and name.startswith("serve-")
    told = site.cli("cancel").stdout
    assert (
        f"nothing is running\nserver '{name}' is kept; end it: nexa-hpc serve stop {name}" in told
    )
    said = site.run(site.serve(keep=True), site.ask("other"))
    assert f"holds: server '{name}' answers at http" in said
    assert site.flow.executed() == ["ask", "other"] and len(site.stand_in.starts()) == 1
    assert site.flow.states()["serve"] == "SKIPPED"
    # One that was not asked to be kept does not end what was.
    site.run(site.serve(), site.ask("third"))
    assert site.listed() == {name: "HEALTHY"} and len(site.stand_in.starts()) == 1
    site.cli("serve", "stop", name)
    assert site.nothing_lives()
    site.cli("resume")
    site.run(site.serve(keep=True), site.ask("third"))
    assert len(site.stand_in.starts()) == 2 and list(site.listed().values()) == ["HEALTHY"]


def test_a_kept_server_that_was_killed_is_started_again_by_resume(site: Site) -> None:
    site.run(site.serve(keep=True), site.flow.step("other"))
    site.run(site.serve(keep=True), site.ask(command="exit 1"), expect=1)
    assert len(site.stand_in.starts()) == 1
    os.kill(site.stand_in.starts()[0], signal.SIGKILL)
    until(lambda: "CRASHED" in site.listed().values(), "the crash to be seen")
    site.cli("resume", expect=1)
    assert len(site.stand_in.starts()) == 2 and list(site.listed().values()) == ["HEALTHY"]


def test_two_runs_share_a_server_until_the_second_has_done_with_it(site: Site) -> None:
    first = site.start("run", site.flow.write(site.serve(), site.ask()))
    other = Flow(site.project, "other")
    slow = site.ask("slow", f"touch ../asking\n{WAIT}\n{ASK}")
    second = site.start("run", other.write(site.serve(), slow))
    first.wait()
    until(lambda: (site.project.parent / "asking").exists(), "the second run to read a server")
    assert list(site.listed().values()) == ["HEALTHY"]
    site.let_go()
    second.wait()
    assert site.nothing_lives() and site.listed() == {}


# --------------------------------------------------------------------------------------- in a sweep


def test_points_share_a_server_or_have_one_each(site: Site) -> None:
    ask = site.ask(command=f'echo "$PARAM_x"\n{ASK}', params={"x": 0})
    file = site.flow.write(site.serve(), ask)
    site.cli("run", "-m", file, "steps.ask.params.x=1,2", "--jobs", "2")
    assert len(site.stand_in.starts()) == 1 and site.nothing_lives()
    file = site.flow.write(site.serve(max_batch=1), ask)
    site.cli("run", "-m", file, "steps.serve.params.max_batch=2,3", "--jobs", "2")
    assert len(site.stand_in.starts()) == 3 and site.nothing_lives()
    states = site.flow.states()
    assert set(states.values()) == {"COMPLETED"} and "serve@max_batch=2" in states
    several = site.flow.write(site.serve(max_batch=1), {**ask, "scope": "sweep"})
    done = site.cli("run", "-m", several, "steps.serve.params.max_batch=2,3", expect=2)
    assert "step 'serve' is 2 servers in this sweep; give it `scope: sweep`" in done.stderr


def test_the_best_of_a_sweep_is_served_once(site: Site) -> None:
    make = "cp -r model/* $OUT; echo '{\"a\": '$PARAM_x'}' > $OUT/metrics.json"
    train = site.flow.step("train", make, params={"x": 0}, out="out/m")
    best = {"model": {"step": "train", "metric": "a", "mode": "max"}}
    serve = {**site.serve(), "in": best, "scope": "sweep"}
    del serve["params"]["model"]
    file = site.flow.write(train, serve, site.ask(scope="sweep"))
    site.cli("run", "-m", file, "steps.train.params.x=1,2")
    assert site.flow.executed() == ["train", "train", "ask"] and site.nothing_lives()
    assert set(site.flow.states().values()) == {"COMPLETED"}


# ----------------------------------------------------------------------------- a model that answers

_CLIENT = """
import os, sys, openai
token = open(os.environ["IN_endpoint_TOKEN_FILE"]).read().strip()
client = openai.OpenAI(base_url=os.environ["IN_endpoint"] + "/v1", api_key=token, max_retries=0)
asked = {"model": "tiny", "prompt": "the film is", "max_tokens": 4}
done = client.completions.create(**asked, temperature=0)
assert done.choices[0].finish_reason in ("stop", "length")
while "--on" in sys.argv:
    client.completions.create(**asked)
    open("../asked", "w").close()
"""


@pytest.fixture
def real(site: Site) -> Site:
    """A project with a model that `hf_runtime` really serves."""
    for module in ("torch", "fastapi", "openai"):
        pytest.importorskip(module)
    save_tiny_model(site.project / "tiny")
    (site.project / "client.py").write_text(_CLIENT)
    return site


def _serving() -> StepDict:
    params = {"model": "tiny", "threads": 1, "token": True}
    return {"id": "serve", "uses": "runners.serve", "backend": "hf_runtime", "params": params}


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_the_openai_client_in_a_step_asks_the_model_that_a_step_serves(
    real: Site, jobs: int
) -> None:
    show = "tr '\\0' '\\n' < /proc/$$/environ > $OUT/environ\n$PYTHON client.py"
    said = real.run(_serving(), real.ask(command=show, out="out/ask"), jobs=jobs)
    assert "serves 'tiny' at http://127.0.0.1:" in said
    shown = (real.project / "out/ask/environ").read_text()
    (file,) = (line for line in shown.splitlines() if line.startswith("IN_endpoint_TOKEN_FILE="))
    assert file.endswith(".token") and not Path(file.partition("=")[2]).exists()
    assert real.listed() == {} and not real.processes()


@pytest.mark.slow
def test_a_served_model_that_is_killed_is_told_of_by_the_step_that_asks_it(real: Site) -> None:
    file = real.flow.write(_serving(), real.ask(command="$PYTHON client.py --on"))
    process = real.start("run", file)
    until(lambda: (real.project.parent / "asked").exists(), "the client to be answered")
    (name,) = real.servers.names()
    supervisor = real.servers.get(name).supervisor
    assert supervisor is not None
    (server,) = [pid for pid in real.processes() if pid != supervisor["pid"]]
    os.kill(server, signal.SIGKILL)
    process.wait(expect=1)
    assert "is CRASHED: the server was killed by SIGKILL" in real.flow.steps()["ask"]["message"]
    assert real.listed() == {name: "CRASHED"}
    until(lambda: not real.processes(), "its processes to end")


@pytest.mark.slow
def test_a_served_model_ends_with_a_driver_that_is_killed(real: Site) -> None:
    file = real.flow.write(_serving(), real.ask(command="$PYTHON client.py --on"))
    process = real.start("run", file)
    until(lambda: (real.project.parent / "asked").exists(), "the client to be answered")
    process.kill()
    until(lambda: not real.processes(), "its processes to end")


def test_forgetting_a_server_leaves_another_one_that_took_its_name(site: Site) -> None:
    first = _elsewhere(site)
    second = replace(first, tag=f"{first.name}-another")
    site.servers.update(second)
    site.servers.forget(first)
    assert site.servers.find(first.name) == second
    site.servers.forget(second)
    assert site.servers.find(first.name) is None


@pytest.mark.slow
def test_a_server_on_another_machine_lives_while_its_supervisor_beats(site: Site) -> None:
    site.run(site.serve(keep=True), site.ask())
    (name,) = site.servers.names()
    handle = site.servers.get(name)
    assert handle.supervisor is not None
    there = replace(handle, supervisor={**handle.supervisor, "machine": "another"})
    watching = Servers(site.servers.folder, silence_s=BEAT_INTERVAL_S + 3)
    deadline = time.monotonic() + 2 * BEAT_INTERVAL_S
    while time.monotonic() < deadline:
        assert watching.condition(there) == (Condition.HEALTHY, "")
        time.sleep(0.5)
    site.servers.stop(handle)
    assert list(site.servers.beats.iterdir()) == []
