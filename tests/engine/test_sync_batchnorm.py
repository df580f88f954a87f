"""SyncBatchNorm over two CPU processes equals BatchNorm over their joint batch."""

from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from xcit.engine.sync_batchnorm import SyncBatchNorm2d, convert_batchnorm

from ..conftest import in_two_processes

SHARES = (slice(0, 3), slice(3, 8))  # the two shares differ in size


def make() -> tuple[nn.Module, Tensor, Tensor]:
    """Returns a small network with random weights, inputs far from zero, and the gradient of the output."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.GELU(), nn.BatchNorm2d(4))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter))
    return network, 100 + torch.randn(8, 3, 5, 5), torch.randn(8, 4, 5, 5)


def results(network: nn.Module, x: Tensor, direction: Tensor) -> dict[str, Tensor]:
    x = x.clone().requires_grad_()
    output = network(x)
    (output * direction).sum().backward()
    assert x.grad is not None
    gradients = {f"grad {key}": p.grad for key, p in network.named_parameters() if p.grad is not None}
    return {"output": output.detach(), "input grad": x.grad} | gradients | dict(network.named_buffers())


def work(rank: int, folder: str, on: str) -> None:
    """On GPUs the processes use NCCL, or gloo if there is only one GPU: NCCL refuses to share it."""
    backend = "nccl" if on == "cuda" and torch.cuda.device_count() > 1 else "gloo"
    device = torch.device(on, rank % torch.cuda.device_count()) if on == "cuda" else torch.device(on)
    dist.init_process_group(backend, init_method=f"file://{folder}/store", rank=rank, world_size=2)
    network, x, direction = (thing.to(device) for thing in make())
    convert_batchnorm(network, device)
    assert sum(isinstance(m, nn.SyncBatchNorm if on == "cuda" else SyncBatchNorm2d) for m in network.modules()) == 2
    found = results(network, x[SHARES[rank]], direction[SHARES[rank]])
    torch.save({key: value.cpu() for key, value in found.items()}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("on", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_two_processes_equal_one(tmp_path: Path, on: str) -> None:
    in_two_processes(partial(work, on=on), tmp_path)
    shares = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    whole = results(*make())
    for key in whole:
        if key in ("output", "input grad"):
            together = torch.cat([share[key] for share in shares])
        elif key.startswith("grad"):
            together = shares[0][key] + shares[1][key]
        else:
            assert torch.equal(shares[0][key], shares[1][key])
            together = shares[0][key]
        scale = max(1, whole[key].abs().max().item())  # some gradients are zero except for rounding
        torch.testing.assert_close(
            together, whole[key], rtol=1e-4, atol=1e-4 * scale, msg=lambda m, key=key: f"{key}: {m}"
        )


def work_with_activation(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    network = nn.Sequential(BatchNormAct2d(3, act_layer=nn.SiLU))
    convert_batchnorm(network, torch.device("cpu"))
    torch.save({"keys": list(network.state_dict()), "output": network(activations())}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def activations() -> Tensor:
    return torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))


def test_timms_batchnorm_keeps_its_activation(tmp_path: Path) -> None:
    in_two_processes(work_with_activation, tmp_path)
    network = nn.Sequential(BatchNormAct2d(3, act_layer=nn.SiLU))
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert found["keys"] == list(network.state_dict())
        torch.testing.assert_close(found["output"], network(activations()))
