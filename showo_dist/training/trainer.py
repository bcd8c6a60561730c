"""The training loop: read, step, log, validate, generate image grids, save."""

import gc
import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from showo_data import build_loader
from showo_dist.checkpoint import (
    CONFIG,
    BatchShape,
    CheckpointReader,
    Resume,
    RunState,
    find_resume,
    versions,
)
from showo_dist.checkpoint.slices import EMA, Piece
from showo_dist.checkpoint.writer import CheckpointWriter
from showo_dist.config import TrainConfig, active_flows, to_yaml
from showo_dist.config.rules import warnings_about
from showo_dist.faults.bad_samples import BadSampleWatch, Unlabelled, over_all_ranks
from showo_dist.faults.pace import Pace
from showo_dist.faults.progress import Progress
from showo_dist.faults.signals import StopRequest, stopped
from showo_dist.logging import RunLogger
from showo_dist.models.showo import ShowO
from showo_dist.models.weights.folder import CONFIG_NAME
from showo_dist.models.weights.pretrained import asked_settings, config_json
from showo_dist.models.weights.start import load_initial
from showo_dist.runtime.ranks import Ranks
from showo_dist.sequences import TOKEN_MULTIPLE
from showo_dist.training.batches import PackedBatches, SequenceMaker, masking_options, row_steps
from showo_dist.training.engine import build_engine, sharder
from showo_dist.training.images import ImageGrids
from showo_dist.training.metrics import Meter, Peak, Work
from showo_dist.training.muon import first_update_line
from showo_dist.training.nonfinite import NonFiniteSteps
from showo_dist.training.rows import of_engine
from showo_dist.training.setup import (
    RecomputationHint,
    averages_of,
    carry_optimizer,
    check_data_order,
    check_optimizer,
    data_order,
    flow_specs,
    load_encoders,
    load_text,
)
from showo_dist.training.step import StepLosses, Stepper
from showo_dist.training.validation import Validation

_COLLECT_EVERY = 100  # steps; what was there before training is frozen and not looked at


