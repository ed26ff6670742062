"""Gradients of the VQGAN's objectives, in as few passes as they need, in micro-batches, and over processes.

`models.vqgan.vqgan` says what is computed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.parts import Noise
from models.vqgan.networks import Discriminator
from models.vqgan.quantizers import Quantized
from models.vqgan.vqgan import VQGAN, GeneratorTerms, adaptive_weight, generator_loss, hinge_discriminator_loss
from utils.machine.devices import autocast
from utils.machine.distributed import ALONE, Ranks, replicate, synced


@dataclass(frozen=True)
class Judged:
    """The discriminator's pass over the fakes: its own objective goes on from there, and need not repeat it."""

    logits: Tensor  # D(fake) with its graph; fake is x_hat, augmented if DiffAugment is on
    before: list[Tensor]  # the discriminator's buffers before the pass
    after: list[Tensor]  # and after it


@dataclass(frozen=True)
class GeneratorPass:
    """What one pass of the autoencoder's objective leaves behind; nothing but `judged` has a gradient."""

    terms: GeneratorTerms
    x_hat: Tensor  # [B,C,H,W] float32, reconstructions
    ids: Tensor  # [B,N] int64
    z: Tensor  # [B,D,h,w], the encoder's output
    judged: list[Judged]  # of each micro-batch; none before the discriminator's start


