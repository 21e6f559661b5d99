"""Events for TensorBoard, beside the plain `metrics.jsonl`: needs tensorboardX, an extra."""

from __future__ import annotations

import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator, Mapping, Sequence

from noisin.system.errors import UserError


class Events:
    """The curves of one run, for `tensorboard --logdir runs`.

    Its file is written at once, by tensorboardX's own writer of files: behind its SummaryWriter is a thread, which a
    full disk ends, and then the third epoch waits for it for ever.

    Parameters
    ----------
    folder : Path
        Its files of events are written anew by `begin`.

    Raises
    ------
    UserError
        If tensorboardX is not installed; by each method, if the file cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from tensorboardX import event_file_writer
        except ImportError:
            raise UserError("events for TensorBoard need tensorboardX: pip install tensorboardX") from None
        self._folder, self._make_writer = folder, event_file_writer.EventsWriter

    def begin(self, epochs: Sequence[Mapping[str, Any]]) -> None:
        """Start with what a resumed run has done already, so that no epoch is there twice."""
        with self._written():
            self._folder.mkdir(parents=True, exist_ok=True)
            for old in self._folder.glob("events.out.tfevents.*"):
                old.unlink()
            self._writer = self._make_writer(str(self._folder / "events"))
        for entry in epochs:
            self.add(entry)

    def add(self, entry: Mapping[str, Any]) -> None:
        """Write the numbers of one epoch."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        values = {
            "perplexity/train": entry["train_ppl"],
            "perplexity/valid": entry["valid_ppl"],
            "words_per_second": entry["tokens_per_second"],
            **{f"gamma/layer{layer}": gamma for layer, gamma in enumerate(entry["gamma"], 1)},
        }
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])
        with self._written():
            self._writer.write_event(Event(wall_time=time.time(), step=entry["epoch"], summary=summary))
            self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        with self._written():
            self._writer.close()

    @contextmanager
    def _written(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(f"cannot write events into {self._folder}: {error.strerror}") from None
