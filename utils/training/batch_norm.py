"""Batch normalisation whose statistics are those of the whole batch, spread over processes."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce


class SyncBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` over the batches of all processes, each of the same size. Names in files are the same.

    torch's own SyncBatchNorm refuses CPU tensors; this one is the same everywhere. One reduction of 2·C numbers per
    pass: first and second moments about the running mean, which all processes share.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[B,C,H,W] → [B,C,H,W]."""
        if not self.training:
            return super().forward(x)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        with torch.autocast(x.device.type, enabled=False):
            centre = self.running_mean.clone()
            shifted = (x if x.dtype == torch.float64 else x.float()) - centre[:, None, None]
            moments = torch.stack([shifted.mean((0, 2, 3)), shifted.square().mean((0, 2, 3))])
            mean, square = all_reduce(moments / dist.get_world_size()).unbind()
            variance = square - mean.square()
            scale = self.weight * (variance + self.eps).rsqrt()
            y = (shifted - mean[:, None, None]) * scale[:, None, None] + self.bias[:, None, None]
            with torch.no_grad():
                places = x.numel() // x.shape[1] * dist.get_world_size()
                self.num_batches_tracked += 1
                self.running_mean.lerp_(mean + centre, self.momentum)
                self.running_var.lerp_(variance * (places / max(1, places - 1)), self.momentum)
        return y.to(x.dtype)


def synchronise_batch_norm(module: nn.Module) -> None:
    """Make every `nn.BatchNorm2d` within a module a `SyncBatchNorm2d` with the same parameters and buffers."""
    for child in module.modules():
        if type(child) is nn.BatchNorm2d:
            child.__class__ = SyncBatchNorm2d