@dataclass(frozen=True)
class _Look:
    """What the losses make of the reconstructions of a micro-batch."""

    grad: Tensor  # [B,C,H,W], of l1 + perceptual at x̂
    g_grad: Tensor | None  # [B,C,H,W], of g_loss at x̂
    terms: Tensor  # [4]: l1, perceptual, g_loss, codebook
    left: tuple[Tensor, Tensor, Tensor]  # x_hat, ids and z of `GeneratorPass`
    judged: Judged | None


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
        *,
        amp_dtype: torch.dtype | None = None,  # autocast the networks to this type
        micro_batches: int = 1,  # equal pieces to do a batch in, one after the other
        ranks: Ranks = ALONE,  # each does its part of a batch
        compress: bool = False,  # send gradients as bfloat16
        stream: torch.cuda.Stream | None = None,  # on which it will run; None: the current one
    ) -> None:
        self.vqgan = vqgan
        self._amp_dtype = amp_dtype
        self._count = micro_batches
        self._ranks = ranks
        networks = {"ae": vqgan.ae, "disc": vqgan.disc}
        self._replicas = {
            name: replicate(network, ranks, compress=compress, stream=stream) for name, network in networks.items()
        }

    def generator_backward(
        self, x: Tensor, step: int, generator: torch.Generator | None = None, scale: Tensor | float = 1.0
    ) -> GeneratorPass:
        """Add the gradients of the autoencoder's objective at images x [B,C,H,W] in [0,1] to its parameters.

        step: updates done so far. generator: of the quantiser's noise and DiffAugment's. scale: factor on every
        gradient (loss scaling in float16).
        """
        adversarial = self.vqgan.adversarial(step)
        twice = adversarial and self._count > 1
        start = generator.get_state() if generator is not None and self._count > 1 else None
        pieces = list(zip(self._noises(generator), x.chunk(self._count), strict=True))

        def reconstruct(noise: Noise, images: Tensor, keep_graph: bool) -> tuple[Tensor, Quantized]:
            _rewind(generator, start)
            ae = self.vqgan.ae
            with autocast(x.device, self._amp_dtype):
                if keep_graph:
                    return self._replicas["ae"](images, step=step, noise=noise)
                with torch.no_grad():
                    quantized = ae.quantize(ae.encoder(images), step=step, noise=noise)
                    features = ae.generator.features(quantized.z_q)
                return ae.generator.last_conv(features), quantized

        def backward(x_hat: Tensor, quantized: Quantized, look: _Look) -> None:
            grad = look.grad if look.g_grad is None else look.grad + weight * look.g_grad
            roots, gradients = [x_hat], [(grad / self._count).to(x_hat.dtype)]
            if quantized.loss.requires_grad:  # not every quantiser has something to learn by it
                roots.append(quantized.loss * scale / self._count)
                gradients.append(torch.ones_like(roots[1]))
            torch.autograd.backward(roots, gradients)

        looks, at_last_layer = [], []
        for number, (noise, images) in enumerate(pieces):
            with self._synced("ae", last=number + 1 == self._count):
                x_hat, quantized = reconstruct(noise, images, keep_graph=not twice)
                look = self._look(images, x_hat, quantized, adversarial, noise, scale)
                looks.append(look)
                if adversarial:
                    at_last_layer.append(self._at_last_layer(x_hat, look) / scale)
                if not twice:
                    weight = self._weight(at_last_layer)
                    backward(x_hat, quantized, look)
        after = generator.get_state() if twice and generator is not None else None
        if twice:
            weight = self._weight(at_last_layer)
            for number, ((noise, images), look) in enumerate(zip(pieces, looks, strict=True)):
                with self._synced("ae", last=number + 1 == self._count):
                    backward(*reconstruct(noise, images, keep_graph=True), look)
        _rewind(generator, after)

        l1, perceptual, g_loss, codebook = torch.stack([look.terms for look in looks]).mean(0).unbind()
        terms = GeneratorTerms.of(l1, perceptual, g_loss, weight, codebook)
        x_hat, ids, z = (torch.cat(parts) for parts in zip(*(look.left for look in looks), strict=True))
        return GeneratorPass(terms, x_hat, ids, z, [look.judged for look in looks if look.judged])

    def discriminator_backward(
        self, x: Tensor, judged: Sequence[Judged], generator: torch.Generator | None, scaler: torch.amp.GradScaler
    ) -> Tensor:
        """Add the gradients of the discriminator's loss, scaled, to its parameters alone; returns the loss, scalar.

        x: images [B,C,H,W] in [0,1]; judged: what the generator's pass over them left. The discriminator must not have
        changed since.
        """
        disc, losses = self.vqgan.disc, []
        parameters = list(disc.parameters())
        start = generator.get_state() if generator is not None and self._count > 1 else None
        pieces = zip(self._noises(generator), x.chunk(self._count), judged, strict=True)
        for number, (noise, images, fake) in enumerate(pieces, start=1):
            with self._synced("disc", last=number == self._count):
                _rewind(generator, start)
                with autocast(x.device, self._amp_dtype):
                    logits_real = self._replicas["disc"](self.vqgan.shown(images, noise))
                    if disc.training:  # as published, the running statistics see the fakes again after the reals
                        _see_again(disc, fake.before, fake.after)
                    loss = hinge_discriminator_loss(logits_real, fake.logits)
                scaler.scale(loss / self._count).backward(inputs=parameters)
                losses.append(loss.detach())
        return torch.stack(losses).mean()

    def _noises(self, generator: torch.Generator | None) -> list[Noise]:
        """Those of the micro-batches."""
        return [Noise(generator, part) for part in self._ranks.part.split(self._count)]

    def _synced(self, network: str, *, last: bool) -> contextlib.AbstractContextManager[None]:
        """Only the last micro-batch's backward pass ends in an average over processes."""
        return synced(self._replicas[network], last=last)

    def _look(
        self, x: Tensor, x_hat: Tensor, quantized: Quantized, adversarial: bool, noise: Noise, scale: Tensor | float
    ) -> _Look:
        vqgan, ambient = self.vqgan, autocast(x.device, self._amp_dtype)
        leaf = x_hat.detach().float().requires_grad_()
        with ambient:
            l1, perceptual = vqgan.reconstruction_terms(x, leaf)
        (grad,) = torch.autograd.grad((l1 + perceptual) * scale, leaf)
        with ambient, torch.set_grad_enabled(adversarial):
            fake = vqgan.shown(leaf, noise)
            before = [buffer.clone() for buffer in vqgan.disc.buffers()]
            logits_fake = vqgan.disc(fake)
            g_loss = generator_loss(logits_fake)
        g_grad = torch.autograd.grad(g_loss * scale, leaf, retain_graph=True)[0] if adversarial else None
        after = [buffer.clone() for buffer in vqgan.disc.buffers()]
        judged = Judged(logits_fake, before, after) if adversarial else None
        terms = torch.stack([term.detach() for term in (l1, perceptual, g_loss, quantized.loss)])
        return _Look(grad, g_grad, terms, (leaf.detach(), quantized.ids, quantized.z.detach()), judged)

    def _at_last_layer(self, x_hat: Tensor, look: _Look) -> Tensor:
        """Both losses' gradients at the last layer, stacked, float32."""
        last_layer, gradients = self.vqgan.ae.generator.last_layer, []
        for g in (look.grad, look.g_grad):
            if g is not None:
                # Of a norm near 1, so that float16 holds what comes of it; by a power of two, which rounds nothing.
                norm = torch.linalg.vector_norm(g)
                unit = torch.ldexp(torch.ones_like(norm), torch.frexp(torch.where(norm.isfinite(), norm, 1)).exponent)
                (at_layer,) = torch.autograd.grad(x_hat, last_layer, (g / unit).to(x_hat.dtype), retain_graph=True)
                gradients.append(at_layer.float() * unit)
        return torch.stack(gradients)

    def _weight(self, at_last_layer: Sequence[Tensor]) -> Tensor:
        """Adaptive weight from the last layer's gradients of all micro-batches and processes; 0 without any."""
        if not at_last_layer:
            return self.vqgan.ae.generator.last_layer.new_zeros(())
        reconstruction, g = self._ranks.mean(torch.stack(list(at_last_layer)).mean(0))
        return adaptive_weight(reconstruction, g, self.vqgan.disc_weight_max)


def _see_again(disc: Discriminator, before: Sequence[Tensor], after: Sequence[Tensor]) -> None:
    """Move the running statistics as if the batch that took them from `before` to `after` came once more."""
    keep = 1 - 0.1  # the momentum of nn.BatchNorm2d
    for value, was, then in zip(disc.buffers(), before, after, strict=True):
        if value.is_floating_point():
            # Not by an operation that autograd sees: no graph of training mode reads running statistics.
            value.data.mul_(keep).add_(then - keep * was)
        else:  # the number of batches
            value += 1


def _rewind(generator: torch.Generator | None, state: Tensor | None) -> None:
    """Put a generator back to an earlier `get_state`, so that the next micro-batch draws what the last one did."""
    if generator is not None and state is not None:
        generator.set_state(state)
