"""BatchNorm whose statistics are taken over the batches of all processes, on GPUs and on CPUs."""

import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from ..errors import InputError


def convert_batchnorm(module: nn.Module, device: torch.device) -> None:
    """Replace each BatchNorm2d in the module by a synchronized one; parameters and buffers are kept."""
    if device.type == "cuda":
        convert_sync_batchnorm(module)  # timm's handles BatchNorms that hold an activation
        return
    for name, child in module.named_children():
        plain = type(child) in (nn.BatchNorm2d, BatchNormAct2d)  # other subclasses may do more
        if plain and isinstance(child, nn.BatchNorm2d) and child.affine:
            synchronised = SyncBatchNorm2d(child.num_features, child.eps, child.momentum)
            if isinstance(child, BatchNormAct2d):
                synchronised.drop, synchronised.act = child.drop, child.act
            synchronised.weight, synchronised.bias = child.weight, child.bias
            for buffer_name, buffer in child.named_buffers():
                setattr(synchronised, buffer_name, buffer)
            setattr(module, name, synchronised)
        elif isinstance(child, nn.modules.batchnorm._BatchNorm):
            raise InputError(f"{name}: {child} cannot be synchronised over CPUs, only an affine BatchNorm2d can")
        else:
            convert_batchnorm(child, device)


class SyncBatchNorm2d(nn.BatchNorm2d):
    """SyncBatchNorm for CPUs, which torch's own refuses; gloo reduces the statistics.

    The reductions are part of the graph, so the gradients are those of one large batch, too. The processes' batches may
    differ in size. The variance is taken around the common mean in fp32, which avoids a difference of large squares.
    `drop` and `act` follow the norm in timm's BatchNormAct2d.
    """

    def __init__(self, num_features: int, eps: float, momentum: float | None) -> None:
        super().__init__(num_features, eps, momentum)
        self.drop: nn.Module | None = None
        self.act: nn.Module | None = None

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (torch's name)
        output = self.normalise(input)
        for part in (self.drop, self.act):
            output = output if part is None else part(output)
        return output

    def normalise(self, input: Tensor) -> Tensor:  # noqa: A002
        if not self.training or not dist.is_initialized():
            return super().forward(input)
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        x = input.float()
        local_count = x.new_full((1,), x.numel() / x.shape[1])
        totals = sum_over_processes(torch.cat([x.sum((0, 2, 3)), local_count]))
        count = totals[-1].detach()
        mean = totals[:-1] / count
        centred = x - mean[:, None, None]
        variance = sum_over_processes(centred.square().sum((0, 2, 3))) / count

        with torch.no_grad():
            self.num_batches_tracked += 1
            momentum = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance * count / (count - 1), momentum)

        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(input.dtype)


class SumOverProcesses(torch.autograd.Function):
    """A sum over processes. Its gradient is the sum of all gradients, since every process uses the result."""

    @staticmethod
    def forward(ctx: FunctionCtx, value: Tensor) -> Tensor:
        return reduced(value)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> Tensor:
        return reduced(gradient)


def reduced(value: Tensor) -> Tensor:
    value = value.clone()
    dist.all_reduce(value)
    return value


def sum_over_processes(value: Tensor) -> Tensor:
    return SumOverProcesses.apply(value)
