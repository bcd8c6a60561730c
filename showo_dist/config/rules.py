"""The check of a :class:`TrainConfig`: ranges of single numbers, and combinations that cannot be meant.

One small function per rule, collected in ``RULES``. A rule gets the config and yields one line per problem; a
line names the keys to change.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from functools import reduce
from pathlib import Path
from typing import Any

from showo_dist.config import flows as data
from showo_dist.config.flows import FLOWS, active_flows, flow_settings
from showo_dist.config.hints import out_of_range
from showo_dist.config.schema import WITHOUT_EFFECT, TrainConfig
from showo_dist.config.training import REMASKING, MuonParams

Rule = Callable[[TrainConfig], Iterator[str]]

# DeepSpeed settings that follow from ours -> the key of ours to change instead.
OWN_DEEPSPEED_KEYS = {
    "train_batch_size": "training.batch_size_*",
    "train_micro_batch_size_per_gpu": "training.batch_size_*",
    "gradient_accumulation_steps": "training.gradient_accumulation_steps",
    "gradient_clipping": "training.max_grad_norm",
    "bf16": "training.mixed_precision",
    "fp16": "training.mixed_precision",
    "data_types.grad_accum_dtype": "distributed.gradient_accumulation_dtype",
    "communication_data_type": "distributed.gradient_reduction_dtype",
    "optimizer": "optimizer.*",
    "scheduler": "lr_scheduler.*",
    "zero_optimization.stage": "distributed.zero_stage",
    "zero_optimization.offload_optimizer": "distributed.offload_optimizer",
    "zero_optimization.offload_param": "distributed.offload_param",
}
SPECIAL_TOKENS = 10  # of Show-o, in showo_dist.sequences.vocabulary
PRECISIONS = ("no", "fp32", "bf16", "auto")
BACKBONE_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
# Fields of PhiConfig, whose module is slow to import, in the versions of transformers that read it.
BACKBONE_KEYS = (
    *BACKBONE_SIZES,
    *("vocab_size", "num_key_value_heads", "hidden_act", "max_position_embeddings"),
    *("initializer_range", "layer_norm_eps", "resid_pdrop", "embd_pdrop", "attention_dropout"),
    *("qk_layernorm", "rope_parameters", "rope_theta", "rope_scaling", "partial_rotary_factor"),
    *("use_cache", "tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id"),
    *("model_type", "architectures", "dtype", "torch_dtype", "transformers_version"),
)
MASK_SCHEDULE = re.compile(r"cosine|linear|sigmoid|pow\d+(\.\d+)?")


def check(config: TrainConfig, for_training: bool = True) -> None:
    """Raise ``ValueError``, one line per problem, when values are out of range or exclude each other.

    Args:
        config: to check.
        for_training: also report what training needs and the config lacks: a flow, its data, a folder to
            write to.
    """
    problems = [problem for rule in RULES for problem in rule(config)]
    if for_training:
        problems += no_flow(config) + missing_data(config) + _output_folder(config)
    if problems:
        raise ValueError("\n".join(problems))


def no_flow(config: TrainConfig) -> list[str]:
    """A line when nothing is trained at all (the demo configs)."""
    if active_flows(config):
        return []
    keys = ", ".join(f"training.batch_size_{name}" for name in FLOWS)
    return [f"no flow is on: give at least one of {keys} with a positive coefficient"]


def _output_folder(config: TrainConfig) -> list[str]:
    """A line when the run's folder cannot be made: it or its nearest parent is no folder, or not writable."""
    folder = Path(config.experiment.output_dir)
    key = f"experiment.output_dir = {config.experiment.output_dir!r}"
    if "\0" in str(folder):
        return [f"{key}: holds a NUL character"]
    if not folder.absolute().name:
        return [f"{key}: is the root folder; name a folder of the run's own"]
    there = next(p for p in (folder, *folder.absolute().parents) if os.path.lexists(p))
    if not there.is_dir():
        return [f"{key}: {there} is not a folder"]
    return [] if os.access(there, os.W_OK) else [f"{key}: {there} cannot be written"]


def missing_data(config: TrainConfig) -> list[str]:
    """One line for every active flow whose data is not filled in."""
    return [
        f"{flow.path_key} is empty, but training.{flow.name}_coeff = {flow.coefficient}: "
        f"fill in the data, or turn the flow off with training.{flow.name}_coeff=0"
        for flow in active_flows(config).values()
        if not flow.paths
    ]


