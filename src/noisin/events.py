"""Events for TensorBoard, beside the plain `metrics.jsonl`: needs tensorboardX, an extra."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Mapping, Sequence

from noisin.errors import UserError


class Events:
    """The curves of one run, for `tensorboard --logdir runs`.

    Parameters
    ----------
    folder : Path
        Written anew by `begin`.

    Raises
    ------
    UserError
        If tensorboardX is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            raise UserError("events for TensorBoard need tensorboardX: pip install tensorboardX") from None
        self._folder, self._make_writer = folder, SummaryWriter

    def begin(self, epochs: Sequence[Mapping[str, Any]]) -> None:
        """Start with what a resumed run has done already, so that no epoch is there twice."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._writer = self._make_writer(str(self._folder), flush_secs=1)  # a watcher sees an epoch when it has ended
        for entry in epochs:
            self.add(entry)

    def add(self, entry: Mapping[str, Any]) -> None:
        """Write the numbers of one epoch."""
        values = {
            "perplexity/train": entry["train_ppl"],
            "perplexity/valid": entry["valid_ppl"],
            "words_per_second": entry["tokens_per_second"],
            **{f"gamma/layer{layer}": gamma for layer, gamma in enumerate(entry["gamma"])},
        }
        for name, value in values.items():
            self._writer.add_scalar(name, value, entry["epoch"])

    def close(self) -> None:
        """Write what its thread has not written yet."""
        self._writer.close()
