"""The one server from which all tests fork ranks: it has imported what they need, so that they start fast."""

import multiprocessing
import socket
from multiprocessing.context import ForkServerContext

# DeepSpeed's Muon, which every ZeRO engine imports, takes inductor with it: three seconds in each rank.
_IMPORTED = (
    "showo_dist.train",
    "showo_dist.training.trainer",
    "showo_dist.training.deepspeed_engine",
    "deepspeed.runtime.zero.muon.muon_optimizer",
)


def forking() -> ForkServerContext:
    """The context whose processes are forks of the server."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_IMPORTED))
    return context


def free_port() -> int:
    """A port of this host that nothing listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def rank_environment(rank: int, ranks: int, port: int) -> dict[str, str]:
    """The environment variables that a launcher sets for a rank."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