def warnings_about(config: TrainConfig) -> list[str]:
    """One line for every setting that is allowed and probably not meant."""
    lines = []
    recon_from_codes = "recon" in active_flows(config) and not config.model.showo.w_clip_vit
    if recon_from_codes and config.training.down_scale == 1:
        lines.append(
            "training.down_scale = 1: the condition has the target's own resolution, which teaches "
            "copying; use 2 or more"
        )
    if config.optimizer.name != "muon" and config.optimizer.muon != MuonParams():
        lines.append("optimizer.muon is set: it has no effect unless optimizer.name=muon")
    lines += _settings_of_other_choices(config)
    lines += _language_model_alone(config)
    warmup, steps = config.lr_scheduler.params.warmup_steps, config.training.max_train_steps
    if warmup >= steps:
        lines.append(
            f"lr_scheduler.params.warmup_steps = {warmup}: the run ends inside the warm-up, at "
            f"training.max_train_steps = {steps}"
        )
    return lines


def _settings_of_other_choices(config: TrainConfig) -> Iterator[str]:
    """Settings that belong to a choice that was not made."""
    training, clip = config.training, config.model.showo.w_clip_vit
    usual = TrainConfig()
    if config.lora.rank == 0 and config.lora != usual.lora:
        yield "lora is set: it has no effect with lora.rank = 0, and all weights are trained"
    if clip and (training.down_scale, training.resize_back) != (
        usual.training.down_scale,
        usual.training.resize_back,
    ):
        yield "training.down_scale, resize_back: no effect with CLIP features (model.showo.w_clip_vit)"
    mmu = "mmu" in active_flows(config)
    if clip and mmu and config.dataset.und_type == "captioning":
        yield (
            "dataset.und_type = captioning: captions are trained on image codes, not on CLIP features "
            "(model.showo.w_clip_vit), which tools will ask about"
        )
    if config.dataset.add_system_prompt and (clip or config.dataset.und_type == "captioning"):
        yield (
            "dataset.add_system_prompt = True: no effect with captions, and with CLIP features "
            "dataset.und_type decides"
        )


def _language_model_alone(config: TrainConfig) -> Iterator[str]:
    """A line when a later stage starts where stage 1 does; random weights (``llm_config``) are a choice."""
    showo, flows = config.model.showo, active_flows(config)
    if config.start_from or showo.llm_config is not None:
        return
    later = "the flow recon" if "recon" in flows else None
    if "mmu" in flows and config.dataset.und_type != "captioning":
        later = f"dataset.und_type = {config.dataset.und_type}"
    if later:
        yield (
            f"experiment.init_from is null: the run starts from the language model {showo.llm_model_path} "
            f"alone, but {later} belongs to a stage after pre-training; name the weights of the stage before"
        )


def without_effect(config: TrainConfig) -> list[str]:
    """One line for every changed setting that is accepted for published files only."""
    defaults, lines = TrainConfig(), []
    for key, reason in WITHOUT_EFFECT.items():
        value, default = (reduce(getattr, key.split("."), c) for c in (config, defaults))
        if value != default:
            lines.append(f"{key} = {value}: {reason}")
    return lines


def numbers_in_range(config: TrainConfig) -> Iterator[str]:
    """Counts, rates and probabilities, each by the range of its field."""
    yield from out_of_range(config)


def eval_ratios_are_fractions(config: TrainConfig) -> Iterator[str]:
    """Masked fractions lie between 0 and 1."""
    ratios = config.training.eval_mask_ratios
    if ratios is not None and not (ratios and all(0 <= ratio <= 1 for ratio in ratios)):
        yield f"training.eval_mask_ratios = {ratios}: expected fractions from 0 to 1, or null"


def guidance_interval_is_one(config: TrainConfig) -> Iterator[str]:
    """Two shares of the rounds, the first one not larger."""
    match config.training.guidance_interval:
        case [first, last] if 0 <= first <= last <= 1:
            return
        case other:
            yield f"training.guidance_interval = {other}: expected two numbers from 0 to 1, in order"


def remasking_has_a_sampler(config: TrainConfig) -> Iterator[str]:
    """Other samplers never mask a generated code again."""
    training = config.training
    usual = type(training)().generation_remask
    if training.generation_remask != usual and training.generation_sampler not in REMASKING:
        yield (
            f"training.generation_remask = {training.generation_remask}: without effect with "
            f"training.generation_sampler = {training.generation_sampler}"
        )


