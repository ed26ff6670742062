"""The log-sigma head, which says how sure the generator is of each pixel: trained alone, for the likelihood."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from signal import Signals as Signal
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hparams.errors import UserError
from hparams.settings.experiments import LikelihoodSettings
from models.parts import Noise
from utils.data.bad_images import SharedReport
from utils.data.batch_order import BatchOrder
from utils.data.batches import eval_batches, train_batches
from utils.data.datasets import ImageData
from utils.machine.evaluation import evaluating
from utils.machine.files import content_key
from utils.machine.seeding import make_generator
from utils.machine.signals import end_politely
from utils.metrics.likelihood import images_to_evaluate, pixel_term
from utils.pretrained.trained_models import TrainedModels
from utils.runs.checkpoints import load_file, require_finite, save_file
from utils.runs.job import Job
from utils.training.bookkeeping import Averages
from utils.training.optimiser import Optimiser

MAX_NORM = 0.1  # of the head's gradients in float32, as published
STEPS_PER_LOG = 100
SECONDS_PER_SAVE = 30.0


class HeadTrainer:
    """Trains the head on the job's processes, each with its part of every batch, and keeps it in the run folder.

    `done` is the number of updates so far.
    """

    def __init__(self, job: Job, models: TrainedModels, likelihood: LikelihoodSettings, data: ImageData) -> None:
        """Go on from what the run folder holds of the same training; with --train_steps 0 all stays as it is."""
        self._job, self._autoencoder, self._likelihood, self._data = job, models.autoencoder, likelihood, data
        self._head = models.autoencoder.generator.logsigma.requires_grad_(True)
        max_norm = MAX_NORM if job.amp_dtype is None else None
        parameters = self._head.parameters()
        self._optimiser = Optimiser(parameters, likelihood.lr, job.device, job.amp_dtype, max_norm=max_norm)
        self.done = 0
        self._file = job.folder.path / "logsigma.th"
        named = [getattr(likelihood, name) for name in ("protocol", "bits", "lr")]
        made_from = (*models.ae_key, data.fingerprint, job.amp_dtype, job.seed, job.batch_size, *named)
        self._key = content_key("head 1", *made_from)
        saved = job.ranks.from_first(self._saved) if likelihood.train_steps else None
        if saved and saved["step"] <= likelihood.train_steps:
            state = saved["trainer"]
            self._head.load_state_dict(state["head"])
            self._optimiser.load_adam(state["adam"])
            self._optimiser.load_scaler(state["scaler"])
            require_finite(self._state(), self._file, "delete it, and the head is trained anew")
            self.done = saved["step"]

    def train(self, val_data: ImageData) -> None:
        """Until `train_steps` updates are done.

        Raises:
            SystemExit: a signal asked to stop; what is done is saved.
        """
        job, likelihood, end = self._job, self._likelihood, self._likelihood.train_steps
        if not end:
            return
        order = BatchOrder(len(self._data), job.batch_size, job.seed, job.ranks.part)
        report, averages, saved = SharedReport(job.bad_images, job.ranks), Averages(), time.monotonic()
        batches = train_batches(self._data, order, self.done, job.num_workers, bad=report)
        with job.progress("log-sigma head", end, "step", done=self.done) as progress:
            for step in range(self.done, end):
                averages.add(self.step(next(batches), step))
                self.done = step + 1
                progress.update()
                told = {}
                if self.done % STEPS_PER_LOG == 0:
                    told["train"] = averages.pop()[0]["pixel_bits_per_dim"]
                if likelihood.steps_per_eval and self.done % likelihood.steps_per_eval == 0:
                    told["val"] = self._validate(val_data)
                for split, bits in told.items():
                    job.record.note(f"log-sigma head, step {self.done}/{end}  {split}: {bits:.4f} bits per dimension")
                    job.record.scalars(self.done, split, {"pixel_bits_per_dim": bits})
                    progress.update(0, **{f"{split} bits/dim": bits})
                report.exchange()
                due = time.monotonic() - saved >= SECONDS_PER_SAVE
                number, due_somewhere = job.ranks.agree(job.signals.stop or 0, due)
                if number or due_somewhere:
                    self._save()
                    saved = time.monotonic()
                if number:
                    end_politely(Signal(number))
        self._save()

    def step(self, pixels: Tensor, step: int) -> dict[str, Tensor]:
        """One update, after `step` others, on images uint8 [b,C,H,W], this process's part of the step's batch.

        Returns scalars. `skipped` is 1 where gradients were not finite.
        """
        job = self._job
        noise = Noise(make_generator(job.device, job.seed, "log-sigma", step), job.ranks.part)
        _, nats = pixel_term(job, self._autoencoder, self._likelihood, pixels, noise)
        loss = (nats / (pixels[0].numel() * math.log(2))).mean()
        self._optimiser.zero_grad()
        self._optimiser.scaler.scale(loss).backward()
        for parameter in self._head.parameters():
            if parameter.grad is not None:
                parameter.grad = job.ranks.mean(parameter.grad)
        finite = self._optimiser.step()
        return {"pixel_bits_per_dim": job.ranks.mean(loss.detach()), "skipped": (~finite).float()}

    def _state(self) -> dict[str, Any]:
        """Head, moments and scale."""
        adam, scaler = self._optimiser.adam.state_dict(), self._optimiser.scaler.state_dict()
        return {"head": self._head.state_dict(), "adam": adam, "scaler": scaler}

    def _validate(self, data: ImageData) -> float:
        """The pixel term over the images to evaluate, bits per dimension, with the same noise at every call."""
        job, images = self._job, images_to_evaluate(self._job, self._likelihood, data)
        report = SharedReport(job.bad_images, job.ranks)
        count = -(-len(images) // job.batch_size)

        def nats() -> Iterator[Tensor]:
            own = images[np.arange(len(images)) // job.batch_size % job.ranks.count == job.ranks.rank]
            batches = eval_batches(data, job.batch_size, job.num_workers, indices=own, bad=report)
            for number, pixels in zip(job.ranks.share(count), batches, strict=True):
                generator = make_generator(job.device, job.seed, "likelihood", "pixels", number)
                yield pixel_term(job, self._autoencoder, self._likelihood, pixels, Noise(generator))[1].cpu()

        with evaluating(self._autoencoder):
            shares = job.ranks.gather_objects(list(nats()))
        report.exchange()
        whole = [shares[n % job.ranks.count][n // job.ranks.count] for n in range(count)]
        return torch.cat(whole).double().mean().item() / (math.prod(self._autoencoder.image_shape) * math.log(2))

    def _saved(self) -> dict[str, Any] | None:
        """What the file holds of this training; of a damaged one a line."""
        if not self._file.exists():
            return None
        try:
            content = load_file(self._file)
        except UserError:
            content = None
        if not isinstance(content, dict) or content.keys() != {"key", "step", "trainer"}:
            self._job.warn(f"WARNING: {self._file} is damaged: what it held is computed anew")
            return None
        return content if content["key"] == self._key else None

    def _save(self) -> None:
        if self._job.ranks.first:
            save_file(self._file, {"key": self._key, "step": self.done, "trainer": self._state()})
