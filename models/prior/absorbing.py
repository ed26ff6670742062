"""The absorbing diffusion prior: a bidirectional Transformer and its running loss histories."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import repeat

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.prior.diffusion import DiffusionLoss, masked_cross_entropy, objective
from models.prior.transformer import Transformer
from models.sampling.categorical import Wrap, as_it_is, check_sampling, image_generators, stack_samples
from models.sampling.events import Image, diffusion_image, mlm_image, remask_times, sample_images

SAMPLE_TYPES = ("diffusion", "mlm")


class AbsorbingDiffusion(nn.Module):
    """p(codes), learnt by predicting masked tokens. Parameter names are the published ones."""

    loss_history: Tensor
    Lt_history: Tensor
    Lt_count: Tensor

    def __init__(self, denoise_fn: Transformer, *, mask_id: int, total_steps: int) -> None:
        super().__init__()
        self._denoise_fn = denoise_fn
        self.mask_id = mask_id
        self.total_steps = total_steps
        for name in ("Lt_history", "Lt_count", "loss_history"):
            self.register_buffer(name, torch.zeros(total_steps + 1))

    @property
    def tokens(self) -> int:
        """N, number of tokens of a sample."""
        return self._denoise_fn.pos_emb.shape[1]

    def logits(self, x_t: Tensor) -> Tensor:
        """Partly masked tokens x_t [B,N] int64 in 0..K (K masks) → logits of x_0, [B,N,K] float32."""
        if x_t.ndim != 2 or x_t.shape[1] != self.tokens:
            raise ValueError(f"x_t must have shape [B, {self.tokens}], not {list(x_t.shape)}")
        return self._denoise_fn(x_t)

    def losses(
        self, x_0: Tensor, t: Tensor, mask: Tensor, loss_type: str, reweighting: str = "published"
    ) -> DiffusionLoss:
        """Objective and bound of codes x_0 [B,N] at times t [B] and masks [B,N]; see `models.prior.diffusion`."""
        x_t = x_0.masked_fill(mask, self.mask_id)
        if x_0.is_cuda:  # one shape whatever is masked, and no wait to learn how much is
            cross_entropy = masked_cross_entropy(self.logits(x_t), x_0, mask)
        else:
            nats = F.cross_entropy(self._denoise_fn(x_t, mask), x_0[mask], reduction="none")
            cross_entropy = nats.new_zeros(mask.shape).masked_scatter(mask, nats).sum(1)
        return objective(
            cross_entropy,
            t,
            mask,
            total_steps=self.total_steps,
            loss_type=loss_type,
            reweighting=reweighting,
        )

    def logits_at(self, x_t: Tensor, places: Tensor) -> Tensor:
        """Logits of x_0 at some places alone: x_t [B,N], places [B,m] int64 → [B,m,K] float32."""
        return self._denoise_fn.logits_at(x_t, places)

    def samples(
        self,
        generators: Iterable[torch.Generator],
        *,
        batch_size: int,
        temp: float = 1.0,
        sample_steps: int | None = None,
        sample_type: str = "diffusion",
        starts: Iterable[Tensor] | None = None,
        n: int | None = None,
        wrap: Wrap = as_it_is,
        invalid: Tensor | None = None,
    ) -> Iterator[Tensor]:
        """A sample for each of the CPU `generators`, in order: ids [N] int64 in 0..K-1, on the model's device.

        A sample is a function of its own generator, whatever is drawn beside it; `batch_size` images are evaluated
        together. `sample_steps` None means T. starts: what is given of each sample, ids [N] int64 on the CPU, K where
        it is to be drawn; `diffusion` keeps it. n: how many generators there are, where that is known, which saves
        evaluations on CUDA; for this, `wrap` and `invalid` see `sample_images`.
        """
        steps = self.total_steps if sample_steps is None else sample_steps
        if not 1 <= steps <= self.total_steps:
            raise ValueError(f"sample_steps must be within 1..{self.total_steps}, not {steps}")
        check_sampling(temp, batch_size)
        if sample_type == "diffusion":
            begin = partial(diffusion_image, steps=steps)
        elif sample_type == "mlm":
            probabilities = [t / self.total_steps for t in remask_times(self.total_steps, steps)]
            begin = partial(mlm_image, mask_probabilities=probabilities)
        else:
            raise ValueError(f"sample_type must be one of {SAMPLE_TYPES}, not {sample_type!r}")
        if starts is None:
            starts = repeat(torch.full((self.tokens,), self.mask_id))
        elif sample_type != "diffusion":
            raise ValueError(f"sample_type {sample_type!r} would draw given tokens anew: use 'diffusion'")

        def image(generator: torch.Generator, start: Tensor) -> Image:
            return begin(start, mask_id=self.mask_id, generator=generator)

        return sample_images(
            self.logits_at,
            map(image, generators, starts),
            mask_id=self.mask_id,
            temp=temp,
            batch_size=batch_size,
            device=self._denoise_fn.pos_emb.device,
            n=n,
            static=self._denoise_fn.pos_emb.is_cuda,
            wrap=wrap,
            invalid=invalid,
        )

    def sample(
        self,
        n: int,
        *,
        generator: torch.Generator | None = None,
        temp: float = 1.0,
        sample_steps: int | None = None,
        sample_type: str = "diffusion",
        batch_size: int = 64,
    ) -> Tensor:
        """Draw n samples, at most `batch_size` at a time: ids [n,N] int64 in 0..K-1, on the model's device.

        Without a `generator` the draws follow torch's global stream. `sample_steps` None means T.

        Raises:
            FloatingPointError: logits are not finite.
        """
        invalid = torch.zeros((), dtype=torch.int64, device=self._denoise_fn.pos_emb.device)
        samples = self.samples(
            image_generators(n, generator),
            batch_size=batch_size,
            temp=temp,
            sample_steps=sample_steps,
            sample_type=sample_type,
            invalid=invalid,
            n=n,
        )
        return stack_samples(samples, self.tokens, invalid)

    def idle_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters that training never uses: the start token, which published files hold."""
        yield self._denoise_fn.start_tok

    def loss_by_time(self) -> Tensor:
        """Moving average of the objective at t = 1..T, [T]; nan where no image has had that time yet.

        The history starts at 0 and moves by a tenth per image: what that start still weighs is divided out.
        """
        return (self.loss_history / (1 - 0.9**self.Lt_count).where(self.Lt_count > 0, torch.nan))[1:]

    @torch.no_grad()
    def record(self, t: Tensor, loss: Tensor, vb_loss: Tensor) -> None:
        """Enter one batch into the per-step histories, image by image. Only training calls it.

        t [B] int64; loss and vb_loss [B] as in `DiffusionLoss`. An image with time t moves a history's entry t to
        0.9 · old + 0.1 · value, if its losses are finite.
        """
        finite = loss.isfinite() & vb_loss.isfinite()
        # For each image, those of the same time that come after it.
        later = torch.triu((t[:, None] == t[None, :]) & finite, diagonal=1).sum(1)
        count = torch.zeros_like(self.Lt_count).index_add_(0, t, finite.to(self.Lt_count.dtype))
        for history, value in ((self.loss_history, loss), (self.Lt_history, vb_loss.square())):
            history.mul_(0.9**count).index_add_(0, t, (0.1 * 0.9**later * value).where(finite, 0).to(history.dtype))
        self.Lt_count += count
