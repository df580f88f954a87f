"""scripts/demo.py answers as xcit.Classifier does, on a page that stays on this machine and keeps no image."""

import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio_client
import httpx
import numpy as np
import pytest
from PIL import Image
from skimage import data as photographs
from timm.models.resnet import BasicBlock, ResNet
from timm.models.vision_transformer import VisionTransformer

import xcit
from scripts import demo_html as html
from scripts import demo_model
from scripts.demo_model import Demo
from xcit.errors import InputError
from xcit.evaluation.cost import Cost
from xcit.prediction.answers import Head
from xcit.prediction.classifier import Trained
from xcit.preprocessing import Preprocessing

from ..conftest import ROOT, Result
from ..prediction.test_classifier import of_16_bits
from ..tasks.checkpoints import CLASSES, SIZE, write_checkpoint

Command = Callable[..., Result]
SCRIPT = "scripts/demo.py"
TABLE_ROW = re.compile(r'class="name">(.*?)</span>(.*?)<div.*?<td>([\d.]+) %')
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).resize((150, 100)).save(file, kind)
    return file.getvalue()


PHOTO = encoded(photographs.astronaut())


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """runs("classify") is a run folder of an untrained model with this task."""
    folder = tmp_path_factory.mktemp("runs")

    def make(task: str) -> str:
        if not (folder / task).exists():
            write_checkpoint(folder / task, task)
        return str(folder / task)

    return make


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def demo_of(source: str, largest: int | None = 2 * SIZE, max_pixels: int = 100_000) -> Demo:
    demo = Demo(source, None, largest, max_pixels)
    demo.measure()
    return demo


def rows(text: str) -> list[tuple[str, float]]:
    """The names and percentages on the page."""
    return [(name, float(amount)) for name, _, amount in TABLE_ROW.findall(text)]


def expected_rows(source: str, content: bytes, resolution: int) -> list[tuple[str, float]]:
    [answer] = xcit.Classifier(source, resolution=resolution)(content)
    return [(n, round(100 * p, 2)) for n, p in zip(answer.names, answer.probabilities, strict=True)]