class Trainer:
    """One run on one rank.

    Args:
        config: checked.
        ranks: this process among the others; the process group exists.
        progress: records the current step and phase for the watching threads.
        stop: asked before every step whether to stop after it.

    Raises:
        ValueError, FileNotFoundError: a file that the config names cannot be read, or parts do not
            fit together.
    """

    def __init__(
        self, config: TrainConfig, ranks: Ranks, progress: Progress, stop: StopRequest
    ) -> None:
        self.config, self.ranks, self.progress, self.stop = config, ranks, progress, stop
        torch.backends.cuda.matmul.allow_tf32 = config.training.enable_tf32
        if config.training.deterministic:
            _use_deterministic_kernels()
        self.run = Path(config.experiment.output_dir)
        # Compared with the checkpoint's before anything is loaded: another global batch is another curve.
        self.batch_shape = BatchShape.of(config, ranks.world)
        resume = find_resume(self.run, config.experiment, self.batch_shape, ranks)
        reader = resume.reader
        check_optimizer(reader, config)
        _check_steps(config, reader)
        self.text = load_text(config)
        showo = config.model.showo
        self.vocabulary = self.text.vocabulary(showo.llm_vocab_size, showo.codebook_size)
        self.encoders = load_encoders(config, ranks.device)
        shard = sharder(config, ranks.device)
        model, self.initial = load_initial(config, ranks.device, resume.folder, shard)
        self.work = Work.of(model)
        clip = self.encoders.clip
        self.specs = flow_specs(config, clip.resolution if clip else None)
        masking = masking_options(config, self.batch_shape)
        self.maker = SequenceMaker(config, self.text, self.vocabulary, self.encoders, masking)
        self.micro_steps = self.maker.micro_steps()
        # Before the engine: a missing shard should fail in seconds, not after the model was sharded.
        self.notes: list[str] = list(resume.warnings)
        self.data: dict[str, dict[str, str]] = {}
        self._resumed = reader.state if reader else None
        self.batches = self._batches(reader, model)
        self.engine = build_engine(model, of_engine(config, self.micro_steps), ranks.device)
        self.step, self.updated = 0, False
        if reader is not None:
            self._restore(reader)
        elif config.experiment.init_optimizer:
            carry_optimizer(self.engine, config)
        self.writer = CheckpointWriter(
            self.run, config.experiment, self._texts(), config.distributed.timeout_s
        )
        self.writer.reserve(self.engine)
        self.logger = self._logger(reader)
        self.watch = BadSampleWatch(config.data.max_bad_fraction, self.logger.event)
        self.pace = Pace(ranks.device, config.fault.slow_factor, self.logger.event)
        self.nonfinite = NonFiniteSteps(
            *(self.run, config.fault.max_nonfinite_in_a_row, self.logger.event),
            *(ranks.rank, self.step),
        )
        self.unlabelled = Unlabelled(active_flows(config), self.logger.event)
        self.stepper = self._stepper()
        self.validation = Validation(
            *(config, self.specs, self.maker, ranks, self.logger.event),
            row_steps(config, self.engine.module),
        )
        self.images = ImageGrids(self.maker)
        gpu = ranks.is_first and ranks.device.type == "cuda"
        memory = torch.cuda.get_device_properties(ranks.device).total_memory if gpu else 0
        self.hint = RecomputationHint(config, ranks.world, memory)
        self._announce(resume)

    def _batches(self, reader: CheckpointReader | None, model: ShowO) -> PackedBatches:
        config, params = self.config, self.config.dataset.params
        ahead = config.training.pack_ahead
        # Rank 0 builds missing indexes alone, so that the other ranks only read them.
        self.ranks.first_alone(lambda: self._read_data_order(reader))
        loader = build_loader(
            self.specs,
            rank=self.ranks.rank,
            world=self.ranks.world,
            start_positions=reader.state.positions if reader else None,
            num_workers=params.num_workers,
        )
        return PackedBatches(
            loader,
            self.maker,
            self.ranks.device,
            config.training.gradient_accumulation_steps,
            model.feature_width,
            TOKEN_MULTIPLE,
            config.training.overfit_one_batch,
            rows=None if config.training.tokens_per_step is None else self.micro_steps,
            steps=row_steps(config, model),
            attention=model.attention,
            windows=config.training.max_train_steps - (reader.state.step if reader else 0),
            ahead=self.ranks.device.type == "cuda" if ahead is None else ahead,
        )

    def _read_data_order(self, reader: CheckpointReader | None) -> None:
        """Note the order of the data for checkpoints, and compare it with the one to resume from."""
        self.data = {spec.flow: data_order(spec) for spec in self.specs}
        note = check_data_order(reader, self.data, self.config.experiment.allow_data_change)
        self.notes += [note] if note else []

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
        averages, line = averages_of(reader, self.config.training.ema)
        self.notes += [line] if line else []

        def read(piece: Piece) -> Tensor:
            return reader.read_piece(replace(piece, kind=averages) if piece.kind == EMA else piece)

        self.engine.restore(read, state.optimizer_steps)
        note = self.engine.load_schedule(state.schedule)
        self.notes += [note] if note else []
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
        start = f"resuming from {resume.folder} at" if resume.folder else "starting at"
        for line in (
            f"{parameters:,} parameters, {self.ranks.world} ranks on {self.ranks.device.type}, "
            f"{self.engine.description}, {self.engine.dtype}",
            self.initial,
            f"flows (samples per rank and micro-step × coefficient): {flows}",
            *self._rows_used(),
            f"{start} step {self.step}",
            *self._averages_used(),
            *self._weights_kept(),
            *self.notes,
            *warnings_about(self.config),
        ):
            self.logger.event(line)

    def _rows_used(self) -> list[str]:
        """A line for the log when rows are filled to a token budget."""
        training = self.config.training
        line = (
            f"training.tokens_per_step = {training.tokens_per_step}: the samples of "
            f"{training.gradient_accumulation_steps} micro-steps in {self.micro_steps}"
        )
        return [line] if training.tokens_per_step is not None else []

    def _averages_used(self) -> list[str]:
        """A line for the log when the averaged weights are evaluated."""
        ema = self.config.training.ema
        line = f"validation and image grids use averaged weights, decay {ema.decay}"
        return [line] if ema.evaluate else []

    def _weights_kept(self) -> list[str]:
        """A line for the log when most weights are not trained."""
        line = (
            "optimizer.trained = projector: the CLIP projector is trained, all other weights stay"
        )
        return [line] if self.config.trains_projector_alone else []

    def _texts(self) -> dict[str, str]:
        """Text files of every checkpoint that describe the run, by name."""
        return {
            CONFIG_NAME: config_json(
                self.config.model.showo, self.engine.module, asked_settings(self.config)
            ),
            CONFIG: to_yaml(self.config),
        }

    def train(self) -> None:
        """Run to the end, with garbage collected after the same steps on all ranks.

        Python would do it at another moment on each rank, and each time all others would wait.

        Raises:
            StoppedError: as :meth:`_train`.
        """
        gc.collect()
        gc.freeze()
        gc.disable()
        try:
            self._train()
        finally:
            gc.enable()
            gc.unfreeze()

    def _train(self) -> None:
        """Run to ``training.max_train_steps`` and save at the end.

        Raises:
            StoppedError: after a stop signal, once a checkpoint is written; or after too many non-finite
                steps.
        """
        total = self.config.training.max_train_steps
        meter = Meter(self.work, Peak(self.ranks.device, self.engine.dtype), self.ranks.device)
        saved, stop = self.step, False
        while self.step < total and not stop:
            losses = self._one_step(meter)
            stop = losses.stop
            self._report(meter, losses)
            self._log_lines(self.writer.poll())
            self._log_lines(self.hint.poll())
            if self._due(_COLLECT_EVERY):
                gc.collect()
            if self._due(self.config.experiment.generate_every):
                with meter.not_counted():
                    self._generate_grids()
            # A checkpoint during a series of skipped steps would hold weights that may be the cause.
            if self._due(self.config.experiment.save_every) and not self.nonfinite.in_a_row:
                with meter.not_counted():
                    saved = self._save()
        # The last state is saved, also after a stop signal, unless that falls into a series of skipped steps.
        if self.nonfinite.in_a_row and self.step < total and saved:
            self.logger.event(f"step {self.step} is not saved: its loss or gradient was not finite")
        elif saved < self.step:
            saved = self._save()
        self._end()
        if saved < total:
            latest = self.config.experiment.resume_from_checkpoint in (True, "latest")
            raise stopped(self.stop, self.step, saved, latest)

    def _one_step(self, meter: Meter) -> StepLosses:
        self.progress.begin_step(self.step + 1)
        window, account = next(self.batches)
        self.pace.add_data(account.wait_s)
        # Counted before the step runs, so that logs and errors of the step carry its number.
        self.step += 1
        losses = self.stepper(window, self._due(self.config.experiment.log_grad_norm_every))
        meter.add(window, account)
        if losses.applied:
            self._check_update()
        self.progress.enter("log")
        self.nonfinite(self.step, losses, self.batches.window_read)
        self.unlabelled(losses.means)
        if self.nonfinite.are_too_many:
            self._end()
            raise self.nonfinite.end(self.step)
        return losses

    def _check_update(self) -> None:
        """Log once, after the first update, what Muon orthogonalised."""
        if self.updated:
            return
        self.updated = True
        if self.config.optimizer.name == "muon":
            line = first_update_line(self.engine.module, self.engine.orthogonalised)
            self.logger.event(line)

    def _end(self) -> None:
        self.progress.enter("save")
        self._log_lines(self.writer.finish())
        self.hint.close()
        self.progress.enter("end")
        self.logger.event(over_all_ranks(self.batches.bad).summary())
        self.logger.close()

    def _due(self, every: int) -> bool:
        return bool(every) and self.step % every == 0

    def _report(self, meter: Meter, losses: StepLosses) -> None:
        """Log metrics and held-out losses, as far as they are due at this step."""
        experiment, metrics = self.config.experiment, {}
        last = self.step == self.config.training.max_train_steps
        logs = last or self._due(max(1, experiment.log_every))
        logs |= self._due(experiment.log_grad_norm_every)
        if logs:
            metrics = meter.read(losses, self.engine.learning_rate, self.batches.bad.total)
            metrics |= {**self.pace.read(), "nonfinite": float(self.nonfinite.total)}
        if self.validation and (
            self._due(experiment.eval_every) or (last and experiment.eval_every)
        ):
            self.progress.enter("validation")
            self.batches.settle()
            with meter.not_counted(), self._evaluated_weights():
                metrics |= self.validation(self.engine)
        if metrics:
            self.logger.log(self.step, metrics)
        if logs:
            self.watch(self.batches.bad)

    def _evaluated_weights(self) -> AbstractContextManager[None]:
        """The averaged weights if the config evaluates them, else those of the step."""
        return self.engine.averaged() if self.config.training.ema.evaluate else nullcontext()

    def _generate_grids(self) -> None:
        """Images of the current model; every rank takes part, because ZeRO-3 shards the weights."""
        self.progress.enter("images")
        self.batches.settle()
        self.engine.train(False)
        with self._evaluated_weights():
            for name, image, caption in self.images(
                self.engine.module, self.batches.latest, self.ranks
            ):
                self.logger.images(self.step, name, image, caption)
        self.engine.train()
        # Rank 0 decodes and writes the grids; the others must not enter the next collective meanwhile.
        dist.barrier()

    def _save(self) -> int:
        self.progress.enter("save")
        before = self._resumed  # flows that are switched off keep their place
        state = RunState(
            step=self.step,
            positions={**(before.positions if before else {}), **self.batches.positions()},
            schedule=self.engine.schedule_state(),
            optimizer_steps=self.engine.optimizer_steps(),
            wandb_id=self.logger.wandb_id,
            versions=versions(),
            batch=self.batch_shape,
            data={**(before.data if before else {}), **self.data},
            optimizer=self.config.optimizer.name,
        )
        self.writer.save(self.engine, state)
        return self.step

    def _log_lines(self, lines: list[str]) -> None:
        for line in lines:
            self.logger.event(line)


def _use_deterministic_kernels() -> None:
    """Let torch and FlashAttention add in a fixed order, and warn where an operator cannot."""
    # Read when cuBLAS makes its workspace, at the first matrix product.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    if torch.cuda.is_available():
        # A GPU's fused kernels behind model.attention = sdpa would only warn, and add in any order.
        torch.backends.cuda.enable_flash_sdp(False)
        torch.backends.cuda.enable_mem_efficient_sdp(False)
        torch.backends.cuda.enable_cudnn_sdp(False)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _check_steps(config: TrainConfig, reader: CheckpointReader | None) -> None:
    total = config.training.max_train_steps
    if reader and reader.state.step > total:
        raise ValueError(
            f"training.max_train_steps = {total}: {reader.folder} is already at step {reader.state.step}"
        )
