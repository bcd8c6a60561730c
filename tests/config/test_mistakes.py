"""Every mistake is a ValueError of one line that names the key, the value and what is allowed."""

import re

import pytest

from showo_dist.config import TrainConfig, load
from showo_dist.config.rules import RULES, check, warnings_about

READY = ["training.batch_size_t2i=1", "dataset.params.train_t2i_shards_path_or_url=a.tar"]
RECON = ["training.batch_size_recon=1", "dataset.params.train_recon_shards_path_or_url=a.tar"]
CLIP = "model.showo.w_clip_vit=true"
PROJECTOR = [CLIP, "optimizer.trained=projector"]
APEX = "optimizer.params.implementation=apex"
LLM = "hidden_size: 64, intermediate_size: 256, num_hidden_layers: 2"


def problem(*overrides: str) -> str:
    with pytest.raises(ValueError) as caught:
        load([*READY, *overrides])
    return str(caught.value)


def test_the_starting_point_is_valid() -> None:
    assert warnings_about(load(READY)) == []


UNKNOWN = [
    ("training.batch_size_t2=1", "training.batch_size_t2 = 1", "training.batch_size_t2i"),
    ("training.learning_rate=1e-4", "0.0001", "optimizer.params.learning_rate"),
    ("experiment.save_evry=5", "experiment.save_evry = 5", "experiment.save_every"),
    ("model.showo.num_vq_token=4", "4", "model.showo.num_vq_tokens"),
    ("guidance_scal=4", "4", "training.guidance_scale"),
]


@pytest.mark.parametrize(("override", "value", "nearest"), UNKNOWN)
def test_unknown_key_names_the_nearest(override: str, value: str, nearest: str) -> None:
    message = problem(override)
    assert message.startswith(override.split("=")[0]) and value in message
    assert message.endswith(f"unknown key; nearest known: {nearest}")


def test_every_unknown_key_is_reported() -> None:
    assert len(problem("training.sed=1", "wandb.entty=x", "modl=3").splitlines()) == 3


WRONG_TYPES = [
    ("training.batch_size_t2i=abc", "training.batch_size_t2i = 'abc': expected an integer"),
    ("training.batch_size_t2i=1.5", "training.batch_size_t2i = 1.5: expected an integer"),
    ("training.batch_size_t2i=null", "training.batch_size_t2i = None: expected an integer"),
    ("training.batch_size_t2i=true", "training.batch_size_t2i = True: expected an integer"),
    ("training.t2i_coeff=high", "training.t2i_coeff = 'high': expected a number"),
    ("training.max_grad_norm=x", "training.max_grad_norm = 'x': expected a number or null"),
    (
        "model.showo.w_clip_vit=perhaps",
        "model.showo.w_clip_vit = 'perhaps': expected true or false",
    ),
    ("training=5", "training = 5: expected a section of keys"),
    ("training=null", "training = None: expected a section of keys"),
    ("model.showo.llm_config=3", "model.showo.llm_config = 3: expected a mapping or null"),
    ("training.eval_mask_ratios=[a]", "expected a list (each a number) or null"),
    ("training.noise_type=noise", "'noise': expected one of mask, random_replace"),
    ("distributed.zero_stage=4", "distributed.zero_stage = 4: expected one of 0, 1, 2, 3"),
    ("dataset.gen_type=t2v", "dataset.gen_type = 't2v': expected one of t2i, imagenet1k"),
    ("dataset.und_type=x", "expected one of captioning, llava_pretrain, llava_tuning"),
    ("dataset.recon_type=x", "expected one of mid, journeydb"),
    ("dataset.combined_loader_mode=x", "expected one of min_size, max_size_cycle"),
    ("lr_scheduler.scheduler=linear", "'linear': expected one of cosine, constant"),
    ("model.attention=fast", "'fast': expected one of auto, flex, flash, native, sdpa, dense"),
    ("optimizer.name=lion", "optimizer.name = 'lion': expected one of adamw"),
    ("compat=old", "compat = 'old': expected one of none, reference"),
    ("training.t2i_coeff=${training.nothing}", "Interpolation key 'training.nothing' not found"),
]


