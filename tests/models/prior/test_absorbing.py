"""The absorbing prior's running histories, and what it refuses."""

from typing import Any

import pytest
import torch
from small_models import seeded, transformer, uniform

from models.prior.absorbing import AbsorbingDiffusion
from models.prior.diffusion import LOSS_TYPES
from models.prior.prior import Codes, Draws
from models.sampling.rounds import Drawing


@pytest.fixture
def prior() -> AbsorbingDiffusion:
    net = transformer(codebook_size=5, vocab_size=6, n_emb=8, n_head=2, n_layers=1, block_size=4)
    return AbsorbingDiffusion(net, mask_id=5, total_steps=10, loss_type="elbo")


@pytest.mark.parametrize("t", [[3, 7, 10], [4, 4, 4, 4], [2, 9, 2, 9, 9, 1]])
def test_histories_move_image_by_image(prior: AbsorbingDiffusion, t: list[int]) -> None:
    """As a plain loop does, also where images of a batch share a time."""
    loss_history, Lt_history, counts = uniform(11), uniform(11, seed=1), torch.zeros(11)
    prior.loss_history.copy_(loss_history)
    prior.Lt_history.copy_(Lt_history)
    for batch in range(3):
        loss, vb_loss = uniform(2, len(t), seed=2 + batch) * 5
        prior.record(torch.tensor(t), loss, vb_loss)
        for time, one_loss, one_bound in zip(t, loss, vb_loss, strict=True):
            loss_history[time] = 0.9 * loss_history[time] + 0.1 * one_loss
            Lt_history[time] = 0.9 * Lt_history[time] + 0.1 * one_bound**2
            counts[time] += 1
    torch.testing.assert_close(prior.loss_history, loss_history)
    torch.testing.assert_close(prior.Lt_history, Lt_history)
    assert torch.equal(prior.Lt_count, counts)


def test_neither_losses_that_are_not_finite_nor_graphs_leave_a_trace(prior: AbsorbingDiffusion) -> None:
    """Nor does the start at 0 in the average."""
    loss = torch.tensor([2.0, torch.nan, 1.0], requires_grad=True)
    prior.record(torch.tensor([3, 3, 4]), loss, torch.tensor([1.0, 1.0, torch.inf]))
    assert not prior.loss_history.requires_grad
    assert prior.Lt_count.nonzero().tolist() == [[3]]
    expected = torch.full((10,), torch.nan)  # t = 1..10
    expected[2] = 2
    torch.testing.assert_close(prior.metrics()["loss_by_time"], expected, equal_nan=True)


def test_losses_mask_by_the_mask_id(prior: AbsorbingDiffusion) -> None:
    """What is masked is hidden: the loss depends on a masked token as a target, never as an input."""
    draws = Draws(torch.tensor([5]), torch.tensor([[False, True, False, False]]))
    prior.loss_type = "mlm"
    log_p = prior.logits(torch.tensor([[0, 5, 2, 3]])).log_softmax(-1)
    for code in range(5):
        losses = prior.losses(Codes(torch.tensor([[0, code, 2, 3]])), draws)
        torch.testing.assert_close(losses.loss, -log_p[:, 1, code])


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_losses_are_the_same_by_the_way_of_every_device(cuda: None, prior: AbsorbingDiffusion, loss_type: str) -> None:
    """On CUDA all places are predicted, elsewhere the masked ones alone; an image without any is among these."""
    x_0, t = torch.randint(5, (6, 4), generator=seeded()), torch.tensor([1, 3, 5, 7, 9, 10])
    mask = uniform(6, 4) < t[:, None] / 10
    mask[0] = False
    prior.loss_type = loss_type

    def outcome(device: str) -> list[torch.Tensor]:
        prior.to(device)
        parameters = [parameter for name, parameter in prior.named_parameters() if "start_tok" not in name]
        losses = prior.losses(Codes(x_0.to(device)), Draws(t.to(device), mask.to(device)))
        found = [losses.loss, losses.vb_loss, *torch.autograd.grad(losses.loss.mean(), parameters)]
        return [value.cpu() for value in found]

    elsewhere = outcome("cpu")
    assert elsewhere[0][0] == elsewhere[1][0] == 0
    torch.testing.assert_close(outcome("cuda"), elsewhere)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
        ({"steps": 0}, "sample_steps must be within 1"),
        ({"steps": 10**6}, "sample_steps"),
        ({"sampler": "dream"}, "sample_type"),
        ({"sampler": "mlm"}, "sample_type 'mlm' would draw given tokens anew"),
    ],
)
def test_what_cannot_be_drawn_is_refused(prior: AbsorbingDiffusion, arguments: dict[str, Any], message: str) -> None:
    starts = Codes(torch.zeros(1, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match=message):
        list(prior.samples([seeded()], Drawing(**{"batch_size": 1, **arguments}), starts))


def test_what_is_given_of_a_sample_stays(prior: AbsorbingDiffusion) -> None:
    starts = torch.tensor([[5, 5, 5, 5], [0, 5, 5, 3], [1, 2, 3, 4], [5, 4, 5, 5]])
    samples = torch.stack(list(prior.samples(map(seeded, range(4)), Drawing(3), Codes(starts))))
    assert torch.equal(samples[starts != 5], starts[starts != 5])
    assert (samples < 5).all()