def vocabulary_adds_up(config: TrainConfig) -> Iterator[str]:
    """Text + special tokens + image codes + the mask token (docs/specification.md, section 1)."""
    showo = config.model.showo
    if showo.num_new_special_tokens != SPECIAL_TOKENS:
        yield (
            f"model.showo.num_new_special_tokens = {showo.num_new_special_tokens}: Show-o has "
            f"{SPECIAL_TOKENS} of them"
        )
    total = showo.llm_vocab_size + showo.num_new_special_tokens + showo.codebook_size + 1
    if showo.rows != total:
        yield (
            f"model.showo.vocab_size = {showo.vocab_size}: expected {total} = "
            f"llm_vocab_size {showo.llm_vocab_size} + "
            f"num_new_special_tokens {showo.num_new_special_tokens} + "
            f"codebook_size {showo.codebook_size} + 1"
        )


def codebook_is_a_power_of_two(config: TrainConfig) -> Iterator[str]:
    """A look-up-free quantizer has one bit per channel."""
    size = config.model.showo.codebook_size
    if size < 2 or size & (size - 1):
        yield f"model.showo.codebook_size = {size}: expected a power of 2 (one bit per channel)"


def image_tokens_match_resolution(config: TrainConfig) -> Iterator[str]:
    """``num_vq_tokens`` is the number of cells of the tokenizer's grid."""
    resolution = config.dataset.preprocessing.resolution
    downsample = config.model.vq_model.downsample
    if resolution < 1 or downsample < 1:
        return
    if resolution % downsample:
        yield (
            f"dataset.preprocessing.resolution = {resolution}: expected a multiple of "
            f"model.vq_model.downsample = {downsample}"
        )
    elif config.model.showo.num_vq_tokens != (resolution // downsample) ** 2:
        yield (
            f"model.showo.num_vq_tokens = {config.model.showo.num_vq_tokens}: expected "
            f"{(resolution // downsample) ** 2} = (dataset.preprocessing.resolution {resolution} / "
            f"model.vq_model.downsample {downsample})^2"
        )


def resolutions_agree(config: TrainConfig) -> Iterator[str]:
    """The published files name the image size twice."""
    params, preprocessing = (
        config.dataset.params.resolution,
        config.dataset.preprocessing.resolution,
    )
    if params != preprocessing:
        yield (
            f"dataset.params.resolution = {params}: expected dataset.preprocessing.resolution = "
            f"{preprocessing}"
        )


def condition_fits_tokenizer(config: TrainConfig) -> Iterator[str]:
    """A shrunk condition image (RecA with image codes) must fill the tokenizer's grid."""
    training, resolution = config.training, config.dataset.preprocessing.resolution
    uses_codes = "recon" in active_flows(config) and not config.model.showo.w_clip_vit
    if not uses_codes or training.down_scale < 1:
        return
    if training.resize_back:
        if training.down_scale > resolution:
            yield f"training.down_scale = {training.down_scale}: at most the {resolution} pixels of a side"
        return
    side = training.down_scale * config.model.vq_model.downsample
    if side < 1 or resolution % side:
        yield (
            f"training.down_scale = {training.down_scale}: dataset.preprocessing.resolution "
            f"{resolution} must be a multiple of down_scale x model.vq_model.downsample = {side}, "
            "or set training.resize_back=true"
        )


def batch_sizes_are_counts(config: TrainConfig) -> Iterator[str]:
    """A weighted flow has samples; -1 is the published way to turn one off."""
    for name in FLOWS:
        flow = flow_settings(config, name)
        key = f"training.batch_size_{name}"
        if flow.batch_size < -1:
            yield f"{key} = {flow.batch_size}: expected 1 or more, or -1 to turn the flow off"
        elif flow.batch_size == 0 and flow.coefficient > 0:
            yield (
                f"{key} = 0, but training.{name}_coeff = {flow.coefficient}: "
                f"give it samples, or turn it off with {key}=-1"
            )


def data_paths_are_texts(config: TrainConfig) -> Iterator[str]:
    """A path, a list of paths, or weighted sources."""
    for name in FLOWS:
        for key in (f"{use}_{name}_shards_path_or_url" for use in ("train", "validation")):
            yield from data.problems(f"dataset.params.{key}", getattr(config.dataset.params, key))


def pipes_are_allowed(config: TrainConfig) -> Iterator[str]:
    """``pipe:`` URLs run commands."""
    for flow in active_flows(config).values():
        held_out = f"dataset.params.validation_{flow.name}_shards_path_or_url"
        for key, paths in ((flow.path_key, flow.paths), (held_out, flow.validation_paths)):
            pipe = next((path for path in paths if path.startswith("pipe:")), None)
            if pipe is None:
                continue
            if not config.data.allow_pipe:
                yield f"{key} = {pipe!r}: runs a command; allow with data.allow_pipe=true"
            elif config.data.cache_gb == 0:
                yield (
                    f"{key} = {pipe!r}: the output of a command must be kept to be read again; "
                    "set data.cache_gb above 0"
                )


def precision_is_known(config: TrainConfig) -> Iterator[str]:
    """fp16 needs loss scaling, and the published runs are bf16."""
    value = config.training.mixed_precision
    if value == "fp16":
        yield (
            "training.mixed_precision = 'fp16': not supported, its range overflows without loss "
            "scaling; use bf16 (same speed, no scaling) or fp32"
        )
    elif value not in PRECISIONS:
        yield f"training.mixed_precision = {value!r}: expected fp32 (or 'no', quoted), bf16 or auto"


def mask_schedule_is_known(config: TrainConfig) -> Iterator[str]:
    """Schedules of docs/specification.md, section 6."""
    value = config.training.mask_schedule
    if not MASK_SCHEDULE.fullmatch(value):
        yield (
            f"training.mask_schedule = {value!r}: expected cosine, linear, sigmoid, or pow with "
            "its exponent as in pow2"
        )


def one_learning_rate(config: TrainConfig) -> Iterator[str]:
    """The published files name the learning rate twice and read the optimizer's."""
    rate = config.lr_scheduler.params.learning_rate
    if rate is not None and rate != config.optimizer.params.learning_rate:
        yield (
            f"lr_scheduler.params.learning_rate = {rate}: expected null, or the one in use, "
            f"optimizer.params.learning_rate = {config.optimizer.params.learning_rate}"
        )
    if config.optimizer.params.scale_lr:
        yield (
            "optimizer.params.scale_lr = True: expected false; write the rate you want as "
            "optimizer.params.learning_rate"
        )


def budget_needs_global_means(config: TrainConfig) -> Iterator[str]:
    """A mean per micro-step is another loss when the micro-steps hold other samples."""
    training = config.training
    if training.tokens_per_step is not None and training.loss_normalization == "rank":
        yield (
            f"training.tokens_per_step = {training.tokens_per_step}: not with training.loss_normalization = "
            "rank, a mean per micro-step; use global, or null"
        )


def templates_have_turns(config: TrainConfig) -> Iterator[str]:
    """A chat template lays out conversations; captions have no turns."""
    if config.dataset.chat_template and config.dataset.und_type == "captioning":
        yield (
            "dataset.chat_template = True: only with dataset.und_type = llava_pretrain or llava_tuning; "
            "captions have no turns"
        )


def captions_have_one_image(config: TrainConfig) -> Iterator[str]:
    """Only conversations and documents mark the places of images."""
    if config.dataset.max_images > 1 and config.dataset.und_type == "captioning":
        yield (
            f"dataset.max_images = {config.dataset.max_images}: only with dataset.und_type = llava_pretrain "
            "or llava_tuning; a caption has one image"
        )


def resume_names_a_checkpoint(config: TrainConfig) -> Iterator[str]:
    """``true`` names no checkpoint."""
    if config.experiment.resume_from_checkpoint is True:
        yield "experiment.resume_from_checkpoint = True: expected latest, false or a path"


def backbone_has_a_source(config: TrainConfig) -> Iterator[str]:
    """A language model or its sizes, a text tokenizer, and weights where they are asked for."""
    showo = config.model.showo
    if showo.llm_config is None and not showo.llm_model_path:
        yield "model.showo.llm_model_path is null: give it, or model.showo.llm_config"
    if not config.text_tokenizer:
        yield "model.showo.tokenizer_path is null: give it, or model.showo.llm_model_path"
    if showo.load_from_showo and not config.start_from:
        yield "model.showo.load_from_showo = True: needs model.showo.pretrained_model_path"


def backbone_sizes_are_whole(config: TrainConfig) -> Iterator[str]:
    """``llm_config`` gives all sizes, and heads that divide the width, unless it gives theirs."""
    sizes = config.model.showo.llm_config
    if sizes is None:
        return
    for name in BACKBONE_SIZES:
        if not (type(sizes.get(name)) is int and sizes[name] > 0):
            value = sizes.get(name)
            yield f"model.showo.llm_config.{name} = {value!r}: expected an integer above 0"
            return
    if sizes["hidden_size"] % sizes["num_attention_heads"] and not sizes.get("head_dim"):
        yield (
            f"model.showo.llm_config.hidden_size = {sizes['hidden_size']}: expected a multiple of "
            f"num_attention_heads = {sizes['num_attention_heads']}"
        )


def backbone_keys_are_known(config: TrainConfig) -> Iterator[str]:
    """A misspelt field of ``llm_config`` would leave the family's default in place.

    Other families than Phi are asked when the model is built: transformers is slow to import.
    """
    fields = config.model.showo.llm_config or {}
    if fields.get("model_type", "phi") != "phi":
        return
    for name, value in fields.items():
        if name not in BACKBONE_KEYS:
            (near,) = get_close_matches(str(name), BACKBONE_KEYS, n=1, cutoff=0.0)
            key = f"model.showo.llm_config.{name}"
            yield f"{key} = {value!r}: unknown key; nearest known: {near}"


def deepspeed_keys_are_free(config: TrainConfig) -> Iterator[str]:
    """Settings that follow from this config are changed there, not behind its back."""
    shown = set()
    for key, ours in OWN_DEEPSPEED_KEYS.items():
        found = _given(config.distributed.deepspeed, key)
        if found and found[0] not in shown:
            yield f"distributed.deepspeed.{found[0]} = {found[1]!r}: set {ours} instead"
            shown.add(found[0])


def _given(settings: dict[str, Any], key: str) -> tuple[str, Any] | None:
    """The dotted key and its value, if settings hold it, or the part of it that would replace our section."""
    name, _, rest = key.partition(".")
    if name not in settings:
        return None
    value = settings[name]
    if not (rest and isinstance(value, dict)):
        return name, value
    found = _given(value, rest)
    return found and (f"{name}.{found[0]}", found[1])


def gradient_formats_exist(config: TrainConfig) -> Iterator[str]:
    """ZeRO 1 to 3 has bf16 weights in bf16 runs; every other gradient is that of an fp32 weight."""
    distributed, precision = config.distributed, config.training.mixed_precision
    for name in ("gradient_accumulation_dtype", "gradient_reduction_dtype"):
        if getattr(distributed, name) == "bf16" and precision in ("no", "fp32"):
            yield f"distributed.{name} = bf16: needs training.mixed_precision bf16 or auto, not {precision}"
    if distributed.gradient_accumulation_dtype == "fp32":
        return
    key = "distributed.gradient_accumulation_dtype = bf16"
    if distributed.engine == "torch":
        yield f"{key}: needs distributed.engine=deepspeed; torch sums gradients of fp32 weights"
    elif distributed.zero_stage == 0:
        yield f"{key}: needs distributed.zero_stage 1 to 3; ZeRO-0 sums gradients of fp32 weights"


def adapters_have_a_base(config: TrainConfig) -> Iterator[str]:
    """LoRA leaves most weights as they are, so they must be worth something."""
    if config.lora.rank and config.start_from is None:
        yield (
            f"lora.rank = {config.lora.rank}: adapters need trained weights below them; set "
            "experiment.init_from"
        )


def adapted_layers_exist(config: TrainConfig) -> Iterator[str]:
    """LoRA adapts something; whether the blocks have such layers shows when the model is built."""
    if config.lora.rank and config.lora.target_modules == []:
        yield "lora.target_modules = []: name a layer of the blocks, as q_proj, or null for all"


def moments_have_a_source(config: TrainConfig) -> Iterator[str]:
    """Moments are those of the same parameters."""
    experiment = config.experiment
    if not experiment.init_optimizer:
        return
    if not experiment.init_from:
        yield "experiment.init_optimizer = True: set experiment.init_from to a checkpoint of ours"
    if config.lora.rank:
        yield (
            "experiment.init_optimizer = True: adapters are new and have no moments; "
            "set it to false, or lora.rank to 0"
        )


def offload_fits_the_stage(config: TrainConfig) -> Iterator[str]:
    """What DeepSpeed can move off the GPU depends on what it shards."""
    distributed, stage = config.distributed, config.distributed.zero_stage
    optimizer, parameters = distributed.offload_optimizer, distributed.offload_param
    if optimizer == "cpu" and stage < 1:
        yield f"distributed.offload_optimizer = cpu: needs distributed.zero_stage 1 to 3, not {stage}"
    if parameters != "none" and stage < 3:
        yield (
            f"distributed.offload_param = {parameters}: needs distributed.zero_stage 3, not {stage}"
        )
    if parameters == "nvme" and not distributed.offload_path:
        yield "distributed.offload_path is null: nvme needs a folder on the disk to use"


def apex_counts_steps_rightly(config: TrainConfig) -> Iterator[str]:
    """apex keeps one step count per group, which ZeRO-3 steps once for each of its parts."""
    if config.optimizer.params.implementation != "apex":
        return
    key = "optimizer.params.implementation = apex"
    if config.optimizer.name == "muon":
        yield f"{key}: optimizer.name=muon uses torch's kernels; set torch"
    if config.distributed.zero_stage == 3:
        yield f"{key}: counts steps wrongly with distributed.zero_stage=3; set torch"
    if config.distributed.offload_optimizer != "none":
        yield f"{key}: cannot update in host memory (distributed.offload_optimizer); set torch"


def projector_can_be_trained_alone(config: TrainConfig) -> Iterator[str]:
    """There is a projector, and AdamW without a gradient norm trains it."""
    if not config.trains_projector_alone:
        return
    trained = config.optimizer.trained or "projector, as of dataset.und_type = llava_pretrain"
    key = f"optimizer.trained = {trained}"
    if not config.model.showo.w_clip_vit:
        yield f"{key}: there is no projector without model.showo.w_clip_vit"
    if config.lora.rank:
        yield (
            f"{key}: not with lora.rank = {config.lora.rank}; lora.train_projector trains it beside "
            "adapters"
        )
    if config.optimizer.name == "muon":
        yield f"{key}: not with optimizer.name = muon; set adamw, or optimizer.trained=all"
    if config.training.max_grad_norm is not None:
        yield (
            f"{key}: not with training.max_grad_norm = {config.training.max_grad_norm}, since the norm "
            "counts the gradients of all weights; set null, or optimizer.trained=all"
        )


def schedule_covers_the_training(config: TrainConfig) -> Iterator[str]:
    """The cosine does not end before the training."""
    schedule, steps = config.lr_scheduler, config.training.max_train_steps
    if schedule.scheduler == "cosine" and config.schedule_steps < steps:
        yield (
            f"lr_scheduler.steps = {schedule.steps}: less than training.max_train_steps = {steps}; the "
            "cosine would rise again"
        )


def averages_exist_to_evaluate(config: TrainConfig) -> Iterator[str]:
    """Averaged weights take the place of the weights for a while, which parameters on a disk cannot."""
    if not config.training.ema.evaluate:
        return
    if config.training.ema.decay is None:
        yield "training.ema.evaluate = True: set training.ema.decay, as 0.999"
    if config.distributed.offload_param == "nvme":
        yield (
            "training.ema.evaluate = True: cannot replace weights on a disk; set it to false, or "
            "distributed.offload_param to cpu"
        )


def torch_engine_has_no_deepspeed_settings(config: TrainConfig) -> Iterator[str]:
    """The torch engine shards and offloads nothing."""
    distributed = config.distributed
    if distributed.engine != "torch":
        return
    for key in ("offload_optimizer", "offload_param"):
        if getattr(distributed, key) != "none":
            value = getattr(distributed, key)
            yield f"distributed.{key} = {value}: needs distributed.engine=deepspeed"
    if distributed.deepspeed:
        yield "distributed.deepspeed is set: needs distributed.engine=deepspeed"


RULES: tuple[Rule, ...] = (
    numbers_in_range,
    eval_ratios_are_fractions,
    guidance_interval_is_one,
    remasking_has_a_sampler,
    vocabulary_adds_up,
    codebook_is_a_power_of_two,
    image_tokens_match_resolution,
    resolutions_agree,
    condition_fits_tokenizer,
    batch_sizes_are_counts,
    data_paths_are_texts,
    pipes_are_allowed,
    precision_is_known,
    mask_schedule_is_known,
    one_learning_rate,
    budget_needs_global_means,
    templates_have_turns,
    captions_have_one_image,
    resume_names_a_checkpoint,
    backbone_has_a_source,
    backbone_keys_are_known,
    backbone_sizes_are_whole,
    deepspeed_keys_are_free,
    gradient_formats_exist,
    adapters_have_a_base,
    adapted_layers_exist,
    moments_have_a_source,
    offload_fits_the_stage,
    apex_counts_steps_rightly,
    projector_can_be_trained_alone,
    schedule_covers_the_training,
    averages_exist_to_evaluate,
    torch_engine_has_no_deepspeed_settings,
)
