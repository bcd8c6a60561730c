"""Weights & Biases as a destination of the log: a failure is one line, and the training continues."""

import netrc
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

MODES = ("auto", "online", "offline", "disabled")
_DEFAULT_SERVER = "https://api.wandb.ai"
_CONNECT_S = 30  # limits how long a silent server can delay all ranks


def logged_in() -> bool:
    """Whether a wandb key exists: ``WANDB_API_KEY``, or the server's entry in the netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    server = urlsplit(os.environ.get("WANDB_BASE_URL", _DEFAULT_SERVER)).hostname
    with suppress(OSError, netrc.NetrcParseError):
        entry = netrc.netrc(os.environ.get("NETRC")).authenticators(server or "")
        return entry is not None and bool(entry[2])
    return False


def effective_mode(mode: str) -> str:
    """Resolve ``auto``: ``WANDB_MODE`` if set, else online when logged in, else offline.

    Raises:
        ValueError: an unknown mode.
    """
    if mode not in MODES:
        raise ValueError(f"wandb.mode = {mode!r}: expected one of {', '.join(MODES)}")
    if mode != "auto":
        return mode
    return os.environ.get("WANDB_MODE") or ("online" if logged_in() else "offline")


class WandbRun:
    """One wandb run.

    Args:
        folder: of the training run; wandb writes into ``folder/wandb``.
        mode: one of :data:`MODES`.
        log: takes one line when wandb fails; it is not used again after that.
        options: keyword arguments of ``wandb.init`` (project, name, config, id, …).
    """

    def __init__(self, folder: Path, mode: str, log: Callable[[str], None], **options: Any) -> None:
        self.id: str | None = None
        self._log = log
        self._run: Any = None
        mode = effective_mode(mode)
        if mode != "disabled":
            self._start(folder, [mode, "offline"] if mode == "online" else [mode], options)

    def _start(self, folder: Path, modes: list[str], options: dict[str, Any]) -> None:
        """Start in the first mode that works."""
        try:
            import wandb
        except ImportError:
            self._log("wandb is not installed: nothing is logged there")
            return
        settings = wandb.Settings(console="off", silent=True, init_timeout=_CONNECT_S)
        for mode in modes:
            options["mode"] = mode
            try:
                self._run = wandb.init(dir=folder, settings=settings, **options)
                break
            except Exception as error:  # of any kind: none may end the training
                self._log(f"wandb cannot start {mode}: {_reason(error)}")
        # Our own step metric: wandb's must not decrease, but a resumed run may repeat steps.
        self._use(lambda run: run.define_metric("*", step_metric="step"))
        if self._run is not None:
            self.id = self._run.id

    def _use(self, action: Callable[[Any], Any]) -> None:
        if self._run is None:
            return
        try:
            action(self._run)
        except Exception as error:  # as above
            self._run = None
            self._log(f"wandb failed and is not used any more: {_reason(error)}")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._use(lambda run: run.log({"step": step, **metrics}))

    def image(self, step: int, name: str, image: Image.Image, caption: str) -> None:
        def send(run: Any) -> None:
            import wandb

            run.log({"step": step, f"images/{name}": wandb.Image(image, caption=caption)})

        self._use(send)

    def event(self, message: str) -> None:
        """Events are not sent."""

    def close(self) -> None:
        self._use(lambda run: run.finish())
        self._run = None


def _reason(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
