"""The training loop of the image tokenizer; the loss curve does not depend on the number of ranks."""

import math
import time
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from showo_data import BadSamples
from showo_data.files import folder_aside
from showo_dist.config.loader import to_yaml
from showo_dist.faults.bad_samples import over_all_ranks
from showo_dist.logging import RunLogger
from showo_dist.models.magvitv2 import MAGVITv2
from showo_dist.runtime.numerics import autocast
from showo_dist.runtime.ranks import Ranks
from showo_dist.tokenizer import checkpoint
from showo_dist.tokenizer.batches import ImageBatch, training_batches, validation_images
from showo_dist.tokenizer.config import TokenizerConfig
from showo_dist.tokenizer.metrics import CodeUsage, Window, collapse_warning, evaluate, summary
from showo_dist.tokenizer.objective import initialise, learning_rate, objective
from showo_kernels.transfer import to_device

FINAL = "final"
_MOST_SKIPPED = 10  # steps in a row whose gradient is not finite


class Trainer:
    """One rank of a tokenizer training run."""

    def __init__(self, config: TokenizerConfig, ranks: Ranks) -> None:
        """Build model, optimizer and data, and load the checkpoint to resume from, if there is one."""
        self.config, self.ranks = config, ranks
        self.run = Path(config.experiment.output_dir)
        torch.manual_seed(config.training.seed)  # for the initial weights; training samples nothing
        self.model = MAGVITv2(config.model).to(ranks.device)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        initialise(self.model)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            betas=(config.optimizer.beta1, config.optimizer.beta2),
            weight_decay=config.optimizer.weight_decay,
            fused=True,
        )
        self.skipped_in_a_row = 0
        self.step, self.position = self._resume()
        self.start = self.step
        self.batches = training_batches(config, ranks, self.position)
        self.network: torch.nn.Module = self.model
        if ranks.world > 1:
            self.network = DistributedDataParallel(self.model, gradient_as_bucket_view=True)
        self.usage = CodeUsage(config.model.codebook_size, ranks.device)
        self.bad = BadSamples()
        self.validation_B3HW = validation_images(config) if ranks.is_first else None

    def _resume(self) -> tuple[int, int]:
        """Steps done, and the position of the next image: with another batch size it is no multiple of it."""
        choice = self.config.experiment.resume_from_checkpoint
        folder = checkpoint.find(self.run, choice)
        if folder is None:
            return 0, 0
        step, position = checkpoint.load(folder, self.model, self.optimizer)
        return step, step * self.config.training.batch_size if position is None else position

    def train(self) -> Path:
        """Train up to ``training.max_train_steps``; return the folder of the trained tokenizer."""
        every = self.config.experiment
        with self._logger() as log:
            log.event(self._description())
            window = Window()
            while self.step < self.config.training.max_train_steps:
                self._one_step(window)
                self.step += 1
                self.position += self.config.training.batch_size
                if self._is_due(every.log_every):
                    self._report(window, log)
                if self._is_due(every.eval_every):
                    self._evaluate(log)
                if self._is_due(every.save_every):
                    self._save()
                if self._is_due(every.log_every):
                    window = Window()  # so that the speed does not include evaluating and saving
            return self._finish(log)

    def _is_due(self, every: int) -> bool:
        """Whether an action is due after this step: every ``every`` steps (0: never) and at the end."""
        last = self.step == self.config.training.max_train_steps
        return last or (every > 0 and self.step % every == 0)

    def _logger(self) -> RunLogger:
        run, wandb = self.config.experiment, self.config.wandb
        return RunLogger(
            self.run,
            rank=self.ranks.rank,
            total_steps=self.config.training.max_train_steps,
            start_step=self.start,
            config=asdict(self.config),
            project=run.project,
            name=run.name,
            wandb_mode=wandb.mode,
            wandb_id=wandb.run_id,
            wandb_entity=wandb.entity,
            wandb_resume=wandb.resume,
        )

    def _description(self) -> str:
        model, training = self.config.model, self.config.training
        number_format = (
            "bf16" if autocast(training.mixed_precision, self.ranks.device)._enabled else "fp32"
        )
        return (
            f"image tokenizer, {sum(p.numel() for p in self.model.parameters()):,} parameters, "
            f"{model.codes_per_image} codes of {model.bits} bits for {model.resolution}×"
            f"{model.resolution} pixels; {training.batch_size} images per step on "
            f"{self.ranks.world} ranks, {number_format}, from step {self.start}"
        )

    def _one_step(self, window: Window) -> None:
        before = time.monotonic()
        batch = next(self.batches)
        self.bad.add(batch.skipped, good=batch.read)
        window.waited_s += time.monotonic() - before
        share = self._share(batch)
        images_B3HW = batch.pixels_B3HW.contiguous(memory_format=torch.channels_last)
        pixels = to_device(images_B3HW, self.ranks.device)
        with autocast(self.config.training.mixed_precision, self.ranks.device):
            output = self.network(pixels, lambda mean: self.ranks.mean(mean, share))
        terms = objective(output, pixels, self.config.loss)
        # DDP averages the gradients of the ranks; the factor turns the average into the sum of the shares.
        (terms["loss"] * share * self.ranks.world).backward()
        terms["grad_norm"] = self._update()
        window.add(terms, share)
        if batch.read:
            self.usage.add(output.codes)

    def _share(self, batch: ImageBatch) -> float:
        """This rank's share of the readable images of the global batch; bad samples make shares uneven."""
        total = self.ranks.sum(torch.tensor(batch.read, device=self.ranks.device))
        return batch.read / max(1, int(total))

    def _update(self) -> Tensor:
        """Make one AdamW step; return the norm of the gradient before clipping."""
        config = self.config.optimizer
        rate = learning_rate(config, self.step, self.config.training.max_train_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        limit = math.inf if config.max_grad_norm is None else config.max_grad_norm
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        # The norm is the same on all ranks, since the gradient is. A step from it would spoil all weights.
        if norm.isfinite():
            self.optimizer.step()
            self.skipped_in_a_row = 0
        else:
            self._skip()
        self.optimizer.zero_grad()
        return norm

    def _skip(self) -> None:
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row >= _MOST_SKIPPED:
            raise ValueError(
                f"optimizer.learning_rate = {self.config.optimizer.learning_rate}: the gradient of "
                f"{_MOST_SKIPPED} steps in a row was not finite, the last of them step {self.step + 1}; "
                f"lower the rate and resume from a checkpoint in {self.run}"
            )

    def _report(self, window: Window, log: RunLogger) -> None:
        counts_K = self.ranks.sum(self.usage.take())
        elapsed = time.monotonic() - window.began
        means = window.means(self.ranks)
        images = window.steps * self.config.training.batch_size
        log.log(
            self.step,
            means
            | summary(counts_K)
            | {
                "lr": self.optimizer.param_groups[0]["lr"],
                "images_per_s": images / elapsed,
                "data_wait": window.waited_s / elapsed,
            },
        )
        warning = collapse_warning(counts_K)
        if warning and self.step > self.config.optimizer.warmup_steps:
            log.event(f"step {self.step}: {warning}")
        self._check_bad_samples()

    def _check_bad_samples(self) -> None:
        """Raise ``ValueError`` on all ranks when too many samples of all ranks are bad. Collective."""
        bad = over_all_ranks(self.bad) if self.ranks.world > 1 else self.bad
        limit = self.config.dataset.max_bad_fraction
        if bad.exceeds(limit):
            raise ValueError(
                f"dataset.max_bad_fraction = {limit}: {bad.total / bad.tried:.1%} of {bad.tried} "
                f"samples are bad: {bad.summary()}"
            )

    def _evaluate(self, log: RunLogger) -> None:
        """Evaluate on the first rank; the other ranks wait in the collectives of the next step."""
        if self.validation_B3HW is None:
            return
        result = evaluate(self.model, self.validation_B3HW)
        log.log(self.step, result.metrics)
        log.images(self.step, "reconstruction", result.grid, "originals above reconstructions")

    def _save(self) -> None:
        if self.ranks.is_first:
            keep = self.config.experiment.keep_last
            progress = self.step, self.position
            checkpoint.save(self.run, *progress, self.model, self.optimizer, keep)
        self.ranks.barrier()

    def _finish(self, log: RunLogger) -> Path:
        """Write the trained tokenizer; return its folder."""
        target = self.run / FINAL
        if self.ranks.is_first:
            with folder_aside(target, replace=True) as folder:
                self.model.save_pretrained(folder)
            (self.run / "config.yaml").write_text(to_yaml(self.config))
            log.event(f"trained tokenizer: {target}")
        self.ranks.barrier()
        return target
