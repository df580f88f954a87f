"""Serve a page that shows what a trained model says of an image, where it looks, and what the resolution costs.

    python scripts/demo.py checkpoint=runs/mine                  # then open http://127.0.0.1:7860
    python scripts/demo.py checkpoint=xcit_small_12_p8_384_dist port=8000 largest=1024
    python scripts/demo.py checkpoint=runs/mine host=0.0.0.0     # for all who can reach this machine

The page shows the classes, labels or numbers that xcit.Classifier and scripts/predict.py give for an image, a map of
each head of the class attention, and the time and memory of this image beside the curve of the model, which is measured
at the start. Images are read as predict.py reads them, with all channels and bits.

The checkpoint is a run folder, a file in one, or the name of published weights. An option may be written as key=value
or as --key value. The page connects to no other machine. An uploaded file is deleted as soon as it is read; its content
stays in memory while its page is open and up to an hour longer. See docs/predict.md.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # because scripts/ is not installed

if __name__ == "__main__":  # answers --help and mistakes before torch is imported
    from scripts.options import of_demo
    from xcit.start import answer_options

    answer_options(lambda: of_demo(__doc__, sys.argv[1:]))

import os
import socket
import tempfile
import threading
from contextlib import suppress
from typing import Any

from scripts import demo_html as html
from scripts.demo_model import Demo
from scripts.options import of_demo
from xcit.command import guarded
from xcit.command.printing import print_notices
from xcit.engine.progress import Progress
from xcit.errors import InputError
from xcit.evaluation.cost import share_free_memory
from xcit.signals import Stopped, stop_at_signals

ABANDONED = 600
"""Seconds after which an upload that was never read is deleted."""
WAITING = 20
"""Requests that may wait for the model. More are refused."""
LONGEST_NAME = 80
"""Characters of a file's name that are shown."""
VISITORS = 64
"""Visitors whose images are kept in memory. Those of earlier ones are dropped."""


@guarded
def main() -> None:
    print_notices()
    share_free_memory()  # the curve is measured in this thread, and an image in one of the server's
    arguments = of_demo(__doc__, sys.argv[1:])
    with Progress() as progress, stop_at_signals(), tempfile.TemporaryDirectory(prefix="xcit-demo-") as uploads:
        gradio = import_gradio(uploads)
        port = free_port(arguments.host, arguments.port)
        progress.begin(f"reading {arguments.checkpoint}")
        demo = Demo(arguments.checkpoint, arguments.weights, arguments.largest, arguments.max_pixels)
        progress.begin("measuring time and memory at several resolutions")
        demo.measure()
        progress.end()
        page = make_page(gradio, demo, Path(uploads), arguments.max_megabytes)
        address = serve(gradio, page, arguments.host, port, arguments.max_megabytes)
        print(f"{address}: serves {arguments.checkpoint}; Ctrl-C ends it", flush=True)
        with suppress(Stopped):  # a signal is the normal end; the server's threads end with the process
            threading.Event().wait()
    print(f"{address}: ended", flush=True)


def import_gradio(uploads: str) -> Any:
    """gradio, which reports nothing and keeps its files in this folder."""
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": uploads}
    try:
        import gradio
    except ModuleNotFoundError as error:
        raise InputError(f"the page needs {error.name}, which is not installed; pip install 'xcit[page]'") from None
    return gradio


def free_port(host: str, port: int) -> int:
    """The port, or a free one for 0."""
    try:
        with socket.create_server((host, port)) as server:
            return int(server.getsockname()[1])
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"host={host} port={port}: cannot be used ({reason}); port=0 takes a free one") from None


def make_page(gradio: Any, demo: Demo, uploads: Path, max_megabytes: int) -> Any:
    """The page. Each visitor has an image of their own; the model answers one request after the other."""
    limits = f"up to {max_megabytes} MB and {demo.max_pixels / 1e6:g} million pixels"

    async def uploaded(path: str) -> str:
        """The path of an upload. gradio's own function would download an address."""
        if not Path(path).resolve().is_relative_to(uploads.resolve()):
            raise gradio.Error("only an uploaded file is read", print_exception=False)
        return path

    def take(upload: dict[str, Any]) -> tuple[tuple[str, bytes] | str, None]:
        """The name and content of an uploaded file, which is deleted; or a line. The place for files is free again."""
        path = Path(upload["path"])
        name = Path(upload.get("orig_name") or path).name
        if len(name) > LONGEST_NAME:  # names of files differ at their ends
            name = f"{name[: LONGEST_NAME // 2]}…{name[-LONGEST_NAME // 2 :]}"
        try:
            content = path.read_bytes()
            path.unlink()
        except OSError:  # equal files of two visitors have the same path
            return "the upload is gone, since somebody sent the same file at the same moment; send it again", None
        return (name, content), None

    def answer(kept: tuple[str, bytes] | str | None, resolution: float) -> tuple[str, str, str]:
        curve = html.growth(demo.curve, None, demo.measured)
        try:
            if not isinstance(kept, tuple):
                return html.problem(kept) if kept else "", "", curve
            name, content = kept
            seen = demo.see(content, resolution, name)
        except InputError as error:
            return html.problem(str(error)), "", curve
        return html.answer(seen), html.maps(seen), html.growth(demo.curve, seen.cost, demo.measured)

    with gradio.Blocks(title="XCiT", analytics_enabled=False, delete_cache=(ABANDONED, ABANDONED)) as page:
        gradio.HTML(html.heading(demo), padding=False)
        kept = gradio.State()
        with gradio.Row():
            with gradio.Column(scale=2, min_width=320):
                file = gradio.File(label=f"An image, {limits}", height=160)
                file.async_move_resource_to_block_cache = uploaded
                sides, free = (demo.resolutions[0], demo.resolutions[-1], demo.resolution), len(demo.resolutions) > 1
                slider = gradio.Slider(*sides, step=demo.step, label="Resolution in pixels", interactive=free)
                answered = gradio.HTML(padding=False)
            with gradio.Column(scale=3, min_width=320):
                looked = gradio.HTML(padding=False)
        grown = gradio.HTML(html.growth(demo.curve, None, demo.measured), padding=False)
        shown = {"inputs": [kept, slider], "outputs": [answered, looked, grown], "concurrency_limit": 1}
        taken = file.upload(take, file, [kept, file], queue=False, preprocess=False, api_name="take")
        taken.then(answer, **shown, api_name="answer")
        slider.change(answer, **shown, trigger_mode="always_last", show_progress="minimal", api_visibility="private")
    return page.queue(max_size=WAITING)


def serve(gradio: Any, page: Any, host: str, port: int, max_megabytes: int) -> str:
    """Serve the page in a thread. Returns its address."""
    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        max_file_size=max_megabytes * 2**20,
        theme=gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        css=html.CSS,
        footer_links=[],
        state_session_capacity=VISITORS,
        prevent_thread_lock=True,
        quiet=True,
        **dict.fromkeys(("share", "run_history", "enable_monitoring", "ssr_mode", "pwa", "mcp_server"), False),
    )
    return str(address)


if __name__ == "__main__":
    main()
