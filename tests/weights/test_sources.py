"""Weights are found by name or URL, downloaded once, and checked. Errors have one line."""

import hashlib
import io
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from email.message import Message
from pathlib import Path
from urllib.request import HTTPRedirectHandler

import pytest
import safetensors.torch
import torch

import xcit
from xcit.weights import published, sources
from xcit.weights.sources import locate

from ..conftest import ROOT
from ..models.examples import authors_state, same, tiny
from .authors_dense import authors_content, backbone, detector
from .hosts import Host, serve

STATE = tiny().state_dict()
FILE = "xcit_nano_12_p8_224.pth"


def as_file(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """A local server in place of the authors' host, with an empty cache."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    with serve() as playing:
        monkeypatch.setattr(published, "HOST", f"{playing.url}/")
        playing.files[f"/{FILE}"] = as_file({"model": authors_state(STATE)})
        yield playing


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "hub" / "checkpoints"


def cached(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.glob("*"))


def refused(source: str) -> str:
    """The message of the InputError for this source: one line that also says what to do."""
    with pytest.raises(xcit.InputError) as caught:
        xcit.load_weights(tiny(), source)
    message = str(caught.value)
    assert "\n" not in message
    assert "cannot be downloaded (" in message
    assert message.endswith("if you have the file, pass its path")
    return message


@pytest.mark.parametrize("name", ["xcit_n12_p8.fb_in1k", FILE, FILE.removesuffix(".pth")])
def test_a_name_is_downloaded_once(name: str, host: Host, cache: Path) -> None:
    for _ in range(2):
        model = xcit.create_model("xcit_n12", depth=2, patch_size=8, num_classes=7)
        xcit.load_weights(model, name)
        assert same(model.state_dict(), STATE)
    assert host.asked() == [f"/{FILE}"]
    assert cached(cache) == [FILE]


def test_a_detector_is_downloaded_from_its_folder(host: Host, cache: Path) -> None:
    source = detector(patch_size=8)
    host.files["/coco/maskrcnn_xcit_tiny_12_p8.pth"] = as_file(authors_content(source))
    model = backbone(8)
    with pytest.warns(xcit.Notice, match="has no cls_attn_blocks"):
        xcit.load_weights(model, "maskrcnn_xcit_tiny_12_p8")
    gamma = "blocks.0.gamma1"
    assert torch.equal(model.state_dict()[gamma], source.state_dict()[f"model.model.{gamma}"])
    assert host.asked() == ["/coco/maskrcnn_xcit_tiny_12_p8.pth"]
    assert cached(cache) == ["maskrcnn_xcit_tiny_12_p8.pth"]


def test_the_tag_alone_is_enough_beside_the_architecture(host: Host) -> None:
    host.files["/xcit_nano_12_p8_384_dist.pth"] = as_file({"model": authors_state(STATE)})
    options = {"depth": 2, "patch_size": 8, "num_classes": 7}
    model = xcit.create_model("xcit_n12", pretrained="fb_dist_in1k_384", **options)
    assert same(model.state_dict(), STATE)
    assert model.pretrained_cfg["input_size"] == (3, 384, 384)
    assert same(xcit.create_model("xcit_n12", pretrained=True, **options).state_dict(), STATE)
    assert host.asked() == ["/xcit_nano_12_p8_384_dist.pth", f"/{FILE}"]


def test_an_address_is_downloaded_once(host: Host, cache: Path) -> None:
    host.files["/some/where/mine.safetensors?download=1"] = safetensors.torch.save(STATE)
    for _ in range(2):
        model = tiny()
        xcit.load_weights(model, f"{host.url}/some/where/mine.safetensors?download=1")
        assert same(model.state_dict(), STATE)
    assert len(host.asked()) == 1
    host.files["/another/mine.safetensors"] = safetensors.torch.save({k: v + 1 for k, v in STATE.items()})
    other = tiny()
    xcit.load_weights(other, f"{host.url}/another/mine.safetensors")
    assert not same(other.state_dict(), STATE), "a file of the same name at another address is another file"
    assert {path.name for path in cache.glob("*/*")} == {"mine.safetensors"}
    assert len(list(cache.glob("*/*"))) == 2
    with pytest.raises(xcit.InputError, match="names no file"):
        xcit.load_weights(tiny(), f"{host.url}/")


def test_a_password_or_token_of_an_address_is_used_and_never_printed(
    host: Host, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setattr(host, "login", "me:planted")
    address = f"{host.url.replace('://', '://me:planted@')}/mine.pth?token=planted"
    host.files["/mine.pth?token=planted"] = as_file(STATE)
    model = tiny()
    xcit.load_weights(model, address)
    assert same(model.state_dict(), STATE)
    shown = f"{host.url.replace('://', '://***@')}/mine.pth?token=***"
    assert f"downloading {shown} to " in capsys.readouterr().err

    for wrong in (address.replace("/mine", "/none"), address.replace("me:planted", "you:planted2")):
        assert "planted" not in refused(wrong.replace("pth?", "pt?"))
    # What was saved without its secrets is found in the cache by all but its token, and needs them to be downloaded.
    host.files["/plain.pth"] = as_file(STATE)
    saved = f"{host.url.replace('://', '://***@')}/plain.pth"
    with pytest.raises(xcit.InputError, match="was saved without its password or token; give the whole address again"):
        locate(saved)
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password planted\n")
    assert locate(saved).parent.parent == cache
    (tmp_path / "netrc").unlink()
    assert locate(saved) == locate(saved.replace("***", "me:planted"))
    assert host.asked().count("/plain.pth") == 1
    assert "planted" not in capsys.readouterr().err
    assert not [path for path in cache.rglob("*") if "planted" in str(path)]


def test_a_redirect_to_another_host_gets_no_password(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    request = sources.request_for("https://me:planted@host/x")
    assert (request.full_url, request.get_header("Authorization")) == ("https://host/x", "Basic bWU6cGxhbnRlZA==")
    redirected = HTTPRedirectHandler().redirect_request(request, io.BytesIO(), 302, "", Message(), "https://other/x")
    assert redirected and not redirected.has_header("Authorization")


def test_the_hash_that_a_file_name_states_is_checked(host: Host, cache: Path) -> None:
    content = as_file(STATE)
    digest = hashlib.sha256(content).hexdigest()
    right, wrong = f"mine-{digest[:8]}.pth", f"mine-{digest[1:9]}.pth"
    host.files |= {f"/{right}": content, f"/{wrong}": content}
    model = tiny()
    xcit.load_weights(model, f"{host.url}/{right}")
    assert same(model.state_dict(), STATE)
    assert "invalid hash value" in refused(f"{host.url}/{wrong}")
    assert [path.name for path in cache.glob("*/*")] == [right]


def test_a_file_that_the_host_does_not_have_is_named(host: Host, cache: Path) -> None:
    message = refused("xcit_n12_p8.fb_dist_in1k")
    assert message.startswith(f"{host.url}/xcit_nano_12_p8_224_dist.pth: cannot be downloaded (HTTP Error 404")
    assert cached(cache) == []


def test_a_host_that_does_not_answer_is_named(host: Host, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, but nobody listens
        monkeypatch.setattr(published, "HOST", f"http://127.0.0.1:{unused.getsockname()[1]}/")
        assert "refused" in refused("xcit_n12_p8.fb_in1k")
    assert cached(cache) == []


def test_half_a_transfer_leaves_nothing_in_the_cache(host: Host, cache: Path) -> None:
    host.cut = True
    refused("xcit_n12_p8.fb_in1k")
    assert cached(cache) == []
    host.cut = False
    model = tiny()
    xcit.load_weights(model, "xcit_n12_p8.fb_in1k")
    assert same(model.state_dict(), STATE)


def test_a_cache_that_cannot_be_written_is_an_error_of_one_line(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "file"))
    refused("xcit_n12_p8.fb_in1k")


def test_a_file_that_is_here_comes_before_a_name(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    other = tiny()
    torch.nn.init.zeros_(other.head.weight)
    torch.save(other.state_dict(), FILE)
    model = tiny()
    xcit.load_weights(model, FILE)
    assert same(model.state_dict(), other.state_dict())
    assert host.requests == []


@pytest.mark.parametrize("folder", ["weights/", "/no/such/", "./", "../"])
def test_a_path_is_never_taken_for_a_name(folder: str, host: Host) -> None:
    """A path with a folder is never taken for a published name, so a typo raises an error."""
    for name in (FILE, FILE.removesuffix(".pth"), "xcit_nano_12_p8_224.fb_in1k", "xcit_n12_p8.fb_in1k"):
        with pytest.raises(xcit.InputError, match="no such file"):
            locate(f"{folder}{name}")
    assert host.requests == []


def test_a_name_that_is_nearly_one_is_answered_with_it() -> None:
    with pytest.raises(xcit.InputError, match=r"did you mean xcit_s12_p16\.fb_in1k\?"):
        locate("xcit_s12_p16.fb_in1")


# The Hugging Face hub. Its client reads the address of the hub when it is imported, so each test starts a process.

LOAD = """
import sys, time, warnings
time.sleep = lambda seconds: None  # between the client's attempts
import torch, xcit
from safetensors.torch import load_file
expected = load_file(sys.argv[1])
try:
    for source in sys.argv[2:]:
        model = xcit.create_model("xcit_n12", depth=2, patch_size=8, num_classes=7)
        with warnings.catch_warnings():
            warnings.simplefilter("error", xcit.Notice)
            xcit.load_weights(model, source)
        assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())
