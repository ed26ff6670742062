"""A prior over codes: what training, sampling and likelihoods need of it, whichever kind it is."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.prior.transformer import Transformer, pick
from models.sampling.categorical import Rule, image_generators
from models.sampling.rounds import Drawing


@dataclass(frozen=True)
class Codes:
    """A batch of codes, and what they are conditioned on."""

    ids: Tensor  # [B,N] int64 in 0..K-1, in raster order; at the start of sampling, K where a code is to be drawn
    condition: Tensor | None = None  # [B,…]; None: nothing

    def unconditional(self) -> Tensor:
        """The ids, for a prior that knows no conditions: ValueError if there is one."""
        if self.condition is not None:
            raise ValueError("this prior takes no condition")
        return self.ids


@dataclass(frozen=True)
class Draws:
    """What is random in a diffusion's losses of a batch."""

    t: Tensor  # [B] int64 in 1..T, times
    mask: Tensor  # [B,N] bool, the places that are masked

    def __getitem__(self, images: slice | Tensor) -> "Draws":
        return Draws(self.t[images], self.mask[images])


@dataclass(frozen=True)
class PriorLoss:
    """The objective and the code length, one value per image."""

    loss: Tensor  # [B], the training objective: bits per token, but nats per masked token for `mlm`
    vb_loss: Tensor  # [B], bits per token: −log2 p(codes), or a one-sample estimate of a bound on it
    cross_entropy: Tensor  # [B], summed over the places that are predicted, nats


@dataclass(frozen=True)
class CodeLength:
    """−log p(codes), or an unbiased estimate of an upper bound on it, one value per image."""

    nats: Tensor  # [B] float64
    variance: Tensor  # [B] float64, Monte Carlo variance of `nats`, nats²: 0 if exact, NaN if one draw does not tell it


class Prior(nn.Module, ABC):
    """p(codes), N tokens out of K, by a Transformer."""

    mask_id: int | None = None  # K, the symbol of a token that is not known; None where the prior has none
    exact = False  # whether `code_length` is −log p(codes) itself

    @property
    @abstractmethod
    def network(self) -> Transformer:
        """The Transformer; its name in files is the published one."""

    @property
    def tokens(self) -> int:
        """N, number of tokens of a sample."""
        return self.network.pos_emb.shape[1]

    @property
    def device(self) -> torch.device:
        return self.network.pos_emb.device

    def idle_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters that training never uses."""
        return iter(())

    def draw(self, images: int, generator: torch.Generator) -> Draws | None:
        """What `losses` of so many images need that is random; None for nothing."""
        return None

    @abstractmethod
    def losses(self, codes: Codes, draws: Draws | None = None) -> PriorLoss:
        """Objective and code length of a batch; `draws` are those of `draw`."""

    def record(self, t: Tensor, loss: Tensor, vb_loss: Tensor) -> None:
        """Enter a training batch with draws into the prior's statistics."""

    def metrics(self) -> Mapping[str, Tensor]:
        """Statistics of the training so far, by the names of metrics."""
        return {}

    @abstractmethod
    def logits(self, x: Tensor) -> Tensor:
        """Tokens x [B,N] int64 → logits of the codes, [B,N,K] float32."""

    def logits_at(self, x: Tensor, places: Tensor) -> Tensor:
        """`logits` at some places alone: x [B,N], places [B,m] int64 → [B,m,K] float32."""
        return pick(self.logits(x), places)

    @abstractmethod
    def code_length(
        self, codes: Codes, generator: torch.Generator, *, bound: str = "t_step", evaluations: int | None = None
    ) -> CodeLength:
        """−log p(codes) if `exact`, else an estimate of `bound` by so many `evaluations` per image.

        bound: of `models.prior.bounds.CODE_BOUNDS`. evaluations: None for one draw of masks at each t of `t_step`.
        """

    @abstractmethod
    def samples(
        self, generators: Iterable[torch.Generator], drawing: Drawing, starts: Codes | None = None
    ) -> Iterator[Tensor]:
        """A sample for each of the CPU `generators`, in order: ids [N] int64 in 0..K-1, on the model's device.

        A sample is a function of its own generator, whatever is drawn beside it. starts: what is given of each sample,
        on the CPU; None for nothing. ValueError: what cannot be drawn.
        """

    def sample(
        self, n: int, *, generator: torch.Generator | None = None, temp: float = 1.0, sample_steps: int | None = None,
        sample_type: str = "diffusion", batch_size: int = 64,
    ) -> Tensor:  # fmt: skip
        """Draw n samples, at most `batch_size` at a time: ids [n,N] int64 in 0..K-1, on the model's device.

        Without a `generator` the draws follow torch's global stream. sample_steps, sample_type: of a prior that
        predicts masked tokens; None means T. FloatingPointError: logits are not finite.
        """
        invalid = torch.zeros((), dtype=torch.int64, device=self.device)
        drawing = Drawing(batch_size, Rule(temp), sample_steps, sample_type, n, invalid=invalid)
        drawn = list(self.samples(image_generators(n, generator), drawing))
        if invalid:
            raise FloatingPointError("the logits are not finite: use float32 or bfloat16, or other weights")
        return torch.stack(drawn) if drawn else invalid.new_empty((0, self.tokens))

    def _check_shape(self, x: Tensor) -> None:
        if x.ndim != 2 or x.shape[1] != self.tokens:
            raise ValueError(f"tokens must have shape [B, {self.tokens}], not {list(x.shape)}")