@pytest.mark.parametrize(("override", "expected"), WRONG_TYPES)
def test_wrong_type(override: str, expected: str) -> None:
    message = problem(override)
    assert expected in message and message.startswith(override.split("=")[0])
    assert len(message.splitlines()) == 1


# rule -> overrides that break it, and a part of the message
LORA = ["lora.rank=4", "experiment.init_from=runs/a"]
BROKEN = {
    "numbers_in_range": [
        (["training.max_train_steps=0"], "training.max_train_steps = 0: expected 1 or more"),
        (["training.lm_coeff=-0.1"], "training.lm_coeff = -0.1: expected 0 or more"),
        (["training.max_grad_norm=0"], "training.max_grad_norm = 0.0: expected a number above 0"),
        (["training.cond_dropout_prob=1.5"], "training.cond_dropout_prob = 1.5: expected 0 to 1"),
        (["training.generation_top_p=0"], "generation_top_p = 0.0: expected above 0, at most 1"),
        (["training.label_smoothing=1"], "training.label_smoothing = 1.0: expected 0 to below 1"),
        (["optimizer.params.learning_rate=.nan"], "optimizer.params.learning_rate = nan"),
        (["data.window=0"], "data.window = 0: expected 1 or more"),
    ],
    "eval_ratios_are_fractions": [
        (["training.eval_mask_ratios=[0.5,2]"], "training.eval_mask_ratios = [0.5, 2.0]"),
        (["training.eval_mask_ratios=[]"], "training.eval_mask_ratios = []"),
    ],
    "guidance_interval_is_one": [
        (["training.guidance_interval=[0.5]"], "training.guidance_interval = [0.5]: expected two"),
        (["training.guidance_interval=[0.9,0.2]"], "training.guidance_interval = [0.9, 0.2]"),
        (["training.guidance_interval=[0,1.5]"], "training.guidance_interval = [0.0, 1.5]"),
    ],
    "remasking_has_a_sampler": [
        (
            ["training.generation_remask=0.3"],
            "generation_remask = 0.3: without effect with training",
        ),
    ],
    "vocabulary_adds_up": [
        (
            ["model.showo.num_new_special_tokens=12", "model.showo.vocab_size=58500"],
            "num_new_special_tokens = 12: Show-o has 10",
        ),
        (
            ["model.showo.vocab_size=58497"],
            "vocab_size = 58497: expected 58498 = llm_vocab_size 50295",
        ),
        (
            ["model.showo.llm_vocab_size=50000", "model.showo.vocab_size=58498"],
            "vocab_size = 58498: expected 58203",
        ),
    ],
    "codebook_is_a_power_of_two": [
        (
            ["model.showo.codebook_size=8000", "model.showo.vocab_size=58306"],
            "8000: expected a power of 2",
        ),
    ],
    "image_tokens_match_resolution": [
        (["model.showo.num_vq_tokens=1024"], "model.showo.num_vq_tokens = 1024: expected 256"),
        (["model.vq_model.downsample=8"], "model.showo.num_vq_tokens = 256: expected 1024"),
        (
            ["dataset.preprocessing.resolution=250", "dataset.params.resolution=250"],
            "resolution = 250: expected a multiple of model.vq_model.downsample = 16",
        ),
    ],
    "resolutions_agree": [
        (["dataset.params.resolution=512"], "512: expected dataset.preprocessing.resolution = 256"),
    ],
    "condition_fits_tokenizer": [
        ([*RECON, "training.down_scale=32"], "training.down_scale = 32: "),
        ([*RECON, "training.down_scale=3"], "training.down_scale = 3: "),
        (
            [*RECON, "training.down_scale=4096", "training.resize_back=true"],
            "training.down_scale = 4096: at most the 256 pixels of a side",
        ),
    ],
    "batch_sizes_are_counts": [
        (["training.batch_size_lm=0"], "training.batch_size_lm = 0, but training.lm_coeff = 0.1"),
        (["training.batch_size_lm=-2"], "training.batch_size_lm = -2: expected 1 or more, or -1"),
    ],
    "data_paths_are_texts": [
        (
            ["dataset.params.train_lm_shards_path_or_url={a: b}"],
            "dataset.params.train_lm_shards_path_or_url = {'a': 'b'}: expected a path",
        ),
        (["dataset.params.train_t2i_shards_path_or_url=[a, 3]"], "['a', 3]: expected a path"),
        (
            ["dataset.params.train_mmu_shards_path_or_url=[{urls: a}, b]"],
            "'b' stands beside weighted sources",
        ),
        (
            ["dataset.params.train_mmu_shards_path_or_url=[{urls: a, weight: -1}]"],
            "weight = -1: expected a number, 0 or more",
        ),
        (
            ["dataset.params.train_mmu_shards_path_or_url=[{urls: a, weight: 0}]"],
            "expected a weight above 0",
        ),
        (
            ["dataset.params.train_mmu_shards_path_or_url=[{urls: [a, 3], weight: 1}]"],
            "expected a path, a list of paths, a list of {urls, weight}",
        ),
        (
            ["dataset.params.train_mmu_shards_path_or_url=[{urls: a, wieght: 2}]"],
            "expected a path, a list of paths, a list of {urls, weight}",
        ),
    ],
    "pipes_are_allowed": [
        (["dataset.params.train_t2i_shards_path_or_url=pipe:cat a.tar"], "data.allow_pipe=true"),
        (
            ["dataset.params.train_t2i_shards_path_or_url=pipe:cat a.tar", "data.allow_pipe=true"],
            "set data.cache_gb above 0",
        ),
    ],
    "precision_is_known": [
        (["training.mixed_precision=fp16"], "'fp16': not supported, its range overflows"),
        (["training.mixed_precision=int8"], "'int8': expected fp32"),
    ],
    "mask_schedule_is_known": [
        (["training.mask_schedule=square"], "'square': expected cosine, linear, sigmoid, or pow"),
        (["training.mask_schedule=pow"], "'pow': expected"),
    ],
    "one_learning_rate": [
        (["lr_scheduler.params.learning_rate=1"], "optimizer.params.learning_rate = 0.0001"),
        (["optimizer.params.scale_lr=true"], "optimizer.params.scale_lr = True: expected false"),
    ],
    "projector_can_be_trained_alone": [
        (["optimizer.trained=projector"], "there is no projector without model.showo.w_clip_vit"),
        ([*PROJECTOR, "lora.rank=2", "experiment.init_from=a"], "not with lora.rank = 2"),
        ([*PROJECTOR, "optimizer.name=muon"], "not with optimizer.name = muon"),
        ([*PROJECTOR, "training.max_grad_norm=1"], "not with training.max_grad_norm = 1.0"),
        (
            [CLIP, "dataset.und_type=llava_pretrain", "training.max_grad_norm=1"],
            "optimizer.trained = projector, as of dataset.und_type = llava_pretrain: not with",
        ),
    ],
    "schedule_covers_the_training": [
        (
            ["lr_scheduler.steps=99", "training.max_train_steps=100"],
            "lr_scheduler.steps = 99: less than training.max_train_steps = 100",
        ),
    ],
    "templates_have_turns": [
        (["dataset.chat_template=true"], "only with dataset.und_type = llava_pretrain"),
    ],
    "captions_have_one_image": [
        (["dataset.max_images=2"], "only with dataset.und_type = llava_pretrain or llava_tuning"),
    ],
    "resume_names_a_checkpoint": [
        (["experiment.resume_from_checkpoint=true"], "expected latest, false or a path"),
    ],
    "backbone_has_a_source": [
        (
            ["model.showo.llm_model_path=null", "model.showo.tokenizer_path=t"],
            "model.showo.llm_config",
        ),
        (
            [
                "model.showo.llm_model_path=null",
                f"model.showo.llm_config={{{LLM}, num_attention_heads: 2}}",
            ],
            "model.showo.tokenizer_path is null",
        ),
        (["model.showo.load_from_showo=true"], "needs model.showo.pretrained_model_path"),
    ],
    "backbone_sizes_are_whole": [
        ([f"model.showo.llm_config={{{LLM}}}"], "llm_config.num_attention_heads = None"),
        ([f"model.showo.llm_config={{{LLM}, num_attention_heads: 7}}"], "expected a multiple of"),
    ],
    "backbone_keys_are_known": [
        (
            [f"model.showo.llm_config={{{LLM}, num_attention_heads: 2, num_hiden_layers: 9}}"],
            "llm_config.num_hiden_layers = 9: unknown key; nearest known: num_hidden_layers",
        ),
    ],
    "deepspeed_keys_are_free": [
        (
            ["distributed.deepspeed={communication_data_type: fp32}"],
            "distributed.deepspeed.communication_data_type = 'fp32': set "
            "distributed.gradient_reduction_dtype instead",
        ),
        (
            ["distributed.deepspeed={data_types: {grad_accum_dtype: bf16}}"],
            "distributed.deepspeed.data_types.grad_accum_dtype = 'bf16': set "
            "distributed.gradient_accumulation_dtype instead",
        ),
        (["distributed.deepspeed.zero_optimization.stage=3"], "set distributed.zero_stage instead"),
        (
            ["distributed.deepspeed={zero_optimization: false}"],
            "distributed.deepspeed.zero_optimization = False: set ",
        ),
        (
            ["distributed.deepspeed={zero_optimization: null}"],
            "distributed.deepspeed.zero_optimization = None: set distributed.zero_stage instead",
        ),
        (["distributed.deepspeed.gradient_clipping=1"], "set training.max_grad_norm instead"),
    ],
    "adapters_have_a_base": [(["lora.rank=4"], "set experiment.init_from")],
    "adapted_layers_exist": [
        ([*LORA, "lora.target_modules=[]"], "[]: name a layer of the blocks, as q_proj"),
    ],
    "moments_have_a_source": [
        (["experiment.init_optimizer=true"], "set experiment.init_from"),
        ([*LORA, "experiment.init_optimizer=true"], "adapters are new"),
    ],
    "offload_fits_the_stage": [
        (
            ["distributed.zero_stage=0", "distributed.offload_optimizer=cpu"],
            "needs distributed.zero_stage 1 to 3, not 0",
        ),
        (["distributed.offload_param=cpu"], "needs distributed.zero_stage 3, not 2"),
        (
            ["distributed.zero_stage=3", "distributed.offload_param=nvme"],
            "distributed.offload_path is null",
        ),
    ],
    "torch_engine_has_no_deepspeed_settings": [
        (
            ["distributed.engine=torch", "distributed.offload_optimizer=cpu"],
            "distributed.offload_optimizer = cpu: needs distributed.engine=deepspeed",
        ),
        (
            ["distributed.engine=torch", "distributed.deepspeed={wall_clock_breakdown: true}"],
            "distributed.deepspeed is set: needs distributed.engine=deepspeed",
        ),
    ],
    "budget_needs_global_means": [
        (
            ["training.tokens_per_step=500", "training.loss_normalization=rank"],
            "training.tokens_per_step = 500: not with training.loss_normalization = rank",
        ),
    ],
    "gradient_formats_exist": [
        (
            ["training.mixed_precision=fp32", "distributed.gradient_reduction_dtype=bf16"],
            "distributed.gradient_reduction_dtype = bf16: needs training.mixed_precision bf16 or auto",
        ),
        (
            ["training.mixed_precision='no'", "distributed.gradient_accumulation_dtype=bf16"],
            "distributed.gradient_accumulation_dtype = bf16: needs training.mixed_precision bf16 or auto",
        ),
        (
            ["distributed.engine=torch", "distributed.gradient_accumulation_dtype=bf16"],
            "distributed.gradient_accumulation_dtype = bf16: needs distributed.engine=deepspeed",
        ),
        (
            ["distributed.zero_stage=0", "distributed.gradient_accumulation_dtype=bf16"],
            "distributed.gradient_accumulation_dtype = bf16: needs distributed.zero_stage 1 to 3",
        ),
    ],
    "averages_exist_to_evaluate": [
        (["training.ema.evaluate=true"], "training.ema.evaluate = True: set training.ema.decay"),
        (
            [
                *(
                    "training.ema.evaluate=true",
                    "training.ema.decay=0.9",
                    "distributed.zero_stage=3",
                ),
                *("distributed.offload_param=nvme", "distributed.offload_path=/tmp"),
            ],
            "cannot replace weights on a disk",
        ),
    ],
    "apex_counts_steps_rightly": [
        ([APEX, "optimizer.name=muon"], "optimizer.name=muon uses torch's kernels"),
        ([APEX, "distributed.zero_stage=3"], "counts steps wrongly"),
        (
            [APEX, "distributed.zero_stage=1", "distributed.offload_optimizer=cpu"],
            "cannot update in host memory",
        ),
    ],
}
CASES = [(rule, *case) for rule, cases in BROKEN.items() for case in cases]


