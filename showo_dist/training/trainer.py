"""The training loop: read, step, report, draw, save."""

from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed as dist

from showo_data import Source, build_loader
from showo_dist.checkpoint import (
    CONFIG,
    BatchShape,
    CheckpointReader,
    Resume,
    RunState,
    find_resume,
    versions,
)
from showo_dist.checkpoint.writer import CheckpointWriter
from showo_dist.config import TrainConfig, active_flows, to_yaml
from showo_dist.faults.bad_samples import BadSampleWatch, over_all_ranks
from showo_dist.faults.pace import Pace
from showo_dist.faults.progress import Progress
from showo_dist.faults.signals import StopRequest, who_asked
from showo_dist.logging import RunLogger
from showo_dist.models.weights.folder import CONFIG_NAME
from showo_dist.models.weights.pretrained import config_json
from showo_dist.models.weights.starting import carry_optimizer
from showo_dist.runtime.exits import StoppedError
from showo_dist.runtime.ranks import Ranks
from showo_dist.training import engine_state
from showo_dist.training.batches import PackedBatches
from showo_dist.training.deepspeed_engine import build_engine
from showo_dist.training.images import ImageGrids
from showo_dist.training.metrics import Meter, Work, peak_flops
from showo_dist.training.nonfinite import NonFiniteSteps
from showo_dist.training.setup import build_model, flow_specs, load_encoders, load_text
from showo_dist.training.step import StepLosses, Stepper
from showo_dist.training.tasks import SequenceMaker
from showo_launch.exit_codes import PREEMPTED

# Tokens and labels of a packed row are rounded up to it, so that shapes repeat: kernels compiled per shape
# are found again, and oneDNN's, which it never forgets, stay few.
TOKEN_MULTIPLE = 128