except xcit.InputError as error:
    print("InputError:", error)
"""
TIMM_NAME = "xcit_nano_12_p8_224.fb_in1k"
ON_THE_HUB = f"/timm/{TIMM_NAME}/resolve/main/model.safetensors"


def in_a_process(tmp_path: Path, *sources: str, **environment: str) -> str:
    """What the process prints. A traceback fails the test."""
    safetensors.torch.save_file(STATE, tmp_path / "expected.safetensors")
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(tmp_path / "expected.safetensors"), *sources],
        env=os.environ
        | {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "0"}
        | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_timms_names_come_from_the_hub_once(tmp_path: Path) -> None:
    with serve() as hub:
        hub.files[ON_THE_HUB] = safetensors.torch.save(STATE)
        hub.files["/someone/hers/resolve/main/model.safetensors"] = safetensors.torch.save(STATE)
        names = (TIMM_NAME, f"timm/{TIMM_NAME}", "hf-hub:someone/hers")
        assert in_a_process(tmp_path, *names, HF_ENDPOINT=hub.url) == ""
        assert hub.asked() == [ON_THE_HUB, "/someone/hers/resolve/main/model.safetensors"]
        hub.requests.clear()
        assert in_a_process(tmp_path, *names, HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="1") == ""
        assert hub.requests == [], "what is in the cache needs no network"


def test_without_the_hub_one_line_says_so(tmp_path: Path) -> None:
    told = in_a_process(tmp_path, TIMM_NAME, HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_OFFLINE="1")
    assert told.startswith(f"InputError: hf-hub:timm/{TIMM_NAME}: cannot be downloaded (")
    assert len(told.splitlines()) == 1


def test_a_hub_that_refuses_the_connection_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        told = in_a_process(tmp_path, TIMM_NAME, HF_ENDPOINT=f"http://127.0.0.1:{unused.getsockname()[1]}")
    assert told.startswith(f"InputError: hf-hub:timm/{TIMM_NAME}: cannot be downloaded (")
    assert len(told.splitlines()) == 1


def test_a_repository_without_weights_is_one_line(tmp_path: Path) -> None:
    with serve() as hub:
        told = in_a_process(tmp_path, "hf-hub:someone/empty", HF_ENDPOINT=hub.url)
    assert told.startswith("InputError: hf-hub:someone/empty: cannot be downloaded (")
    assert len(told.splitlines()) == 1


def test_half_a_transfer_from_the_hub_is_one_line_and_leaves_no_file(tmp_path: Path) -> None:
    with serve() as hub:
        hub.files[ON_THE_HUB] = safetensors.torch.save(STATE)
        hub.cut = True
        told = in_a_process(tmp_path, TIMM_NAME, HF_ENDPOINT=hub.url)
    assert told.startswith(f"InputError: hf-hub:timm/{TIMM_NAME}: cannot be downloaded (")
    assert len(told.splitlines()) == 1
    assert not list((tmp_path / "hf").rglob("model.safetensors"))


@pytest.mark.parametrize("name", ["hf-hub:", "hf-hub:one/two/three", "hf-hub:spaces in it/x", "timm/../x"])
def test_what_is_no_repository_is_one_line(name: str) -> None:
    assert refused(name).startswith("hf-hub:")
