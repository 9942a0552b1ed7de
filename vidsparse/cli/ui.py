"""`vidsparse ui`: a page in the browser that generates and compares videos."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from contextlib import closing, suppress
from threading import Event
from typing import TYPE_CHECKING, Annotated

from typer import Option, Typer
from typer.main import get_command

from vidsparse.cli.dry_run import header
from vidsparse.cli.frames import fitted
from vidsparse.cli.messages import live_console, note, notes
from vidsparse.cli.options import DTYPE_HELP, read_dtype
from vidsparse.cli.request import Request
from vidsparse.cli.signature import EXPECTED, takes_request
from vidsparse.cli.video import comment_of
from vidsparse.generation.models import DEFAULT

if TYPE_CHECKING:
    from vidsparse.ui.port import CommandLine

LOCAL = "127.0.0.1", "localhost"
MISSING = 'the page is made with Gradio, which is not installed: pip install "vidsparse[ui]"'


def ui(
    model: Annotated[str, Option(help="The model that is chosen at first: see `vidsparse generate`.")] = DEFAULT,
    host: Annotated[str, Option(help="The address to listen at; 0.0.0.0 is every one of this machine.")] = LOCAL[0],
    port: Annotated[int, Option(min=1, max=65535, help="The port to listen at.")] = 7860,
    dtype: Annotated[
        str | None, Option(help=DTYPE_HELP, callback=read_dtype, show_default="float32 on a CPU, else bfloat16")
    ] = None,
    device: Annotated[str | None, Option(help="Such as cpu or cuda:1.", show_default="the fastest there is")] = None,
    offload: Annotated[bool, Option("--offload", help="Keep on the GPU only what runs.")] = False,
    no_browser: Annotated[bool, Option("--no-browser", help="Open no browser.")] = False,
) -> None:
    """Serve a page that generates and compares videos, for a browser."""
    asked = {"dtype": dtype, "device": device}
    common = [word for name, value in asked.items() if value is not None for word in (f"--{name}", value)]
    line = command_line((*common, *(["--offload"] if offload else [])))
    check_free(host, port)
    try:
        from vidsparse.ui.page import build, serve
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise ImportError(MISSING) from None
    from vidsparse.ui.form import Form
    from vidsparse.ui.studio import Studio

    with closing(Studio(line)) as studio:
        with live_console().status(f"reading the settings of {model}"):
            studio.forecast(Form("", model))  # refuses what no video of the page could have
            page = build(studio, model)
        address = serve(page, studio, host, port, browser=not no_browser)
        if host not in LOCAL:
            note(f"whoever reaches {host}:{port} can use this machine; --host {LOCAL[0]} is for this machine alone")
        print(f"{address} shows the page until Ctrl-C", flush=True)
        with suppress(KeyboardInterrupt):
            Event().wait()
        page.close(verbose=False)


def check_free(host: str, port: int) -> None:
    """Refuse an address that nothing can listen at.

    Raises:
        OSError: the port is taken, or the address is not this machine's.
    """
    try:
        with socket.create_server((host, port)):
            pass
    except OSError as error:
        raise OSError(f"cannot listen at {host}:{port}: {error.strerror}; give another --port or --host") from None


def command_line(common: tuple[str, ...] = ()) -> CommandLine:
    """What the page needs of the command line.

    Args:
        common: words of every request.
    """
    from vidsparse.ui.port import CommandLine

    return CommandLine(read, common, header, fitted, comment_of, notes, EXPECTED)


def read(words: Sequence[str]) -> Request:
    """The request that words after `vidsparse generate` ask for.

    Raises:
        ValueError: an option that there is not, or a value that it does not take.
    """
    asked: list[Request] = []

    def hold(request: Request) -> None:
        asked.append(request)

    program = Typer(add_completion=False)
    program.command()(takes_request(hold))
    try:
        get_command(program).main([*words], standalone_mode=False)
    except Exception as error:  # of typer, or of click: that depends on the version
        if not hasattr(error, "format_message"):
            raise
        raise ValueError(error.format_message()) from None
    return asked[0]