class Trainer:
    """One run on one rank.

    Args:
        config: checked.
        ranks: this process among the others; the process group exists.
        progress: told what the run is doing.
        stop: asked before every step whether to stop after it.

    Raises:
        ValueError, FileNotFoundError: what the config names cannot be read or does not fit together.
    """

    def __init__(
        self, config: TrainConfig, ranks: Ranks, progress: Progress, stop: StopRequest
    ) -> None:
        self.config, self.ranks, self.progress, self.stop = config, ranks, progress, stop
        torch.backends.cuda.matmul.allow_tf32 = config.training.enable_tf32
        self.run = Path(config.experiment.output_dir)
        self.batch_shape = BatchShape.of(config, ranks.world)
        resume = find_resume(self.run, config.experiment, self.batch_shape, ranks)
        reader = resume.reader
        self.text = load_text(config)
        showo = config.model.showo
        self.vocabulary = self.text.vocabulary(showo.llm_vocab_size, showo.codebook_size)
        self.encoders = load_encoders(config, ranks.device)
        model, self.attention = build_model(config, ranks.device, resume.folder)
        self.work = Work.of(model)
        self.batches = self._batches(reader, model.feature_width)
        self.engine = build_engine(model, config, ranks.device)
        self.step = 0
        if reader is not None:
            self._restore(reader)
        elif config.experiment.init_optimizer:
            carry_optimizer(self.engine, config)
        self.writer = CheckpointWriter(
            self.run, config.experiment, self._texts(), config.distributed.timeout_s
        )
        self.logger = self._logger(reader)
        self.watch = BadSampleWatch(config.data.max_bad_fraction, self.logger.event)
        self.pace = Pace(ranks.device, config.fault.slow_factor, self.logger.event)
        self.nonfinite = NonFiniteSteps(
            *(self.run, config.fault.max_nonfinite_in_a_row, self.logger.event),
            *(ranks.rank, self.step),
        )
        self.stepper = self._stepper()
        self.images = ImageGrids(config, self.text, self.vocabulary, self.encoders)
        self._announce(resume)

    def _batches(self, reader: CheckpointReader | None, feature_width: int) -> PackedBatches:
        config, clip = self.config, self.encoders.clip
        params = config.dataset.params
        specs = flow_specs(config, clip.resolution if clip else None)
        # Builds the indexes that are missing, so that the others only read.
        self.ranks.first_alone(lambda: [Source(spec) for spec in specs])
        loader = build_loader(
            specs,
            rank=self.ranks.rank,
            world=self.ranks.world,
            start_positions=reader.state.positions if reader else None,
            num_workers=params.num_workers,
            pin_memory=params.pin_memory and self.ranks.device.type == "cuda",
        )
        return PackedBatches(
            loader,
            SequenceMaker(config, self.text, self.vocabulary, self.encoders),
            self.ranks.device,
            config.training.gradient_accumulation_steps,
            feature_width,
            TOKEN_MULTIPLE,
            config.training.overfit_one_batch,
        )

    def _stepper(self) -> Stepper:
        def enter(phase: str) -> None:
            self.progress.enter(phase)
            self.pace.enter(phase)

        return Stepper(
            self.engine,
            {name: flow.coefficient for name, flow in active_flows(self.config).items()},
            self.config.training.loss_normalization,
            self.ranks.device,
            wants_stop=lambda: bool(self.stop),
            enter=enter,
        )

    def _restore(self, reader: CheckpointReader) -> None:
        state = reader.state
        engine_state.restore(self.engine, reader.read_piece, state.optimizer_steps)
        self.engine.lr_scheduler.load_state_dict(state.schedule)
        for group, rate in zip(
            self.engine.optimizer.param_groups, state.schedule["_last_lr"], strict=True
        ):
            group["lr"] = rate
        self.step = state.step

    def _logger(self, reader: CheckpointReader | None) -> RunLogger:
        config = self.config
        return RunLogger(
            self.run,
            rank=self.ranks.rank,
            total_steps=config.training.max_train_steps,
            start_step=self.step,
            config=asdict(config),
            project=config.experiment.project,
            name=config.experiment.name,
            wandb_mode=config.wandb.mode,
            wandb_id=config.wandb.run_id or (reader.state.wandb_id if reader else None),
            wandb_entity=config.wandb.entity,
            wandb_resume=config.wandb.resume,
            metrics_name=config.logging.jsonl,
        )

    def _announce(self, resume: Resume) -> None:
        parameters = sum(getattr(p, "ds_numel", p.numel()) for p in self.engine.module.parameters())
        flows = ", ".join(
            f"{name} {flow.batch_size}×{flow.coefficient:g}"
            for name, flow in active_flows(self.config).items()
        )
        start = f"going on from {resume.folder} at" if resume.folder else "starting at"
        for line in (
            f"{parameters:,} parameters, {self.ranks.world} ranks on {self.ranks.device.type}, "
            f"ZeRO-{self.config.distributed.zero_stage}, {self.engine.get_data_types()[0]}",
            self.attention,
            f"flows (samples per rank and micro-step × coefficient): {flows}",
            f"{start} step {self.step}",
            *resume.warnings,
            *self.config.warnings(),
        ):
            self.logger.event(line)

    def _texts(self) -> dict[str, str]:
        """What a checkpoint says about the run besides its state: files by name."""
        return {
            CONFIG_NAME: config_json(self.config.model.showo, self.engine.module),
            CONFIG: to_yaml(self.config),
        }

    def train(self) -> None:
        """Run to ``training.max_train_steps`` and save at the end.

        Raises:
            StoppedError: a signal asked for it and a checkpoint was written; or too many steps were not
                finite.
        """
        total = self.config.training.max_train_steps
        dtype = next(self.engine.module.parameters()).dtype
        meter = Meter(self.work, peak_flops(self.ranks.device, dtype), self.ranks.device)
        saved, stop = self.step, False
        while self.step < total and not stop:
            losses = self._one_step(meter)
            stop = losses.stop
            self._report(meter, losses)
            self._tell(self.writer.poll())
            if self._due(self.config.experiment.generate_every):
                self._draw()
            if self._due(self.config.experiment.save_every) and not self.nonfinite.in_a_row:
                saved = self._save()
        if saved < self.step:
            saved = self._save()
        self._end()
        if saved < total:
            raise StoppedError(PREEMPTED, who_asked(self.stop, self.step))

    def _one_step(self, meter: Meter) -> StepLosses:
        self.progress.begin_step(self.step + 1)
        window, account = next(self.batches)
        self.pace.add_data(account.wait_s)
        self.step += 1
        losses = self.stepper(window, self._due(self.config.experiment.log_grad_norm_every))
        meter.add(window, account)
        self.progress.enter("log")
        self.nonfinite(self.step, losses, self.batches.window_read)
        if self.nonfinite.are_too_many:
            self._end()
            raise self.nonfinite.end(self.step)
        return losses

    def _end(self) -> None:
        self.progress.enter("save")
        self._tell(self.writer.finish())
        self.progress.enter("end")
        self.logger.event(over_all_ranks(self.batches.bad).summary())
        self.logger.close()

    def _due(self, every: int) -> bool:
        return bool(every) and self.step % every == 0

    def _report(self, meter: Meter, losses: StepLosses) -> None:
        every = max(1, self.config.experiment.log_every)
        if self.step % every and self.step < self.config.training.max_train_steps:
            return
        rate = self.engine.get_lr()[0]
        metrics = meter.read(losses, rate, self.batches.bad.total)
        faults = {**self.pace.read(), "nonfinite": float(self.nonfinite.total)}
        self.logger.log(self.step, {**metrics, **faults})
        self.watch(self.batches.bad)

    def _draw(self) -> None:
        """Images of the current model; every rank takes part, for ZeRO-3 shards the weights."""
        self.progress.enter("images")
        self.engine.eval()
        for name, image, caption in self.images(self.engine.module, self.batches.latest):
            self.logger.images(self.step, name, image, caption)
        self.engine.train()
        dist.barrier()

    def _save(self) -> int:
        self.progress.enter("save")
        state = RunState(
            step=self.step,
            positions=self.batches.positions(),
            schedule=self.engine.lr_scheduler.state_dict(),
            optimizer_steps=engine_state.optimizer_steps(self.engine),
            wandb_id=self.logger.wandb_id,
            versions=versions(),
            batch=self.batch_shape,
            counters={"nonfinite": self.nonfinite.total},
        )
        self.writer.save(self.engine, state)
        return self.step

    def _tell(self, lines: list[str]) -> None:
        for line in lines:
            self.logger.event(line)
