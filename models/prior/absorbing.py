"""The absorbing diffusion prior: a bidirectional Transformer and its running loss histories."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import repeat

import torch
from torch import Tensor, nn

from models.prior.bounds import bound_nats, estimate_bound
from models.prior.diffusion import cross_entropy_of, objective, sample_mask, sample_time
from models.prior.prior import CodeLength, Codes, Draws, Prior, PriorLoss
from models.prior.transformer import Transformer
from models.sampling.rounds import Denoiser, Drawing
from models.sampling.samplers import SAMPLERS


class AbsorbingDiffusion(Prior):
    """p(codes), learnt by predicting masked tokens. Parameter names are the published ones."""

    mask_id: int
    loss_history: Tensor
    Lt_history: Tensor
    Lt_count: Tensor

    def __init__(
        self,
        denoise_fn: Transformer,
        *,
        mask_id: int,  # K
        total_steps: int,  # T
        loss_type: str = "reweighted_elbo",  # the objective; see `models.prior.diffusion.objective`
        reweighting: str = "published",  # of `reweighted_elbo`
        mask_schedule: str = "random",  # how training masks
    ) -> None:
        super().__init__()
        self._denoise_fn = denoise_fn
        self.mask_id, self.total_steps = mask_id, total_steps
        self.loss_type, self.reweighting, self.mask_schedule = loss_type, reweighting, mask_schedule
        for name in ("Lt_history", "Lt_count", "loss_history"):
            self.register_buffer(name, torch.zeros(total_steps + 1))

    @property
    def network(self) -> Transformer:
        return self._denoise_fn

    def logits(self, x: Tensor) -> Tensor:
        """Partly masked tokens x_t [B,N] int64 in 0..K (K masks) → logits of x_0, [B,N,K] float32."""
        self._check_shape(x)
        return self._denoise_fn(x)

    def logits_at(self, x: Tensor, places: Tensor) -> Tensor:
        """Logits of x_0 at some places alone: x_t [B,N], places [B,m] int64 → [B,m,K] float32."""
        return self._denoise_fn.logits_at(x, places)

    def draw(self, images: int, generator: torch.Generator) -> Draws:
        """Times and masks."""
        t = sample_time(images, self.total_steps, generator)
        return Draws(t, sample_mask(t, self.total_steps, self.tokens, self.mask_schedule, generator))

    def losses(self, codes: Codes, draws: Draws | None = None) -> PriorLoss:
        """Objective and bound of codes x_0 at times t and masks; see `models.prior.diffusion`."""
        assert draws is not None
        x_0 = codes.unconditional()
        self._check_shape(x_0)
        x_t = x_0.masked_fill(draws.mask, self.mask_id)
        cross_entropy = cross_entropy_of(self._denoise_fn, x_t, x_0, draws.mask)
        options = {"loss_type": self.loss_type, "reweighting": self.reweighting}
        return objective(cross_entropy, draws.t, draws.mask, total_steps=self.total_steps, **options)

    def code_length(
        self, codes: Codes, generator: torch.Generator, *, bound: str = "t_step", evaluations: int | None = None
    ) -> CodeLength:
        """A bound; without a number of `evaluations`, the T-step one by one draw of masks for each t, as published."""
        x_0 = codes.unconditional()
        if evaluations is None:
            uniforms = torch.rand((self.total_steps, *x_0.shape), generator=generator, device=x_0.device)
            nats = bound_nats(self.logits, x_0, uniforms, mask_id=self.mask_id)
            return CodeLength(nats, torch.full_like(nats, torch.nan))
        sizes = {"total_steps": self.total_steps, "mask_id": self.mask_id, "evaluations": evaluations}
        return estimate_bound(self.logits, x_0, bound, **sizes, generator=generator)

    def samples(
        self, generators: Iterable[torch.Generator], drawing: Drawing, starts: Codes | None = None
    ) -> Iterator[Tensor]:
        """By one of `models.sampling.samplers`. starts: K where a token is to be drawn."""
        if drawing.steps is not None and not 1 <= drawing.steps <= self.total_steps:
            raise ValueError(f"sample_steps must be within 1..{self.total_steps}, not {drawing.steps}")
        if drawing.sampler not in SAMPLERS:
            raise ValueError(f"sample_type must be one of {tuple(SAMPLERS)}, not {drawing.sampler!r}")
        denoiser = Denoiser(self.logits_at, self.mask_id, self.total_steps, self.device)
        blank = repeat(torch.full((self.tokens,), self.mask_id))
        pairs = zip(generators, blank if starts is None else starts.unconditional(), strict=False)
        return SAMPLERS[drawing.sampler](denoiser, pairs, drawing)

    def idle_parameters(self) -> Iterator[nn.Parameter]:
        """The start token, which published files hold."""
        yield self._denoise_fn.start_tok

    def metrics(self) -> Mapping[str, Tensor]:
        """Moving average of the objective at t = 1..T, [T]; nan where no image has had that time yet.

        The history starts at 0 and moves by a tenth per image: what that start still weighs is divided out.
        """
        share = (1 - 0.9**self.Lt_count).where(self.Lt_count > 0, torch.nan)
        return {"loss_by_time": (self.loss_history / share)[1:]}

    @torch.no_grad()
    def record(self, t: Tensor, loss: Tensor, vb_loss: Tensor) -> None:
        """Enter one batch into the per-step histories, image by image.

        t [B] int64; loss and vb_loss [B] as in `PriorLoss`. An image with time t moves a history's entry t to
        0.9 · old + 0.1 · value, if its losses are finite.
        """
        finite = loss.isfinite() & vb_loss.isfinite()
        # For each image, those of the same time that come after it.
        later = torch.triu((t[:, None] == t[None, :]) & finite, diagonal=1).sum(1)
        count = torch.zeros_like(self.Lt_count).index_add_(0, t, finite.to(self.Lt_count.dtype))
        for history, value in ((self.loss_history, loss), (self.Lt_history, vb_loss.square())):
            history.mul_(0.9**count).index_add_(0, t, (0.1 * 0.9**later * value).where(finite, 0).to(history.dtype))
        self.Lt_count += count
