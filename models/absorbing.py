"""The absorbing diffusion prior: a bidirectional Transformer and its running loss histories."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.diffusion import DiffusionLoss, diffusion_loss
from models.samplers import own_generator, remask_times, sample_diffusion, sample_mlm
from models.transformer import Transformer


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
        return self._denoise_fn(x_t)

    def losses(
        self, x_0: Tensor, t: Tensor, mask: Tensor, loss_type: str, reweighting: str = "published"
    ) -> DiffusionLoss:
        """Objective and bound of codes x_0 [B,N] at times t [B] and masks [B,N]; see `diffusion_loss`."""
        return diffusion_loss(
            self.logits,
            x_0,
            t,
            mask,
            total_steps=self.total_steps,
            mask_id=self.mask_id,
            loss_type=loss_type,
            reweighting=reweighting,
        )

    def sample(
        self,
        n: int,
        *,
        generator: torch.Generator | None = None,
        temp: float = 1.0,
        sample_steps: int | None = None,
        sample_type: str = "diffusion",
    ) -> Tensor:
        """Draw n samples: ids [n,N] int64 in 0..K-1, on the model's device.

        Without a `generator` (of that device) the draws follow torch's global stream. `sample_steps` None means T.
        """
        generator = own_generator(generator, self._denoise_fn.pos_emb.device)
        x_T = torch.full((n, self.tokens), self.mask_id, device=generator.device)
        steps = sample_steps or self.total_steps
        if sample_type == "diffusion":
            return sample_diffusion(self.logits, x_T, mask_id=self.mask_id, steps=steps, temp=temp, generator=generator)
        if sample_type == "mlm":
            times = remask_times(self.total_steps, steps)
            return sample_mlm(
                self.logits,
                x_T,
                mask_id=self.mask_id,
                mask_probabilities=[t / self.total_steps for t in times],
                temp=temp,
                generator=generator,
            )
        raise ValueError(f"sample_type must be 'diffusion' or 'mlm', not {sample_type!r}")

    @torch.no_grad()
    def record(self, t: Tensor, losses: DiffusionLoss) -> None:
        """Enter one batch into the per-step histories, image by image: t [B] int64. Only training calls it.

        An image with time t moves a history's entry t to 0.9 · old + 0.1 · value, if its losses are finite.
        """
        finite = losses.loss.isfinite() & losses.vb_loss.isfinite()
        # For each image, those of the same time that come after it.
        later = torch.triu((t[:, None] == t[None, :]) & finite, diagonal=1).sum(1)
        count = torch.zeros_like(self.Lt_count).index_add_(0, t, finite.to(self.Lt_count.dtype))
        for history, value in ((self.loss_history, losses.loss), (self.Lt_history, losses.vb_loss.square())):
            history.mul_(0.9**count).index_add_(0, t, (0.1 * 0.9**later * value).where(finite, 0).to(history.dtype))
        self.Lt_count += count
