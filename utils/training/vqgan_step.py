"""Gradients of the objectives in `models.vqgan.vqgan`: in few passes, in micro-batches, and over processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

from models.parts import Noise
from models.vqgan.quantizers import Quantized
from models.vqgan.vqgan import VQGAN, GeneratorTerms, adaptive_weight, generator_loss, hinge_discriminator_loss
from utils.machine.devices import autocast
from utils.machine.distributed import ALONE, Ranks, replicate, synced

Scale = Tensor | float  # a factor on a loss and its gradients, for float16
_KEPT = 1 - 0.1  # of the running statistics at every batch: 1 − nn.BatchNorm2d's momentum


@dataclass(frozen=True)
class _Look:
    """What the losses make of a micro-batch's reconstructions x̂; the last four only from the discriminator's start."""

    terms: Tensor  # [4]: l1, perceptual, g_loss, codebook
    grad: Tensor  # [B,C,H,W], of l1 + perceptual at x̂
    g_grad: Tensor | None = None  # [B,C,H,W], of g_loss at x̂
    at_last_layer: Tensor | None = None  # of both at the last layer's weights, stacked; float32, not scaled
    logits_fake: Tensor | None = None  # with their graph
    added: Sequence[Tensor] = ()  # by the fakes to each of the discriminator's buffers


class VQGANStep:
    """Adds gradients to a VQGAN's parameters; the optimisers are the caller's.

    Both losses' gradients are taken once, at x̂. The last layer's gradients, which the adaptive weight compares, and the
    autoencoder's follow from them: neither the perceptual network nor the discriminator is walked twice. The weight is
    that of the whole batch: micro-batches are first looked at without keeping their graphs, and pass the autoencoder
    again, with the weight known, for the backward pass.
    """

    def __init__(
        self,
        vqgan: VQGAN,
        amp_dtype: torch.dtype | None = None,  # autocast the networks to this type
        micro_batches: int = 1,  # equal pieces to do a batch in, one after the other
        ranks: Ranks = ALONE,  # each does its part of a batch
        compress: bool = False,  # send gradients as bfloat16
        stream: torch.cuda.Stream | None = None,  # on which it will run; None: the current one
    ) -> None:
        self.vqgan = vqgan
        self._amp_dtype, self._count, self._ranks = amp_dtype, micro_batches, ranks
        self._ae = replicate(vqgan.ae, ranks, compress=compress, stream=stream)
        self._disc = replicate(vqgan.disc, ranks, compress=compress, stream=stream)

    def backward(
        self, x: Tensor, step: int, generator: torch.Generator, scale: Scale = 1.0, d_scale: Scale = 1.0
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Add the gradients of the autoencoder's objective, and of a learning discriminator's, to their parameters.

        x: images [B,C,H,W] in [0,1]. step: updates done so far. generator: of the quantiser's noise and DiffAugment's.
        Returns the terms of the objectives, scalars by name, ids [B,N] and the encoder's output [B,D,h,w].
        """
        twice = self.vqgan.adversarial(step) and self._count > 1
        start = generator.get_state() if twice else None
        looks, codes = [], []
        for noise, images in self._micro_batches(self._ae, x, generator):
            x_hat, quantized = self._reconstruct(images, step, noise, keep_graph=not twice)
            looks.append(self._look(images, x_hat, quantized, step, noise, scale))
            codes.append((quantized.ids, quantized.z.detach()))
            if not twice:
                weight = self._weight(looks)
                self._backward(x_hat, quantized, looks[-1], weight, scale)
        if start is not None:
            weight, end = self._weight(looks), generator.get_state()
            generator.set_state(start)
            for (noise, images), look in zip(self._micro_batches(self._ae, x, generator), looks, strict=True):
                x_hat, quantized = self._reconstruct(images, step, noise, keep_graph=True)
                self._backward(x_hat, quantized, look, weight, scale)
            generator.set_state(end)
        l1, perceptual, g_loss, codebook = torch.stack([look.terms for look in looks]).mean(0).unbind()
        terms = {**vars(GeneratorTerms.of(l1, perceptual, g_loss, weight, codebook))}
        if self.vqgan.discriminator_learns(step):
            terms["d_loss"] = self._discriminator_backward(x, looks, generator, d_scale)
        ids, z = map(torch.cat, zip(*codes, strict=True))
        return terms, ids, z

    def _discriminator_backward(
        self, x: Tensor, looks: Sequence[_Look], generator: torch.Generator, scale: Scale
    ) -> Tensor:
        disc, losses = self.vqgan.disc, []
        for (noise, images), fake in zip(self._micro_batches(self._disc, x, generator), looks, strict=True):
            assert fake.logits_fake is not None
            with autocast(x.device, self._amp_dtype):
                logits_real = self._disc(self.vqgan.shown(images, noise))
                loss = hinge_discriminator_loss(logits_real, fake.logits_fake)
            if disc.training:  # as published, the running statistics see the fakes again after the reals
                for buffer, added in zip(disc.buffers(), fake.added, strict=True):
                    # Not by an operation that autograd sees: no graph of training mode reads running statistics.
                    buffer.data.mul_(_KEPT if buffer.is_floating_point() else 1).add_(added)
            (loss / self._count * scale).backward(inputs=list(disc.parameters()))
            losses.append(loss.detach())
        return torch.stack(losses).mean()

    def _micro_batches(
        self, replica: nn.Module, x: Tensor, generator: torch.Generator
    ) -> Iterator[tuple[Noise, Tensor]]:
        """Noise, cut from the same numbers for all, and images; only the last backward pass averages over processes."""
        start = generator.get_state() if self._count > 1 else None
        pieces = zip(self._ranks.part.split(self._count), x.chunk(self._count), strict=True)
        for number, (part, images) in enumerate(pieces, start=1):
            if start is not None:
                generator.set_state(start)
            with synced(replica, last=number == self._count):
                yield Noise(generator, part), images

    def _reconstruct(self, images: Tensor, step: int, noise: Noise, *, keep_graph: bool) -> tuple[Tensor, Quantized]:
        """x̂ with the whole graph, or that of the last layer alone."""
        ae = self.vqgan.ae
        with autocast(images.device, self._amp_dtype):
            if keep_graph:
                return self._ae(images, step=step, noise=noise)
            with torch.no_grad():
                quantized = ae.quantize(ae.encoder(images), step=step, noise=noise)
                features = ae.generator.features(quantized.z_q)
            return ae.generator.last_conv(features), quantized

    def _look(self, x: Tensor, x_hat: Tensor, quantized: Quantized, step: int, noise: Noise, scale: Scale) -> _Look:
        vqgan, ambient, adversarial = self.vqgan, autocast(x.device, self._amp_dtype), self.vqgan.adversarial(step)
        leaf = x_hat.detach().float().requires_grad_()
        with ambient:
            l1, perceptual = vqgan.reconstruction_terms(x, leaf)
        (grad,) = torch.autograd.grad((l1 + perceptual) * scale, leaf)
        before = [buffer.clone() for buffer in vqgan.disc.buffers()]
        with ambient, torch.set_grad_enabled(adversarial):
            logits_fake = vqgan.disc(vqgan.shown(leaf, noise))
            g_loss = generator_loss(logits_fake)
        terms = torch.stack([term.detach() for term in (l1, perceptual, g_loss, quantized.loss)])
        if not adversarial:
            return _Look(terms, grad)
        (g_grad,) = torch.autograd.grad(g_loss * scale, leaf, retain_graph=True)
        at_last_layer = torch.stack([self._at_last_layer(x_hat, g) for g in (grad, g_grad)]) / scale
        changes = zip(vqgan.disc.buffers(), before, strict=True)
        added = [now - (_KEPT * was if was.is_floating_point() else was) for now, was in changes]
        return _Look(terms, grad, g_grad, at_last_layer, logits_fake, added)

    def _at_last_layer(self, x_hat: Tensor, grad: Tensor) -> Tensor:
        """The gradient of the last layer's weights that a gradient at x̂ makes, float32."""
        # Of a norm near 1, so that float16 holds what comes of it; by a power of two, which rounds nothing.
        norm = torch.linalg.vector_norm(grad)
        unit = torch.ldexp(torch.ones_like(norm), torch.frexp(torch.where(norm.isfinite(), norm, 1)).exponent)
        last_layer = self.vqgan.ae.generator.last_layer
        (at_layer,) = torch.autograd.grad(x_hat, last_layer, (grad / unit).to(x_hat.dtype), retain_graph=True)
        return at_layer.float() * unit

    def _weight(self, looks: Sequence[_Look]) -> Tensor:
        """Adaptive weight from the last layer's gradients of all micro-batches and processes; 0 without any."""
        gradients = [look.at_last_layer for look in looks if look.at_last_layer is not None]
        if not gradients:
            return self.vqgan.ae.generator.last_layer.new_zeros(())
        reconstruction, g = self._ranks.mean(torch.stack(gradients).mean(0))
        return adaptive_weight(reconstruction, g, self.vqgan.disc_weight_max)

    def _backward(self, x_hat: Tensor, quantized: Quantized, look: _Look, weight: Tensor, scale: Scale) -> None:
        """The backward pass of the autoencoder, from x̂ and the quantiser's loss on."""
        grad = look.grad if look.g_grad is None else look.grad + weight * look.g_grad
        roots, gradients = [x_hat], [(grad / self._count).to(x_hat.dtype)]
        if quantized.loss.requires_grad:  # not every quantiser has something to learn by it
            roots.append(quantized.loss * scale / self._count)
            gradients.append(torch.ones_like(roots[1]))
        torch.autograd.backward(roots, gradients)


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
