"""Published weights load with timm's or the authors' key names; other weights raise an error."""

import pickle
from pathlib import Path

import pytest
import torch

import xcit
from scripts.parity import make_weights_tell
from xcit.weights.formats import to_timm_names


def telling_model(**options: object) -> torch.nn.Module:
    torch.manual_seed(0)
    model = xcit.create_model("xcit_n12", num_classes=7, **options)
    make_weights_tell(model)
    return model.eval()


def authors_file(model: torch.nn.Module, path: Path) -> Path:
    """The weights in the format of the authors' training."""
    state = model.state_dict()
    for layer in range(2):
        for kind in ("weight", "bias"):
            parts = [state.pop(f"cls_attn_blocks.{layer}.attn.{name}.{kind}") for name in "qkv"]
            state[f"cls_attn_blocks.{layer}.attn.qkv.{kind}"] = torch.cat(parts)
    renamed = {key.replace("pos_embed.", "pos_embeder."): value for key, value in state.items()}
    torch.save({"model": renamed}, path)
    return path


def test_the_authors_file_makes_the_same_function(tmp_path: Path) -> None:
    source, target = telling_model(), xcit.create_model("xcit_n12", num_classes=7).eval()
    xcit.load_weights(target, authors_file(source, tmp_path / "xcit_nano_12_p16_224.pth"))
    images = torch.randn(2, 3, 64, 48)
    with torch.inference_mode():
        assert torch.equal(source(images), target(images))


def test_names_that_are_timms_already_stay() -> None:
    state = telling_model().state_dict()
    assert list(to_timm_names(state)) == list(state)


def test_another_architecture_is_refused_with_the_keys_that_differ(tmp_path: Path) -> None:
    path = authors_file(telling_model(), tmp_path / "n12.pth")
    model = xcit.create_model("xcit_t24", num_classes=7)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(xcit.InputError) as caught:
        xcit.load_weights(model, path)
    message = str(caught.value)
    assert message.startswith(f"{path}: belongs to another architecture")
    assert "missing: blocks.12.gamma1" in message
    assert "cls_token (1×1×128, the model's is 1×1×192)" in message
    assert len(message.splitlines()) <= 4
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


class Intruder:
    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("intruded"),))


def test_a_pickle_that_carries_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Intruder()}, tmp_path / "evil.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"model": Intruder()}))
    for name in ("evil.pth", "plain.pth"):
        with pytest.raises(xcit.InputError, match=f"{name}: not a file of weights"):
            xcit.load_weights(xcit.create_model("xcit_n12"), tmp_path / name)
    assert not (tmp_path / "intruded").exists()


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 half an archive"])
def test_a_file_that_holds_no_weights_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.pth"
    path.write_bytes(content)
    with pytest.raises(xcit.InputError, match=r"broken\.pth: (not a file of weights|damaged)"):
        xcit.load_weights(xcit.create_model("xcit_n12"), path)


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    path = authors_file(telling_model(), tmp_path / "cut.pth")
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(xcit.InputError, match=r"cut\.pth: damaged \(its end is missing"):
        xcit.load_weights(xcit.create_model("xcit_n12"), path)


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(xcit.InputError, match=r"nowhere\.pth: no such file"):
        xcit.load_weights(xcit.create_model("xcit_n12"), "nowhere.pth")


def test_a_list_in_a_file_is_not_weights(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(xcit.InputError, match="holds a list"):
        xcit.load_weights(xcit.create_model("xcit_n12"), tmp_path / "list.pth")
