"""Files with the keys and spellings of the published configs load unchanged."""

from pathlib import Path

import pytest

from showo_dist.config import TrainConfig, active_flows, load, load_file
from showo_dist.config.rules import check

TRAINING = """
wandb:
  entity: null
  resume: 'auto'

experiment:
    project: "tuning"
    name: "my-run"
    output_dir: "my-run"
    max_train_examples_t2i: 20000000
    max_train_examples_mmu: 40000000
    save_every: 10000
    eval_every: 2500
    generate_every: 1000
    log_every: 50
    log_grad_norm_every: 500
    resume_from_checkpoint: 'latest'

model:
    vq_model:
        type: "magvitv2"
        vq_model_name: "showlab/magvitv2"
    showo:
        load_from_showo: {load_from_showo}
        pretrained_model_path: "showlab/show-o"
        w_clip_vit: False
        vocab_size: 58498
        llm_vocab_size: 50295
        llm_model_path: 'microsoft/phi-1_5'
        codebook_size: 8192
        num_vq_tokens: 1024
        num_new_special_tokens: 10
    gradient_checkpointing: True

dataset:
    gen_type: "t2i"
    und_type: "llava_tuning"
    combined_loader_mode: "min_size"
    add_system_prompt: False{recon_type}
    params:
        train_t2i_shards_path_or_url: [ "a/{{00000..01209}}.tar",
                                        "b/{{000..199}}.tgz" ]
{other_paths}
        add_caption_prompt: True
        external_caption_path: ""
        validation_prompts_file: "prompts.txt"
        shuffle_buffer_size: 1000
        num_workers: 32
        resolution: 512
        pin_memory: True
        persistent_workers: True{wds_seed}

    preprocessing:
        max_seq_length: 381 # for text tokens
        resolution: 512
        center_crop: False
        random_flip: False

optimizer:
    name: adamw
    params:
        learning_rate: {learning_rate}
        scale_lr: False
        beta1: 0.9
        beta2: 0.999
        weight_decay: 0.01
        epsilon: 1e-8

lr_scheduler:
    scheduler: "cosine"
    params:
        learning_rate: ${{optimizer.params.learning_rate}}
        warmup_steps: 1000

training:
    gradient_accumulation_steps: 5
    noise_type: "mask"
    batch_size_t2i: 1
    batch_size_lm: {batch_size_lm}
    batch_size_mmu: 2
    mixed_precision: "bf16"
    enable_tf32: True
    seed: 10086
    max_train_steps: 10000
    overfit_one_batch: False
    cond_dropout_prob: 0.1
    min_masking_rate: 0.0
    label_smoothing: 0.0
    max_grad_norm: null
    guidance_scale: 0.0
    generation_timesteps: 12
    t2i_coeff: {t2i_coeff}
    lm_coeff: 0.1
    mmu_coeff: 1.0{recon}
"""

PRETRAINING_PATHS = """
        train_mmu_shards_path_or_url: [ "c/{000..999}.tar", "d/{0..9}.tar" ]
        train_lm_shards_path_or_url: "text/*.parquet"
        external_journeydb_caption_path: "captions.json"
        external_laion12m_caption_path: "captions"
        external_cc12m_caption_path: 'captions/'
"""
RECON = """
    batch_size_recon: 2
    recon_coeff: 1.0
    down_scale: 8
    resize_back: True
"""
DEMO = """
wandb: {entity: null, resume: 'auto'}
experiment: {project: "demo", name: "show-o-demo", output_dir: "show-o-demo"}
model:
    vq_model: {type: "magvitv2", vq_model_name: "showlab/magvitv2"}
    showo:
        pretrained_model_path: "showlab/show-o-w-clip-vit"
        w_clip_vit: True
        vocab_size: 58498
        llm_vocab_size: 50295
        llm_model_path: 'microsoft/phi-1_5'
        codebook_size: 8192
        num_vq_tokens: 256
        num_new_special_tokens: 10
    gradient_checkpointing: True
dataset:
    gen_type: "t2i"
    und_type: "captioning"
    params:
        batch_size: ${training.batch_size}
        shuffle_buffer_size: 1000
        num_workers: 32
        resolution: 256
        pin_memory: True
        persistent_workers: True
    preprocessing: {max_seq_length: 128, resolution: 256, center_crop: False, random_flip: False}
training: {gradient_accumulation_steps: 1, cond_dropout_prob: 0.1, batch_size: 20}
"""


def write(folder: Path, text: str) -> Path:
    file = folder / "published.yaml"
    file.write_text(text)
    return file


