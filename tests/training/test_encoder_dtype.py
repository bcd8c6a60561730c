"""``model.encoder_dtype``: exact by default; by choice another format, in which few codes change."""

import pytest
import torch

from showo_data import Sample
from showo_dist.config import TrainConfig, load
from showo_dist.models.encoders import Encoders
from showo_dist.plan.ledger import Ledger
from showo_dist.plan.ledger_step import ledger_of_step
from showo_dist.plan.roofline import GPU_RATES
from showo_dist.training.setup import load_encoders
from tests.conftest import ROOT
from tests.training.conftest import TinyWorld

CPU = torch.device("cpu")


def _encoders(world: TinyWorld, *changes: str) -> Encoders:
    return load_encoders(load([f"config={world.config}", *changes], TrainConfig, check=False), CPU)


def _samples() -> list[Sample]:
    torch.manual_seed(5)
    coarse = torch.rand(12, 3, 8, 8) * 2 - 1
    images = torch.nn.functional.interpolate(coarse, (64, 64), mode="bicubic").clamp(-1, 1)
    return [Sample("t2i", n, "", image_3HW=image) for n, image in enumerate(images)]


def test_few_codes_change_and_decoding_stays_exact(tiny_world: TinyWorld) -> None:
    exact = _encoders(tiny_world)
    wanted = torch.stack(exact.codes(_samples()))
    arranged = _encoders(tiny_world)
    assert arranged.vq is not None
    arranged.vq.encode_in("tf32")  # refused by name on a CPU, where it is fp32 in another layout
    for other, most in ((arranged, 0.01), (_encoders(tiny_world, "model.encoder_dtype=bf16"), 0.1)):
        found = torch.stack(other.codes(_samples()))
        assert found.dtype == torch.int64
        assert (found != wanted).float().mean() <= most
        assert other.vq is not None and exact.vq is not None
        assert torch.equal(other.vq.decode(wanted), exact.vq.decode(wanted))
    assert (found != wanted).any(), "bf16 was used"


@pytest.fixture(scope="module")
def ledgers() -> dict[str, Ledger]:
    found = {}
    for name in ("fp32", "tf32", "bf16"):
        settings = [f"model.encoder_dtype={name}", "model.showo.llm_config.num_hidden_layers=1"]
        config = f"config={ROOT}/configs/reca/showo_reca_256_clip.yaml"
        loaded = load(
            [config, *settings, "training.gradient_accumulation_steps=2"], TrainConfig, check=False
        )
        found[name] = ledger_of_step(loaded, encoded=False).ledger
    return found


def test_exact_convolutions_do_not_count_as_tf32(ledgers: dict[str, Ledger]) -> None:
    rates = GPU_RATES["h200"]
    seconds = {
        name: sum(rates.seconds(e.cost) for e in ledger.entries if e.part == "encoders")
        for name, ledger in ledgers.items()
    }
    assert seconds["fp32"] > 2 * seconds["tf32"] > 2 * seconds["bf16"]
    exact = {
        name: {e.cost.exact for e in ledgers[name].entries if e.name == "convolution"}
        for name in ("fp32", "tf32")
    }
    assert exact == {"fp32": {True}, "tf32": {True, False}}, "the CLIP tower's is always exact"


def test_encoders_are_made_once_and_their_waits_are_the_threads(ledgers: dict[str, Ledger]) -> None:
    for ledger in ledgers.values():
        assert not [e for e in ledger.entries if e.name in ("uniform_", "normal_")]
        assert ledger.waits == 1, "the gradient's norm"
        reads = [t for t in ledger.transfers if t.part == "encoders" and t.blocking]
        assert reads and all(t.ahead for t in reads)
