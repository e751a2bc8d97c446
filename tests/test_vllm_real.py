"""A real vLLM, started, asked, killed and stopped by us: where one is there.

`NEXA_TEST_VLLM` names its virtual environment. The CPU build takes half a minute to come up.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flows import alive
from served import Site, check_openai_client, check_refusals
from slurm_fixtures import wait_until

from nexa_hpc.core.servers import Servers

_NAMED = os.environ.get("NEXA_TEST_VLLM")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        _NAMED is None, reason="needs vLLM: NEXA_TEST_VLLM names its virtual environment"
    ),
]
OPTIONS = ("-O", "token=true", "-O", "max_model_len=32", "-O", "dtype=float32")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A project with a tiny model whose heads are as wide as vLLM's kernels want them."""
    import hf_tiny

    root = tmp_path_factory.mktemp("vllm")
    hf_tiny.save_llama(root / "tiny", hidden_size=64)
    tokenizer = hf_tiny.make_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    tokenizer.save_pretrained(root / "tiny")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        patch.setenv("HF_HUB_OFFLINE", "1")
        found = Site(root)
        yield found
        for name in Servers(root / ".nexa_state/serve").names():
            found.serve("stop", name)


def start(site: Site, name: str) -> str:
    python = Path(os.path.abspath(str(_NAMED))) / "bin/python"
    asked = ["start", "tiny", "--name", name, "--backend", "vllm", "--python", str(python)]
    return site.serve(*asked, *OPTIONS).stdout.strip()


def server_of(site: Site, name: str) -> tuple[int, list[int]]:
    """Return the process id of a server, and of all in its session."""
    supervisor = Servers(site.root / ".nexa_state/serve").get(name).supervisor
    assert supervisor is not None
    children = Path(f"/proc/{supervisor['pid']}/task/{supervisor['pid']}/children").read_text()
    server = int(children.split()[0])
    found = []
    for process in map(int, filter(str.isdigit, os.listdir("/proc"))):
        try:
            if os.getsid(process) == server:
                found.append(process)
        except ProcessLookupError:
            continue
    return server, found


def test_the_openai_client_asks_vllm_as_it_asks_the_runtime(site: Site) -> None:
    openai: Any = pytest.importorskip("openai")
    url = start(site, "asked")
    token = site.serve("url", "asked", "--token").stdout.strip()
    client = openai.OpenAI(base_url=f"{url}/v1", api_key=token, max_retries=0)
    check_openai_client(client)
    check_refusals(client)
    _, processes = server_of(site, "asked")
    assert len(processes) > 1  # Its engine is a process of its own.
    site.serve("stop", "asked")
    assert not alive(processes)


@pytest.mark.parametrize("killed", ["server", "supervisor"])
def test_of_a_vllm_that_is_killed_nothing_is_left(site: Site, killed: str) -> None:
    start(site, killed)
    server, processes = server_of(site, killed)
    supervisor = Servers(site.root / ".nexa_state/serve").get(killed).supervisor
    assert supervisor is not None
    os.kill(server if killed == "server" else supervisor["pid"], signal.SIGKILL)
    wait_until(lambda: site.state(killed)["state"] == "CRASHED", 30, "the crash to be seen")
    wait_until(lambda: not alive(processes), 15, "its processes to end")