def test_the_answer_is_that_of_the_classifier_at_each_resolution(runs: Callable[[str], str]) -> None:
    source = runs("classify")
    demo = demo_of(source)
    assert demo.resolutions == range(SIZE // 2, 2 * SIZE + 1, 8)
    assert [cost.resolution for cost in demo.curve] == [32, 48, 64, 96, 128]
    for resolution in (SIZE, 104):
        seen = demo.see(PHOTO, resolution)
        [answer] = xcit.Classifier(source, resolution=resolution)(PHOTO)
        assert seen.answer.names == answer.names
        assert seen.answer.logits.equal(answer.logits)
        assert (len(seen.maps), seen.patches) == (2, (resolution // 8,) * 2)
        assert seen.picture.shape == seen.maps[0].shape == (resolution, resolution, 3)
        assert rows(html.answer(seen)) == expected_rows(source, PHOTO, resolution)
        assert html.maps(seen).count("<img") == 3
        assert html.growth(demo.curve, seen.cost, demo.measured).count("<svg") == 2


def test_threads_do_not_disturb_each_other(runs: Callable[[str], str]) -> None:
    source = runs("classify")
    demo = demo_of(source)
    pictures = [encoded(make()) for make in (photographs.astronaut, photographs.coffee, photographs.chelsea)]
    asked = [(picture, resolution) for resolution in (32, 64, 96) for picture in pictures]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda each: demo.see(*each), asked))
    for (picture, resolution), seen in zip(asked, found, strict=True):
        alone = demo.see(picture, resolution)
        assert seen.answer.logits.equal(alone.answer.logits)
        assert all(one.equal(other) for one, other in zip(seen.maps, alone.maps, strict=True))


def test_labels_and_numbers(runs: Callable[[str], str]) -> None:
    seen = demo_of(runs("multilabel")).see(PHOTO, SIZE)
    [answer] = xcit.Classifier(runs("multilabel"))(PHOTO)
    marked = [name for name, mark, _ in TABLE_ROW.findall(html.answer(seen)) if "✓" in mark]
    assert sorted(marked) == sorted(answer.found) == ["square", "triangle"]
    seen = demo_of(runs("regress")).see(PHOTO, SIZE)
    [answer] = xcit.Classifier(runs("regress"))(PHOTO)
    assert seen.answer.values == answer.values
    assert all(f"<td>{value:.4g}</td>" in html.answer(seen) for value in answer.values)


def test_four_channels_of_16_bits_are_not_truncated(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.png").write_bytes(PHOTO)
    run = write_checkpoint(tmp_path / "run", "classify")
    of_16_bits(run, photos)
    content = (photos / "a.tif").read_bytes()
    seen = demo_of(str(run)).see(content, SIZE)
    assert seen.answer.logits.equal(xcit.Classifier(run)(content)[0].logits)
    with pytest.raises(InputError, match="this file"):
        demo_of(str(run)).see(PHOTO, SIZE)


def test_other_models_show_what_they_have(monkeypatch: pytest.MonkeyPatch) -> None:
    """timm's ViT takes one resolution; a ResNet takes any, and has no class token."""
    vit = VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=1, num_heads=2, num_classes=3)
    resnet = ResNet(BasicBlock, (1, 1, 1, 1), num_classes=3, channels=(8, 8, 8, 8))
    for model, resolutions, maps in ((vit, range(32, 33), 2), (resnet, range(16, 65, 4), 0)):
        trained = Trained(model.eval(), Preprocessing(size=(32, 32)), Head("class", CLASSES))
        monkeypatch.setattr(demo_model, "load_trained", lambda *_, trained=trained: trained)
        demo = demo_of("timm's", largest=64)
        seen = demo.see(PHOTO, 32)
        assert (demo.resolutions, len(seen.maps)) == (resolutions, maps)
        assert ("no attention maps" in html.maps(seen)) == (maps == 0)
        assert "<svg" in html.growth(demo.curve, seen.cost, demo.measured)


def test_times_that_do_not_grow_are_not_compared() -> None:
    def note(*seconds: float) -> str:
        return html.growth([Cost(32 * (n + 1), each, 1.0) for n, each in enumerate(seconds)], None, "measured")

    assert "From 32 to 96 pixels an image has 9 × the pixels and takes 4 × the time" in note(0.1, 0.2, 0.4)
    assert "takes 1.03 × the time" in note(0.1, 0.099, 0.103), "a small model on a GPU takes the same time"
    for busy in (note(0.1, 0.4, 0.2), note(0.6, 0.1, 0.2)):
        assert "× the time" not in busy
        assert "this machine was busy when they were measured" in busy


def test_names_of_classes_are_no_html(tmp_path: Path) -> None:
    run = write_checkpoint(tmp_path / "run", "classify", classes=("<script>a", "b & c", "d"))
    text = html.answer(demo_of(str(run)).see(PHOTO, SIZE))
    assert "&lt;script&gt;a" in text
    assert "b &amp; c" in text
    assert "<script>" not in text


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"no image", "this file: cannot be decoded (unknown image format)"),
        (b"", "this file: cannot be decoded (unknown image format)"),
        (PHOTO[:2000], "this file: cannot be decoded (image file is truncated"),
        (b"\x93NUMPY\x01", "this file: cannot be decoded ("),
        (encoded(np.zeros((9, 9), np.uint8))[:40], "this file: cannot be decoded ("),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(runs: Callable[[str], str], content: bytes, line: str) -> None:
    with pytest.raises(InputError) as caught:
        demo_of(runs("classify")).see(content, SIZE)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (npy(np.zeros((9, 9, 3), np.uint16)), "a.tif: cannot be decoded (it has 3 channels, not the 4 of the model)"),
        (
            npy(np.zeros((9, 9, 4), np.uint8)),
            "a.tif: cannot be decoded (image of uint8: holds 8 bits, not the 16 of the model)",
        ),
        (npy(np.zeros((9, 9, 4))), "a.tif: cannot be decoded (image of float64: must hold integers from 0 to 65535)"),
        (
            npy(np.zeros((500, 500, 4), np.uint16)),
            "a.tif: cannot be decoded (it has more pixels than the limit of 100000 allows)",
        ),
        (
            encoded(np.zeros((9, 9, 3), np.uint8)),
            "a.tif: cannot be decoded (it has 3 channels, not the 4 of the model)",
        ),
    ],
)
def test_messages_on_the_page_name_no_settings(runs: Callable[[str], str], content: bytes, line: str) -> None:
    demo = Demo(runs("classify"), None, None, 100_000)
    four = replace(demo.trained.preprocessing, channels=4, bit_depth=16, mean=(0.5,) * 4, std=(0.2,) * 4)
    demo.trained = demo.trained._replace(preprocessing=four)
    demo.resolutions = range(SIZE, SIZE + 1)
    with pytest.raises(InputError) as caught:
        demo.see(content, SIZE, "a.tif")
    assert html.problem(str(caught.value)) == html.part(f'<p class="problem">{line}</p>')


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_limits_are_kept(runs: Callable[[str], str]) -> None:
    demo = demo_of(runs("classify"), max_pixels=14_999)
    with pytest.raises(InputError, match=r"more pixels than data\.max_pixels=14999 allows"):
        demo.see(PHOTO, SIZE)
    for resolution in (24, 33, 64.5, 136):
        with pytest.raises(InputError, match=f"resolution={resolution}: must be 32 to 128 in steps of 8"):
            demo.see(PHOTO, resolution)


