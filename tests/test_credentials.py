"""Passwords and tokens are masked wherever an address may stand, and nothing else is."""

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from xcit.credentials import restore_credentials, split_login, without_credentials
from xcit.errors import InputError, TrainingError, print_note

from .conftest import Result


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("https://user:pw@host/x", "https://***@host/x"),
        ("see 's3://KEY:pw@bucket/x', or", "see 's3://***@bucket/x', or"),
        ("https://pw@host:80/x", "https://***@host:80/x"),
        ("https://user:p@w@host/x", "https://***@host/x"),
        ("https://user:/p?w#@host/x", "https://***@host/x"),
        ("https://user:a pw@host/x", "https://***@host/x"),
        ("a=[https://one:80/x,https://u:pw@two/x]", "a=[https://one:80/x,https://***@two/x]"),
        ("https://host/x?a=1&token=pw&b=2", "https://host/x?a=1&token=***&b=2"),
        ("key=https://host/x?X-Amz-Signature=pw%2F=: gone", "key=***: gone"),
        ("url=https://host/x?X-Amz-Signature=pw%2F=: gone", "url=https://host/x?X-Amz-Signature=***: gone"),
        (
            "https://host/x?AWSAccessKeyId=pw&sig=pw#access_token=pw",
            "https://host/x?AWSAccessKeyId=***&sig=***#access_",
        ),
        ("+logger.api_key=pw 'run.hf_token=\"pw\"'", "+logger.api_key=*** 'run.hf_token=\"***\"'"),
    ],
)
def test_secrets_in_a_text_are_masked(text: str, masked: str) -> None:
    found = without_credentials(text)
    assert found.startswith(masked)
    assert without_credentials(found) == found


@pytest.mark.parametrize(
    "text",
    [
        "http://host:8000/models/xcit@v2.pth?download=true&design=3",
        "http://host:8000",
        "must be a path, or an address that begins with http://, https:// or s3://, and not me@host",
        "task.class_token=true: tokens=3; monkey=1",
        "data.urls=/shards/{000..146}.tar",
    ],
)
def test_other_texts_stay(text: str) -> None:
    assert without_credentials(text) == text


def test_nested_values_keep_their_form() -> None:
    config = {
        "urls": ["https://u:pw@host/x", "y"],
        "sizes": (1, 2.5, None, True),
        "deep": {"api_key": "pw", "num_tokens": 3},
    }
    assert without_credentials(config) == {
        "urls": ["https://***@host/x", "y"],
        "sizes": (1, 2.5, None, True),
        "deep": {"api_key": "***", "num_tokens": 3},
    }


def test_values_of_a_configuration_have_named_secrets_in_queries_alone() -> None:
    values = {
        "root": "/data/session=3/train?token=1",
        "urls": ["s3://bucket/key=7/x", "https://host/session=3/x?token=pw&b=2#sig=pw"],
    }
    masked = {
        "root": "/data/session=3/train?token=1",
        "urls": ["s3://bucket/key=7/x", "https://host/session=3/x?token=***&b=2#sig=***"],
    }
    assert without_credentials({"data": values}) == {"data": masked}
    assert without_credentials(["data.root=/data/session=3/train"]) == ["data.root=/data/session=***"]


@pytest.mark.parametrize("multirun", ["-m", "--multi", "hydra.mode=MULTIRUN"])
def test_multirun_is_refused_if_it_would_save_a_secret(
    multirun: str, command: Callable[..., Result], tmp_path: Path
) -> None:
    result = command("train.py", "data=imagenet_shards", "data.urls=https://me:planted@host/x", "seed=0,1", multirun)
    shown = "data.urls=https://***@host/x: multirun would save its secret in multirun.yaml"
    assert (result.status, result.stdout) == (2, "")
    assert result.stderr == f"error: {shown}; use ~/.netrc, or start single runs\n"
    assert not list(tmp_path.iterdir())


def test_errors_and_notes_never_hold_secrets(capsys: pytest.CaptureFixture[str]) -> None:
    for kind in (InputError, TrainingError):
        error = pickle.loads(pickle.dumps(kind("https://u:pw@host: gone")))
        assert (type(error), str(error)) == (kind, "https://***@host: gone")
    print_note("https://u:pw@host: gone")
    assert capsys.readouterr().err == "note: https://***@host: gone\n"


def test_masked_addresses_are_restored_from_netrc_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert restore_credentials("https://***@host/x") is None
    (tmp_path / "netrc").write_text("machine host login me password pw\n")
    assert restore_credentials("https://***@host/x") == "https://host/x"
    assert restore_credentials("https://***@other/x") is None
    assert restore_credentials("https://***@host/x?token=***") is None
    for usable in ("https://u:pw@host/***.tar", "/shards/***", "https://host/x?token=pw"):
        assert restore_credentials(usable) == usable
    assert split_login("https://host/x") == ("https://host/x", ("me", "pw"))
    assert split_login("https://a%40b:p%2Fw@host:1/x@y") == ("https://host:1/x@y", ("a@b", "p/w"))
    assert split_login("https://other/x") == ("https://other/x", None)
    (tmp_path / "netrc").write_text("not a netrc\n")
    assert split_login("https://host/x") == ("https://host/x", None)
