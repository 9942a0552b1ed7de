"""Words of a command line: what was typed, and what asks for a request again."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
from command_line import PROMPT, vidsparse_in_a_folder

from vidsparse.cli.request import Request
from vidsparse.cli.ui import read
from vidsparse.cli.words import given_command, request_words

vidsparse = pytest.fixture(vidsparse_in_a_folder)
REQUESTS = (
    Request(PROMPT),
    Request("a \"fox\" & 'owl' $HOME", model="some/model", frames=9, steps=3, guidance=2.5, seed=7, offload=True),
    Request(PROMPT, pattern="radial", density=0.2, settings=["tile=1,4,4", "sink=false"], dense_layers="0,-1"),
    Request(PROMPT, lora=["shapes-long"], steps=9),
    Request(PROMPT, lora=["shapes-long"], model="some/model"),
    Request(PROMPT, lora=["a/b", "c/d"], correction="reshaped", dense_steps=0, negative_prompt="-1"),
)


@pytest.mark.parametrize("request_", REQUESTS, ids=range(len(REQUESTS)))
def test_the_words_of_a_request_ask_for_it(request_: Request) -> None:
    words = request_words(request_)
    assert read(words) == request_
    assert shlex.split(shlex.join(words)) == words
    assert len(request_words(REQUESTS[0])) == 1, "defaults are left out"
    assert ["--model" in request_words(one) for one in REQUESTS] == [False, True, False, False, True, False]


def test_what_was_typed(vidsparse: Any) -> None:
    assert (
        vidsparse("inspect", "--frames", 5, "--height", 64, "--width", "64", "--model", "shapes", "--quiet").code == 0
    )
    assert given_command() == "vidsparse inspect --frames 5 --height 64 --width 64 --model shapes --quiet"
    vidsparse("generate", "a 'fox'", "--density", 7)
    assert shlex.split(given_command()) == ["vidsparse", "generate", "a 'fox'", "--density", "7"]