@pytest.mark.parametrize(("rule", "overrides", "expected"), CASES)
def test_broken_rule(rule: str, overrides: list[str], expected: str) -> None:
    config = load([*READY, *overrides], TrainConfig, check=False)
    with pytest.raises(ValueError) as caught:
        check(config)
    message = str(caught.value)
    assert expected in message
    assert len(message.splitlines()) == 1
    (broken,) = [candidate for candidate in RULES if candidate.__name__ == rule]
    assert list(broken(config)) == [message]


def test_every_rule_has_a_case() -> None:
    assert set(BROKEN) == {rule.__name__ for rule in RULES}


ALLOWED = [
    ["training.batch_size_lm=-1", "training.lm_coeff=0.1"],
    ["training.batch_size_lm=0", "training.lm_coeff=0"],
    ["training.batch_size_lm=4", "training.lm_coeff=0"],
    ["training.mask_schedule=pow0.5"],
    ["training.mixed_precision=no"],
    ["training.max_grad_norm=1"],
    ["experiment.resume_from_checkpoint=false"],
    ["experiment.resume_from_checkpoint=runs/a/checkpoint-100"],
    [
        "dataset.params.train_t2i_shards_path_or_url=pipe:cat a.tar",
        "data.allow_pipe=true",
        "data.cache_gb=1",
    ],
    ["dataset.params.train_t2i_shards_path_or_url=[{urls: a, weight: 2}, {urls: [b, c]}]"],
    ["distributed.deepspeed={zero_optimization: {overlap_comm: true}, wall_clock_breakdown: true}"],
    [*RECON, "training.down_scale=8", "training.resize_back=true"],
    [*RECON, "training.down_scale=32", "model.showo.w_clip_vit=true"],
    ["lr_scheduler.params.learning_rate=1e-3", "optimizer.params.learning_rate=0.001"],
    ["model.showo.load_from_showo=true", "experiment.init_from=runs/a"],
    ["distributed.zero_stage=1", "distributed.offload_optimizer=cpu"],
    [*LORA, "lora.target_modules=[fc1]"],
]


