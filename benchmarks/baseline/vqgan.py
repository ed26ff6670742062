"""A step of the VQGAN as published: one-hot quantiser, explicit attention, each loss walked backwards twice."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.vqgan.layers import AttnBlock, Upsample
from models.vqgan.networks import Discriminator, Encoder, Generator
from models.vqgan.vqgan import VQGAN


class ExplicitAttention(nn.Module):
    """`AttnBlock` with its weights, by batched products and a softmax."""

    def __init__(self, block: AttnBlock) -> None:
        super().__init__()
        self.norm, self.q, self.k, self.v, self.proj_out = block.norm, block.q, block.k, block.v, block.proj_out

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        normed = self.norm(x)
        q = self.q(normed).reshape(b, c, h * w).permute(0, 2, 1)
        k = self.k(normed).reshape(b, c, h * w)
        weights = F.softmax(torch.bmm(q, k) * c**-0.5, dim=2).permute(0, 2, 1)
        return x + self.proj_out(torch.bmm(self.v(normed).reshape(b, c, h * w), weights).reshape(b, c, h, w))


def explicit(network: Encoder | Generator) -> nn.Module:
    """`network`, its attention and the enlarging of its maps made explicit."""
    for number, block in enumerate(network.blocks):
        if isinstance(block, AttnBlock):
            network.blocks[number] = ExplicitAttention(block)
        elif isinstance(block, Upsample):
            network.blocks[number] = nn.Sequential(nn.Upsample(scale_factor=2.0, mode="nearest"), block.conv)
    return network


def one_hot_quantise(z: Tensor, codebook: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """z [B,D,h,w] → quantised z and the loss, by distances to all codes and a product with one-hot rows."""
    z = z.permute(0, 2, 3, 1).contiguous()
    flat = z.view(-1, codebook.shape[1])
    distances = (flat**2).sum(1, keepdim=True) + (codebook**2).sum(1) - 2 * flat @ codebook.t()
    nearest = torch.topk(distances, 1, dim=1, largest=False)[1]
    one_hot = torch.zeros(len(flat), len(codebook), device=z.device).scatter_(1, nearest, 1)
    z_q = (one_hot @ codebook).view(z.shape)
    loss = ((z_q.detach() - z) ** 2).mean() + beta * ((z_q - z.detach()) ** 2).mean()
    usage = one_hot.mean(0)
    torch.exp(-(usage * torch.log(usage + 1e-10)).sum()).item()
    return (z + (z_q - z).detach()).permute(0, 3, 1, 2).contiguous(), loss


class Trainer:
    """Autoencoder's and discriminator's update of one batch."""

    def __init__(self, vqgan: VQGAN, perceptual: Callable[[Tensor, Tensor], Tensor], lr: float) -> None:
        """Takes a VQGAN of its own: some of its blocks are exchanged."""
        self.encoder, self.generator = explicit(vqgan.ae.encoder), explicit(vqgan.ae.generator)
        self.last_layer = vqgan.ae.generator.last_layer
        self.quantize = vqgan.ae.quantize
        self.disc: Discriminator = vqgan.disc
        self.perceptual, self.weight_max = perceptual, vqgan.disc_weight_max
        self.ae_optimiser = torch.optim.Adam(vqgan.ae.parameters(), lr=lr)
        self.disc_optimiser = torch.optim.Adam(vqgan.disc.parameters(), lr=lr)

    def step(self, x: Tensor) -> dict[str, float]:
        """Images [B,3,H,W] in [0,1]; returns the terms."""
        z_q, codebook_loss = one_hot_quantise(self.encoder(x), self.quantize.codebook, self.quantize.beta)
        x_hat = self.generator(z_q)
        reconstruction = (torch.abs(x - x_hat) + self.perceptual(x, x_hat)).mean()
        g_loss = -self.disc(x_hat).mean()
        norms = [
            torch.norm(torch.autograd.grad(loss, self.last_layer, retain_graph=True)[0])
            for loss in (reconstruction, g_loss)
        ]
        weight = torch.clamp(norms[0] / (norms[1] + 1e-4), 0, self.weight_max).detach()
        loss = reconstruction + weight * g_loss + codebook_loss
        self.ae_optimiser.zero_grad()
        loss.backward()
        self.ae_optimiser.step()

        fake = x_hat.detach()
        d_loss = 0.5 * (F.relu(1 - self.disc(x)).mean() + F.relu(1 + self.disc(fake)).mean())
        self.disc_optimiser.zero_grad()
        d_loss.backward()
        self.disc_optimiser.step()
        terms = {"loss": loss, "disc_weight": weight, "g_loss": g_loss, "d_loss": d_loss, "codebook": codebook_loss}
        return {name: term.item() for name, term in terms.items()}
