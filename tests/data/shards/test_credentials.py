"""A user and password in the addresses of shards are used, and are found in no file and no output."""

import json
import zipfile
from base64 import b64encode
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from .servers import Faults, serving
from .sharded import SMALL, Command

USER, PASSWORD = "planted-user", "planted%20pass"
LOGIN = f"{USER}:planted pass"
SECRETS = [text.encode() for text in (USER, PASSWORD, "planted pass", b64encode(LOGIN.encode()).decode())]


def with_login(base: str) -> str:
    return base.replace("://", f"://{USER}:{PASSWORD}@")


def arguments(base: str, cache: Path) -> tuple[str, ...]:
    urls = (f"'data.urls=[\"{base}/train\"]'".strip("'"), f"data.val_urls={base}/val")
    return (*SMALL, *urls, f"data.cache_dir={cache}", "data.backoff=0.001", "data.retries=1", "data.workers=0")


def assert_nothing_planted(folder: Path, output: str) -> None:
    """Search all files of a folder, the members of zip files such as checkpoints, and what a command printed."""
    contents = {"output": output.encode()}
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError, IsADirectoryError):  # the thread that fetches shards removes its own files
            contents[str(path)] = path.read_bytes()
            if zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as archive:
                    contents |= {f"{path}/{name}": archive.read(name) for name in archive.namelist()}
    assert len(contents) > 1
    for name, content in contents.items():
        assert not [secret for secret in SECRETS if secret in content or secret in str(name).encode()], name


def test_credentials_are_used_and_reach_no_file_and_no_output(
    command: Command, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "no netrc"))
    with serving(shards, Faults("503", times=1, suffix="", login=LOGIN)) as base:
        given = arguments(with_login(base), tmp_path / "cache")
        wandb = ("logger=wandb", "logger.mode=offline")
        result = command("train.py", *given, *wandb, "run_dir=run")
        assert result.status == 0, result.stderr
        assert "warning: logger" not in result.stderr
        masked = base.replace("://", "://***@")
        assert f"note: {masked}/train/0" in result.stderr, "of the server's failures"
        config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
        assert config["data"]["urls"] == [f"{masked}/train"]
        assert f"{masked}/val" in json.loads((tmp_path / "run" / "environment.json").read_text())["command"]
        assert_nothing_planted(tmp_path, result.stdout + result.stderr)

        # A resume with the same command has the credentials again, which is no changed setting.
        resumed = command("train.py", *given, "resume=run", "train.epochs=2", "run_dir=longer")
        assert resumed.status == 0, resumed.stderr
        assert "changed since: train.epochs 1 → 2\n" in resumed.stderr
        assert_nothing_planted(tmp_path, resumed.stdout + resumed.stderr)

        # The saved configuration lacks them. They must be given again, or be in ~/.netrc.
        refused = command("eval.py", "checkpoint=run", "run_dir=eval")
        assert (refused.status, refused.stderr) == (
            2,
            f"error: data.val_urls={masked}/val: was saved without its password; give the whole address again by "
            "data.val_urls=…, or put user and password into ~/.netrc\n",
        )
        (tmp_path / "netrc").write_text(f"machine 127.0.0.1 login {USER} password 'planted pass'\n".replace("'", '"'))
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
        evaluated = command("eval.py", "checkpoint=run", "run_dir=eval")
        assert evaluated.status == 0, evaluated.stderr
        (tmp_path / "netrc").unlink()
        assert_nothing_planted(tmp_path, evaluated.stdout + evaluated.stderr)


@pytest.mark.parametrize(
    ("kind", "suffix", "line"),
    [
        ("401", ".tar", "cannot be fetched (HTTP 401 Unauthorized; user and password may be in ~/.netrc or in the ad"),
        ("404", ".tar", "no such file, but the index beside it lists it"),
        ("404", ".json", "no such file; shards need an index.json beside them"),
        ("503", ".json", "cannot be fetched (HTTP 503 Service Unavailable; tried 2 times)"),
    ],
)
def test_failing_runs_do_not_print_credentials(
    command: Command, shards: Path, tmp_path: Path, kind: str, suffix: str, line: str
) -> None:
    with serving(shards, Faults(kind, times=99, suffix=suffix, login=LOGIN)) as base:
        result = command("train.py", *arguments(with_login(base), tmp_path / "cache"), "run_dir=run")
    assert result.status == 2
    error = result.stderr.splitlines()[-1]
    assert error.startswith(f"error: {base.replace('://', '://***@')}/train/")
    assert line in error
    assert_nothing_planted(tmp_path, result.stdout + result.stderr)


def test_command_lines_that_cannot_be_read_do_not_print_credentials(command: Command, tmp_path: Path) -> None:
    url = f"https://{USER}:{PASSWORD}@host/x"
    for argument in (f"data.urls=[{url}", f"+secret_token={PASSWORD}(", f"run_dir={url}=,", f"data={url}"):
        result = command("train.py", "data=imagenet_shards", argument)
        assert result.status == 2, argument
        assert result.stderr.startswith("error: ")
        (tmp_path / "marker").touch()
        assert_nothing_planted(tmp_path, result.stdout + result.stderr)


def test_an_unexpected_error_does_not_print_credentials(
    command: Command, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import sys

    command("train.py", "data=nothing")  # installs the hook
    error = RuntimeError(f"https://{USER}:{PASSWORD}@host/x failed")
    sys.excepthook(RuntimeError, error, None)
    printed = capsys.readouterr().err
    assert printed == "RuntimeError: https://***@host/x failed\n"