@pytest.mark.parametrize("overrides", ALLOWED)
def test_allowed(overrides: list[str]) -> None:
    load([*READY, *overrides])


@pytest.mark.parametrize("empty", ["null", "", "[]", "['']"])
def test_a_flow_without_data(empty: str) -> None:
    message = problem(f"dataset.params.train_t2i_shards_path_or_url={empty}")
    assert re.match(r"dataset\.params\.train_t2i_shards_path_or_url is empty", message)
    assert "training.t2i_coeff" in message


def test_no_flow_at_all() -> None:
    assert problem("training.t2i_coeff=0").startswith("no flow is on")


def test_all_problems_are_reported_at_once() -> None:
    overrides = ["training.seed=-1", "model.showo.vocab_size=3", "dataset.params.resolution=512"]
    assert len(problem(*overrides).splitlines()) == 3


def test_all_keys_of_deepspeed_are_reported_at_once() -> None:
    keys = "{gradient_clipping: 1, zero_optimization: {stage: 3, offload_param: {device: cpu}}}"
    assert len(problem(f"distributed.deepspeed={keys}").splitlines()) == 3


def test_warnings() -> None:
    started = [*READY, *RECON, "experiment.init_from=runs/a"]
    copying = load([*started, "training.down_scale=1"], TrainConfig)
    assert [line.split()[0] for line in warnings_about(copying)] == ["training.down_scale"]
    short = load(
        [*READY, "training.max_train_steps=5", "lr_scheduler.params.warmup_steps=5"], TrainConfig
    )
    assert [line.split()[0] for line in warnings_about(short)] == [
        "lr_scheduler.params.warmup_steps"
    ]
    clip = ["model.showo.w_clip_vit=true", "training.resize_back=true"]
    for changes, words in (
        (["lora.alpha=3"], "lora is set: it has no effect with lora.rank = 0"),
        (clip, "training.down_scale, resize_back: no effect with CLIP features"),
        (
            ["model.showo.w_clip_vit=true", "training.batch_size_mmu=1", "training.mmu_coeff=1"],
            "dataset.und_type = captioning: captions are trained on image codes",
        ),
        (["dataset.add_system_prompt=true"], "dataset.add_system_prompt = True: no effect"),
    ):
        (line,) = warnings_about(load([*READY, *changes], TrainConfig, check=False))
        assert line.startswith(words)


