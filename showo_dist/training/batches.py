"""Packed batches on the device, one window per optimizer step, with counts of the samples read."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from showo_data import BadSamples, Loader, MicroBatch, Sample, Skipped
from showo_data.text import read_lines
from showo_dist.checkpoint import BatchShape
from showo_dist.config import TrainConfig, active_flows, wants_system_prompt
from showo_dist.models.encoders import Encoders
from showo_dist.models.showo import ShowO
from showo_dist.sequences import (
    FLOWS,
    PackedBatch,
    Sequence,
    TextEncoder,
    Vocabulary,
    builders,
    image_first,
    pack,
)
from showo_dist.sequences.masking import (
    MaskedCodes,
    MaskingOptions,
    mask_codes,
    mask_schedule,
    sample_rng,
)
from showo_dist.sequences.text import SYSTEM_PROMPT, description_prompts, question_prompt
from showo_dist.training.rows import cut, micro_steps_of
from showo_kernels import build_plan


def row_steps(config: TrainConfig, model: ShowO) -> int:
    """Row capacities per octave, or 0; see ``training.row_steps_per_octave``."""
    steps = config.training.row_steps_per_octave
    per_length = config.model.compile or model.attention == "flex"
    return (32 if per_length else 0) if steps is None else steps


def masking_options(config: TrainConfig, batch: BatchShape | None = None) -> MaskingOptions:
    """The masking of a training run.

    Args:
        config: of the run.
        batch: its global batch, whose masked fractions are stratified if the config asks for it; None: every
            sample's fraction is drawn independently.
    """
    training = config.training
    stratified = training.masking == "stratified"
    return MaskingOptions(
        schedule=mask_schedule(training.mask_schedule),
        min_rate=training.min_masking_rate,
        noise_type=training.noise_type,
        predict_all=training.predict_all_tokens,
        contiguous_prob=training.mask_contiguous_region_prob or 0.0,
        strata={flow: batch.total(flow) for flow in batch.flows} if batch and stratified else {},
    )


def read_prompts(key: str, path: str) -> list[str]:
    """The lines of a file of prompts that are not blank.

    Args:
        key: config key that names the file, for messages.
        path: the file.

    Raises:
        ValueError: it cannot be read, or holds no prompt.
    """
    try:
        lines = [line.strip() for line in read_lines(path)]
    except OSError as error:
        raise ValueError(f"{key} = {path}: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{key} = {error}") from None
    prompts = [line for line in lines if line]
    if not prompts:
        raise ValueError(f"{key} = {path}: holds no prompt")
    return prompts


@dataclass
class SequenceMaker:
    """Builds the sequences of a micro-batch, flow by flow in the order of :data:`FLOWS`.

    Attributes:
        config: of the run.
        text: the text encoder.
        vocabulary: the model's ids.
        encoders: frozen image encoders.
        masking: None: the config's, not stratified.
    """

    config: TrainConfig
    text: TextEncoder
    vocabulary: Vocabulary
    encoders: Encoders
    masking: MaskingOptions | None = None

    def __call__(self, batch: MicroBatch) -> list[Sequence]:
        sequences: list[Sequence] = []
        # The order of flows is fixed, so that a batch is the same whatever order the loader delivers.
        for flow in FLOWS:
            samples = batch.samples.get(flow, [])
            if samples:
                made = getattr(self, f"_{flow}")(samples)
                self._leave_out(batch, flow, made)
                sequences += filter(None, made)
        return sequences

    def _leave_out(self, batch: MicroBatch, flow: str, made: list[Sequence | None]) -> None:
        """Count the samples that gave no sequence as skipped."""
        pairs = list(zip(batch.samples[flow], made, strict=True))
        detail = "nothing to predict in the text that dataset.preprocessing.max_seq_length leaves"
        batch.samples[flow] = [sample for sample, sequence in pairs if sequence is not None]
        batch.skipped += [
            Skipped(flow, s.position, s.shard, s.key, "too-long", detail)
            for s, sequence in pairs
            if sequence is None
        ]

    @cached_property
    def _masking(self) -> MaskingOptions:
        return self.masking or masking_options(self.config)

    @cached_property
    def _prompts(self) -> list[list[int]]:
        path = self.config.dataset.params.description_prompts_file
        key = "dataset.params.description_prompts_file"
        requests = read_prompts(key, path) if path else description_prompts()
        prompts = [self.text.encode(question_prompt(request)) for request in requests]
        if self.config.model.showo.w_clip_vit:
            most = builders.CLIP_RECON_TEXT_WIDTH - 5  # mmu, soi, eoi, bos and eos
            for request, ids in zip(requests, prompts, strict=True):
                if len(ids) > most:
                    raise ValueError(
                        f"{key} = {path}: {request!r} has {len(ids)} tokens, at most {most} fit beside "
                        "CLIP features"
                    )
        return prompts

    @cached_property
    def _system(self) -> list[int]:
        return self.text.encode(SYSTEM_PROMPT) if wants_system_prompt(self.config) else []

    def micro_steps(self) -> int:
        """Micro-steps of an optimizer step; see :func:`~showo_dist.training.rows.micro_steps_of`."""
        self._check_room()
        return micro_steps_of(self.config, max(map(len, self._prompts)), len(self._system))

    def _check_room(self) -> None:
        """Conversations are cut to a length that CLIP features and the system prompt must not fill."""
        showo, dataset = self.config.model.showo, self.config.dataset
        taken = 3 + len(self._system) + showo.clip_tokens
        reads = "mmu" in active_flows(self.config) and dataset.und_type != "captioning"
        if reads and showo.w_clip_vit and self._length <= taken:
            least = taken - showo.num_vq_tokens - 2
            raise ValueError(
                f"dataset.preprocessing.max_seq_length = {self._budget}: conversations have no room beside "
                f"{showo.clip_tokens} CLIP features and the system prompt; at least {least} is needed"
            )

    @property
    def _budget(self) -> int:
        return self.config.dataset.preprocessing.max_seq_length

    @property
    def _length(self) -> int:
        # Longest sequence of the published layouts: text budget, image, task token, soi and eoi.
        return self._budget + self.config.model.showo.num_vq_tokens + 3

    def _rng(self, sample: Sample) -> np.random.Generator:
        return sample_rng(self.config.training.seed, sample.flow, sample.position)

    def _masked(self, sample: Sample, codes_N: Tensor, rng: np.random.Generator) -> MaskedCodes:
        seed, masking = self.config.training.seed, self._masking
        interval = masking.interval(seed, sample.flow, sample.position)
        return mask_codes(codes_N, self.vocabulary.codebook, masking, rng, interval)

    def _prompt(self, rng: np.random.Generator) -> list[int]:
        return self._prompts[rng.integers(len(self._prompts))]

    def _t2i(self, samples: list[Sample]) -> list[Sequence]:
        sequences = []
        for sample, codes in zip(samples, self.encoders.codes(samples), strict=True):
            rng = self._rng(sample)
            masked = self._masked(sample, codes, rng)
            # Drawn after the mask, so that changing the dropout probability leaves all masks unchanged.
            if rng.random() < self.config.training.cond_dropout_prob:
                sequences.append(builders.t2i_dropped(masked, self.vocabulary))
                continue
            ids = self.text.encode(sample.text or "", self._budget)
            sequences.append(builders.t2i(ids, masked, self._budget, self.vocabulary))
        return sequences

    def _lm(self, samples: list[Sample]) -> list[Sequence]:
        return [
            builders.lm(self.text.encode(s.text or "", self._length), self._length, self.vocabulary)
            for s in samples
        ]

    def _mmu(self, samples: list[Sample]) -> Seq[Sequence | None]:
        if self.config.dataset.und_type == "captioning":
            return self._captioning(samples)
        own = self.encoders.of_conversations(samples)
        return [self._conversation(s, images) for s, images in zip(samples, own, strict=True)]

    def _captioning(self, samples: list[Sample]) -> list[Sequence]:
        sequences = []
        for sample, codes in zip(samples, self.encoders.codes(samples), strict=True):
            caption = self.text.encode(sample.text or "", self._budget)
            if self.config.dataset.params.add_caption_prompt:
                prompt = self._prompt(self._rng(sample))
                # Encoded apart from the prompt, as the published code does: joining the texts would merge
                # tokens across the boundary.
                caption = prompt + self.text.encode(f" {sample.text or ''}".rstrip(), self._budget)
            sequences.append(builders.mmu_caption(caption, codes, self._budget, self.vocabulary))
        return sequences

    def _conversation(self, sample: Sample, images: list[Tensor]) -> Sequence | None:
        """A conversation or document with its images; None if nothing that is predicted is left of it."""
        system = [] if sample.document else self._system
        budget = self._budget
        if self.encoders.clip:  # the room that one image leaves; 3 for mmu, soi and eoi
            budget = max(0, self._length - 3 - len(system) - len(images[0]))
        limit = max(budget, 1)
        if sample.document:
            pieces = builders.around(self.text.document(sample.document, limit), images)
        elif sample.numbered:
            pieces = builders.around(
                self.text.around_images(sample.conversation or [], limit), images
            )
        else:
            pieces = [images[0], self.text.conversation(sample.conversation or [], limit)]
        sequence = builders.answer_prompt(builders.cut(pieces, budget), self.vocabulary, system)
        return sequence if len(sequence.label_rows_P) or not sample.numbered else None

    def _edit(self, samples: list[Sample]) -> list[Sequence]:
        sequences = []
        encoded = self.encoders.source_codes(samples), self.encoders.codes(samples)
        for sample, source, target in zip(samples, *encoded, strict=True):
            rng = self._rng(sample)
            masked = self._masked(sample, target, rng)
            # The source stays, so that guidance strengthens the instruction and not the source.
            dropped = rng.random() < self.config.training.cond_dropout_prob
            ids = [] if dropped else self.text.encode(sample.text or "", self._budget)
            sequences.append(builders.edit(ids, source, masked, self._budget, self.vocabulary))
        return sequences

    def _recon(self, samples: list[Sample]) -> list[Sequence]:
        codes = self.encoders.codes(samples)
        clip = self.encoders.clip is not None
        conditions = (
            self.encoders.features(samples) if clip else self.encoders.condition_codes(samples)
        )
        sequences = []
        for sample, target, condition in zip(samples, codes, conditions, strict=True):
            rng = self._rng(sample)
            masked, prompt = self._masked(sample, target, rng), self._prompt(rng)
            if clip:
                # The published code computes these inputs outside the differentiated graph.
                frozen = self.config.compat == "reference"
                sequence = builders.recon_clip(prompt, condition, masked, self.vocabulary, frozen)
            else:
                sequence = builders.recon_vq(prompt, condition, masked, self.vocabulary)
            sequences.append(sequence)
        return sequences


@dataclass
class Account:
    """Counts of one optimizer step on this rank.

    Attributes:
        samples: number of samples.
        wait_s: seconds spent reading, encoding and packing.
        masking: masking rates of the samples by flow.
    """

    samples: int = 0
    wait_s: float = 0.0
    masking: dict[str, list[float]] = field(default_factory=dict)

    def add(self, sequences: list[Sequence]) -> None:
        """Count the sequences of a micro-step."""
        self.samples += len(sequences)
        for sequence in sequences:
            if sequence.masking_rate is not None:
                self.masking.setdefault(sequence.flow, []).append(sequence.masking_rate)


@dataclass
class _Window:
    """Everything of one optimizer step on this rank.

    Attributes:
        rows: packed micro-batches.
        samples: of each row.
        read: micro-batches of the loader, which the rows were made from.
        account: counts.
        ready: recorded on the stream that fills the rows; None on a CPU.
    """

    rows: list[PackedBatch]
    samples: list[MicroBatch]
    read: list[MicroBatch]
    account: Account
    ready: torch.cuda.Event | None = None


T = TypeVar("T")


class Ahead(Generic[T]):
    """Iterates in a thread, one item ahead: it makes the next item while the caller uses the last one.

    The first item is made by the caller's thread. An error is raised, as it is, where its item was due.

    Args:
        items: to iterate.
        wait: calls a function that waits for the thread, and returns its result.
    """

    def __init__(self, items: Iterator[T], wait: Callable[[Callable[[], Any]], Any]) -> None:
        self._items, self._wait = items, wait
        self._asked: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._made: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._next: tuple[Any, BaseException | None] | None = None
        self._thread: threading.Thread | None = None

    def __next__(self) -> T:
        self.settle()
        item, error = self._next or self._outcome()
        if error is not None:
            raise error
        self._next = None
        if self._thread is None:
            # A daemon: a process that ends does not wait for data.
            self._thread = threading.Thread(target=self._run, name="next window", daemon=True)
            self._thread.start()
        self._asked.put(None)
        return item

    def settle(self) -> None:
        """Wait until the next item is made, and the thread idle."""
        if self._thread is None or self._next is not None:
            return
        try:
            self._next = self._made.get_nowait()
        except queue.Empty:
            self._next = self._wait(self._made.get)

    def _run(self) -> None:
        while True:
            self._asked.get()
            self._made.put(self._outcome())

    def _outcome(self) -> tuple[Any, BaseException | None]:
        try:
            return next(self._items), None
        except BaseException as error:
            return None, error


class PackedBatches:
    """Windows of packed micro-batches, one window per optimizer step.

    With ``ahead``, the next window is read, encoded, packed and planned in a thread while the caller uses the
    last one. On a GPU that work has a stream of its own. A window's memory may be used again there once its
    last reference is gone; by then the host must have waited for the work that reads it, as a step does for
    the gradient's norm.

    Args:
        loader: this rank's micro-batches.
        maker: samples to sequences.
        device: where the batches go.
        window: micro-batches of the loader per optimizer step.
        feature_width: of the model's understanding features.
        multiple_of: token count of a batch is rounded up to it.
        repeat_first: train on the first window only (``training.overfit_one_batch``).
        rows: micro-steps that the samples of a window are spread over evenly, in order; None: a micro-step
            for each micro-batch of the loader.
        steps: row capacities per octave; 0: rows of any multiple.
        attention: the backend that the attention plan of each batch is for.
        windows: how many there are; None: no end.
        ahead: make the next window in a thread; else it is made when it is asked for.
    """

    def __init__(
        self,
        loader: Loader,
        maker: SequenceMaker,
        device: torch.device,
        window: int,
        feature_width: int,
        multiple_of: int,
        repeat_first: bool = False,
        *,
        rows: int | None = None,
        steps: int = 0,
        attention: str = "sdpa",
        windows: int | None = None,
        ahead: bool = False,
    ) -> None:
        self.loader, self.maker, self.device = loader, maker, device
        self.window, self.feature_width, self.multiple_of = window, feature_width, multiple_of
        self.rows, self.steps, self.attention = rows, steps, attention
        self.bad = BadSamples()
        self._repeats = repeat_first
        self.latest: MicroBatch | None = None
        self.window_read: list[MicroBatch] = []  # of the last window by row, to name suspects
        self._micro_batches = 0
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        items = islice(self._read(repeat_first), windows)
        self._windows = Ahead(items, self._waiting) if ahead else items

    def __next__(self) -> tuple[list[PackedBatch], Account]:
        start = time.perf_counter()
        window = next(self._windows)
        if window.ready is not None:
            torch.cuda.current_stream(self.device).wait_event(window.ready)
        # Counted when a window is returned, so that a checkpoint after its step resumes behind it.
        if not self._repeats:
            self._micro_batches += self.window
        for batch in window.read:
            self.bad.add(batch.skipped, good=sum(map(len, batch.samples.values())))
        self.latest, self.window_read = window.read[-1], window.samples
        window.account.wait_s = time.perf_counter() - start
        return window.rows, window.account

    def positions(self) -> dict[str, int]:
        """Next position of each flow's stream after the windows returned so far."""
        return self.loader.positions_after(self._micro_batches)

    def settle(self) -> None:
        """Wait until the thread is idle: encoders, tokenizer and memory are the caller's alone."""
        if isinstance(self._windows, Ahead):
            self._windows.settle()

    def _waiting(self, wait: Callable[[], T]) -> T:
        return self.loader.waiting(wait)

    def _read(self, repeat_first: bool) -> Iterator[_Window]:
        batches = iter(self.loader)
        read: list[MicroBatch] = []
        while True:
            # Without repetition every window is new; with it, the first one is kept and reused.
            if not (read and repeat_first):
                read = [next(batches) for _ in range(self.window)]
            yield self._beside(read)

    def _beside(self, read: list[MicroBatch]) -> _Window:
        """Make a window on the thread's own stream, where it is not queued behind the step that runs."""
        if self._stream is None:
            return self._window(read)
        with torch.cuda.device(self.device), torch.cuda.stream(self._stream):
            window = self._window(read)
            window.ready = self._stream.record_event()
        return window

    def _window(self, read: list[MicroBatch]) -> _Window:
        # Encoded micro-batch by micro-batch, whatever the rows: the same codes to the last bit.
        made = [(batch, self.maker(batch)) for batch in read]
        rows = made if self.rows is None else _spread(made, self.rows)
        account = Account()
        for _, sequences in rows:
            account.add(sequences)
        packed = [self._pack(sequences) for _, sequences in rows]
        return _Window(packed, [samples for samples, _ in rows], read, account)

    def _pack(self, sequences: list[Sequence]) -> PackedBatch:
        packed = pack(
            [image_first(s) for s in sequences] if self.attention == "flash" else sequences,
            pad_id=self.maker.vocabulary.pad,
            feature_width=self.feature_width,
            multiple_of=self.multiple_of,
            steps=self.steps,
        )
        # Planned with the batch and not in forward: by then the GPU is computing.
        packed.plan = build_plan(
            self.attention, packed.visibility, self.device, packed.label_rows_P
        )
        return packed.to(self.device)


def _spread(
    made: list[tuple[MicroBatch, list[Sequence]]], rows: int
) -> list[tuple[MicroBatch, list[Sequence]]]:
    """The samples and sequences of a window in ``rows`` of about as many tokens, in order."""
    samples = [s for batch, _ in made for flow in FLOWS for s in batch.samples.get(flow, [])]
    sequences = [sequence for _, group in made for sequence in group]
    stretches = cut([len(sequence) for sequence in sequences], rows)
    return [(_by_flow(samples[s]), sequences[s]) for s in stretches]


def _by_flow(samples: list[Sample]) -> MicroBatch:
    return MicroBatch({flow: [s for s in samples if s.flow == flow] for flow in FLOWS})