def test_bad_arguments_are_one_line(
    command: Command, runs: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for arguments, line in (
            ([], "checkpoint: must be given: a run folder"),
            (["checkpoint=nowhere"], "nowhere: no such file or run folder"),
            (["checkpoint=nowhere", f"port={port}"], f"host=127.0.0.1 port={port}: cannot be used (Address already in"),
            (["checkpoint=nowhere", "port=65536"], "host=127.0.0.1 port=65536: cannot be used ("),
            (["checkpoint=nowhere", "host=no.such.host.invalid", "port=0"], "host=no.such.host.invalid port=0: "),
            (["chekpoint=nowhere"], "chekpoint=nowhere: unknown option; did you mean checkpoint?"),
            (["checkpoint=nowhere", "largest=0"], "largest=0: must be at least 1"),
            ([f"checkpoint={runs('classify')}", "largest=60", "port=0"], "largest=60: must be at least 64, the "),
            ([f"checkpoint={runs('detect')}", "port=0"], f"{runs('detect')}: was trained with task=detect"),
        ):
            result = command(SCRIPT, *arguments)
            assert (result.status, result.stdout) == (2, ""), result.stderr
            assert result.stderr.splitlines()[-1].startswith(f"error: {line}"), result.stderr
    monkeypatch.setitem(sys.modules, "gradio", None)
    result = command(SCRIPT, "checkpoint=nowhere")
    line = "error: the page needs gradio, which is not installed; pip install 'xcit[page]'\n"
    assert (result.status, result.stdout, result.stderr) == (2, "", line)


@pytest.fixture(scope="module")
def server(runs: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The address of a running server, and its folder for temporary files."""
    temporary = tmp_path_factory.mktemp("temporary")
    arguments = [f"checkpoint={runs('classify')}", "port=0", "largest=128", "max_megabytes=1", "data.max_pixels=100000"]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / SCRIPT), *arguments],
        cwd=temporary,
        env=os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(temporary), "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    line = process.stdout.readline()
    assert re.match(r"http://127\.0\.0\.1:\d+/: serves ", line), process.communicate()[1]
    yield line.split(": serves")[0], temporary
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=30)
    assert (process.returncode, output.splitlines()) == (0, [f"{line.split(': serves')[0]}: ended"])
    assert "error: " not in errors
    # gradio prints a traceback for a path that it refuses, and for nothing else here.
    assert errors.count("Traceback") == len(re.findall("^gradio.exceptions.InvalidPathError", errors, re.MULTILINE))
    assert not list(temporary.glob("xcit-demo-*")), "the folder of uploads is left"


def client_of(address: str) -> gradio_client.Client:
    return gradio_client.Client(address, verbose=False)


def uploaded(temporary: Path) -> list[Path]:
    return [path for path in temporary.glob("xcit-demo-*/**/*") if path.is_file()]


def test_over_http_an_image_is_answered_and_not_kept(
    server: tuple[str, Path], runs: Callable[[str], str], tmp_path: Path
) -> None:
    address, temporary = server
    clients = [client_of(address), client_of(address)]
    for name, content in (("a.png", PHOTO), ("b.png", encoded(photographs.coffee()))):
        (tmp_path / name).write_bytes(content)
        clients[name == "b.png"].predict(gradio_client.handle_file(str(tmp_path / name)), api_name="/take")
    for client, name in zip(clients, ("a.png", "b.png"), strict=True):  # each session has its own image
        answered, looked, grown = client.predict(96, api_name="/answer")
        assert rows(answered) == expected_rows(runs("classify"), (tmp_path / name).read_bytes(), 96)
        assert f'<p class="file">{name}</p>' in answered
        assert (looked.count("<img"), grown.count("<svg")) == (3, 2)
    assert not uploaded(temporary)


def test_the_same_file_of_two_visitors_at_the_same_moment(server: tuple[str, Path]) -> None:
    """gradio keeps equal files once. The second visitor is told, and the first one has the answer."""
    address, _ = server
    answers = []
    [path] = {httpx.post(f"{address}gradio_api/upload", files={"files": ("c.png", PHOTO)}).json()[0] for _ in "ab"}
    sent = {"path": path, "meta": {"_type": "gradio.FileData"}}
    for session in ("a", "b"):
        taken = httpx.post(f"{address}gradio_api/run/take", json={"data": [sent], "session_hash": session})
        assert taken.status_code == 200, taken.text
    for session in ("a", "b"):
        asked = httpx.post(f"{address}gradio_api/call/answer", json={"data": [64], "session_hash": session}).json()
        answers.append(httpx.get(f"{address}gradio_api/call/answer/{asked['event_id']}").text)
    assert "The most likely classes" in answers[0]
    assert "the upload is gone, since somebody sent the same file at the same moment; send it again" in answers[1]


def test_no_other_file_and_no_address_is_read(server: tuple[str, Path], tmp_path: Path) -> None:
    address, temporary = server
    secret = temporary / "secret.png"
    secret.write_bytes(PHOTO)
    for path in (secret, "/etc/passwd"):
        assert httpx.get(f"{address}gradio_api/file={path}").status_code == 403
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        elsewhere = f"http://127.0.0.1:{listener.getsockname()[1]}/a.png"
        for path in (str(secret), "/etc/passwd", elsewhere):
            file = {"path": path, "url": elsewhere, "meta": {"_type": "gradio.FileData"}}
            refused = httpx.post(f"{address}gradio_api/run/take", json={"data": [file], "session_hash": "a"})
            assert refused.status_code == 500
        assert refused.json()["error"] == "only an uploaded file is read"
        with pytest.raises(BlockingIOError):  # nobody has connected
            listener.accept()
    assert secret.exists()


def test_bad_files_are_one_line_and_the_server_goes_on(server: tuple[str, Path], tmp_path: Path) -> None:
    address, temporary = server
    client = client_of(address)
    (tmp_path / "text.jpg").write_text("no image")
    client.predict(gradio_client.handle_file(str(tmp_path / "text.jpg")), api_name="/take")
    answered, looked, _ = client.predict(64, api_name="/answer")
    assert "text.jpg: cannot be decoded (unknown image format)" in answered
    assert looked == ""
    refused = httpx.post(f"{address}gradio_api/upload", files={"files": ("large.png", bytes(2**20 + 1))})
    assert (refused.status_code, refused.text.count("\n")) == (413, 0)
    assert not uploaded(temporary)
    (tmp_path / "a.png").write_bytes(PHOTO)
    client.predict(gradio_client.handle_file(str(tmp_path / "a.png")), api_name="/take")
    assert len(rows(client.predict(64, api_name="/answer")[0])) == len(CLASSES)


@pytest.mark.skipif(not CHROMIUM, reason="needs Chromium: apt-get install chromium")
def test_in_a_browser(server: tuple[str, Path], runs: Callable[[str], str], tmp_path: Path) -> None:
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    address, _ = server
    (tmp_path / "a.png").write_bytes(PHOTO)
    (tmp_path / "text.jpg").write_text("no image")
    requested: list[str] = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page: Any = browser.new_page(viewport={"width": 390, "height": 844})
        page.on("request", lambda request: requested.append(request.url))
        page.goto(address)
        page.set_input_files("input[type=file]", tmp_path / "a.png")
        page.wait_for_selector(".answer")
        top1 = page.locator(".answer .name").first.inner_text()
        assert top1 == xcit.Classifier(runs("classify"))(PHOTO)[0].names[0]
        assert page.locator(".pictures img").count() == 3
        edges = "[...document.querySelectorAll('.page-part *')].map(part => part.getBoundingClientRect().right)"
        assert max(page.evaluate(edges)) <= 390, "wider than a phone"
        page.locator("input[type=range]").press("ArrowRight")
        page.wait_for_selector("text=at 72 × 72 pixels")
        page.set_input_files("input[type=file]", tmp_path / "text.jpg")
        page.wait_for_selector(".problem")
        assert page.locator(".problem").inner_text() == "text.jpg: cannot be decoded (unknown image format)"
        assert not page.locator(".answer").count()
        browser.close()
    outside = [url for url in requested if not url.startswith((address, "data:", "blob:"))]
    assert requested
    assert not outside