TALK = ["training.batch_size_mmu=1", "training.mmu_coeff=1", "dataset.und_type=llava_tuning"]


@pytest.mark.parametrize("later", [RECON, TALK])
def test_a_later_stage_from_a_language_model_alone(later: list[str]) -> None:
    (line,) = warnings_about(load([*READY, *later], TrainConfig, check=False))
    assert line.startswith("experiment.init_from is null") and "microsoft/phi-1_5 alone" in line
    assert ("llava_tuning" if later is TALK else "recon") in line
    showo = ["model.showo.load_from_showo=true", "model.showo.pretrained_model_path=a"]
    for start in (["experiment.init_from=a"], showo, [f"model.showo.llm_config={{{LLM}}}"]):
        assert warnings_about(load([*READY, *later, *start], TrainConfig, check=False)) == []
    unread = ["training.mmu_coeff=0", "training.recon_coeff=0"]
    assert warnings_about(load([*READY, *later, *unread], TrainConfig, check=False)) == []


@pytest.mark.parametrize(
    ("folder", "reason"),
    [
        ("/", "is the root folder"),
        ("//.", "is the root folder"),
        ("/dev/null", "/dev/null is not a folder"),
        ("/dev/null/a/b", "/dev/null is not a folder"),
    ],
)
def test_output_folders_that_cannot_be_made(folder: str, reason: str) -> None:
    message = problem(f"experiment.output_dir={folder}")
    assert message.startswith("experiment.output_dir = ") and reason in message


def test_an_output_folder_with_a_nul_character() -> None:
    config = load(READY)
    config.experiment.output_dir = "a\0b"
    with pytest.raises(ValueError, match="holds a NUL character"):
        check(config)


@pytest.mark.parametrize("folder", ["a b ", 'it\'s "q" [x] {y} =c,d', "x=y", "../here"])
def test_odd_output_folders_are_taken_as_they_are(folder: str) -> None:
    assert load([*READY, f"experiment.output_dir={folder}"]).experiment.output_dir == folder
