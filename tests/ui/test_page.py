"""The page as Gradio serves it: a video over its HTTP API, and errors that are a line of the page."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import pytest
from command_line import PROMPT, tiny_pipeline
from needs import needs_gradio
from served import served

from vidsparse.ui.form import OWN, RECOMMENDED

pytestmark = needs_gradio
tiny = pytest.fixture(scope="module")(tiny_pipeline)


@pytest.fixture(scope="module")
def address(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A page that is served."""
    with served(tmp_path_factory.mktemp("page"), "--model", tiny) as (found, _):
        yield found


@pytest.fixture(scope="module")
def client(address: str) -> Any:
    from gradio_client import Client

    return Client(address, verbose=False)


def asked(tiny: Path, prompt: str = PROMPT, **changes: str) -> list[str]:
    """The inputs of the page, in their order."""
    fields = dict(prompt=prompt, model=str(tiny), attention=RECOMMENDED, density="", correction=OWN, dense_steps="1")
    fields |= dict(frames="9", height="32", width="48", steps="2", guidance="2", seed="0")
    return [*(fields | changes).values()]


def shape(video: Any) -> tuple[int, ...]:
    return imageio.imread(video["value"], plugin="FFMPEG").shape


def test_generate(client: Any, tiny: Path) -> None:
    status, dense, sparse, table, report, command, program = client.predict(*asked(tiny), api_name="/generate")
    assert status.startswith("<p>sparse: 9 frames of 48x32 in ")
    assert shape(sparse) == (9, 4 * 32, 4 * 48, 3) and dense["visible"] is False
    assert "<td>density</td>" in table and "attention calls sparse" in report
    assert command.startswith(f"vidsparse generate '{PROMPT}'") and "vidsparse.sparsify" in program


def test_compare(client: Any, tiny: Path) -> None:
    _, dense, sparse, table, *_ = client.predict(*asked(tiny), api_name="/compare")
    assert shape(dense) == shape(sparse) == (9, 4 * 32, 4 * 48, 3)
    assert "PSNR to dense" in table


def test_an_error_is_a_line_and_the_server_goes_on(client: Any, tiny: Path) -> None:
    for changes, says in (
        ({"prompt": ""}, "the prompt is empty"),
        ({"model": "shapes", "prompt": "a fox"}, "give --model"),
        ({"height": "33"}, "33"),
        ({"model": "no such model"}, "is unknown"),
    ):
        status = client.predict(*asked(tiny, **changes), api_name="/generate")[0]
        assert status.startswith('<p class="error">error: ') and says in status and "Traceback" not in status
    assert client.predict(*asked(tiny), api_name="/generate")[0].startswith("<p>sparse: 9 frames")


def test_only_generate_and_compare_are_an_interface(client: Any) -> None:
    assert {*client.view_api(return_format="dict")["named_endpoints"]} == {"/generate", "/compare"}


def test_the_page_asks_nothing_of_other_servers(address: str) -> None:
    import httpx

    text = httpx.get(address).text
    assert "fonts.googleapis" not in text and "cdnjs" not in text and '<script src="http' not in text


def test_a_file_outside_of_the_videos_is_not_served(address: str) -> None:
    import httpx

    assert httpx.get(f"{address}gradio_api/file={Path(__file__).resolve()}").status_code in (403, 404)


def test_the_page_listens_where_it_was_told(address: str) -> None:
    port = int(address.rstrip("/").rpartition(":")[2])
    with socket.socket() as other:
        assert other.connect_ex(("127.0.0.2", port)) != 0, "it listens at another address than 127.0.0.1"