@pytest.fixture
def tuning(tmp_path: Path) -> Path:
    text = TRAINING.format(
        load_from_showo=False,
        recon_type="",
        other_paths=PRETRAINING_PATHS,
        wds_seed="",
        learning_rate="0.00002",
        batch_size_lm=2,
        t2i_coeff=1.0,
        recon="",
    )
    return write(tmp_path, text)


@pytest.fixture
def reca(tmp_path: Path) -> Path:
    text = TRAINING.format(
        load_from_showo=True,
        recon_type='\n    recon_type: "mid"',
        other_paths="",
        wds_seed="\n        wds_seed: 42",
        learning_rate="'5e-07'",
        batch_size_lm=-1,
        t2i_coeff=0.0,
        recon=RECON,
    )
    return write(tmp_path, text)


def test_training_file(tuning: Path) -> None:
    config = load([f"config={tuning}"], TrainConfig)
    flows = active_flows(config)
    assert {name: flow.batch_size for name, flow in flows.items()} == {"t2i": 1, "lm": 2, "mmu": 2}
    assert flows["t2i"].paths == ("a/{00000..01209}.tar", "b/{000..199}.tgz")
    assert flows["lm"].paths == ("text/*.parquet",)
    assert config.optimizer.params.epsilon == 1e-8
    assert config.lr_scheduler.params.learning_rate == config.optimizer.params.learning_rate == 2e-5
    assert config.training.max_grad_norm is None
    assert config.start_from is None and config.data_seed == 10086


def test_reconstruction_file_has_only_its_own_data_to_fill_in(reca: Path) -> None:
    with pytest.raises(ValueError) as caught:
        load([f"config={reca}"], TrainConfig)
    lines = str(caught.value).splitlines()
    assert [line.split()[0] for line in lines] == [
        "dataset.params.train_mmu_shards_path_or_url",
        "dataset.params.train_recon_shards_path_or_url",
    ]


def test_reconstruction_file_filled_in(reca: Path) -> None:
    data = [f"dataset.params.train_{flow}_shards_path_or_url=x.tar" for flow in ("mmu", "recon")]
    config = load([f"config={reca}", *data], TrainConfig)
    assert list(active_flows(config)) == ["mmu", "recon"]
    assert config.optimizer.params.learning_rate == config.lr_scheduler.params.learning_rate == 5e-7
    assert config.start_from == "showlab/show-o" and config.data_seed == 42


def test_reconstruction_from_journeydb_reads_the_text_to_image_data(reca: Path) -> None:
    overrides = ["dataset.recon_type=journeydb", "training.mmu_coeff=0"]
    config = load_file(reca, TrainConfig, overrides)
    assert active_flows(config)["recon"].paths == ("a/{00000..01209}.tar", "b/{000..199}.tgz")


def test_demo_file_and_its_command_line(tmp_path: Path) -> None:
    arguments = [
        f"config={write(tmp_path, DEMO)}",
        "batch_size=8",
        "validation_prompts_file=prompts.txt",
        "guidance_scale=1.75",
        "generation_timesteps=18",
        "mode=extrapolation",
        "extra_direction=left *** right",
        "offset=0",
        "prompt=a lake: blue *** a 'forest' #2",
        "image_path=./lake.jpg",
        "mmu_image_root=./images",
        "question=What is this? *** Why?",
        "pretrained_model_path=./checkpoints/show-o",
    ]
    config = load(arguments, TrainConfig, check=False)
    check(config, for_training=False)
    assert config.training.batch_size == config.dataset.params.batch_size == 8
    assert (config.training.guidance_scale, config.training.generation_timesteps) == (1.75, 18)
    assert config.dataset.params.validation_prompts_file == "prompts.txt"
    assert config.model.showo.pretrained_model_path == "./checkpoints/show-o"
    assert config.inference.prompt == "a lake: blue *** a 'forest' #2"
    assert config.inference.extra_direction == "left *** right"
    assert config.inference.question == "What is this? *** Why?"


@pytest.mark.parametrize("spelling", ["1e-8", "'1e-8'", "1.0e-08", "0.00000001"])
def test_spellings_of_small_numbers(tmp_path: Path, spelling: str) -> None:
    file = write(tmp_path, f"optimizer: {{params: {{epsilon: {spelling}}}}}")
    config = load_file(file, TrainConfig, check=False)
    assert config.optimizer.params.epsilon == 1e-8
    assert load_file(
        None, TrainConfig, [f"optimizer.params.epsilon={spelling}"], check=False
    ).optimizer.params == (config.optimizer.params)
