"""Curves for TensorBoard, written where they are made.

TensorBoard's own writer has a thread, which ends in a traceback where a disk is full, and says so
to whoever writes the next point. Here each point is in the file when the call returns, or the call
says in one line why not.
"""

from __future__ import annotations

import io
import os
import socket
import time
from pathlib import Path
from typing import Any

from tasks.runs.files import writable


class Events:
    """A file of events in ``folder``. Points after ``purge_step`` of earlier files are forgotten.

    Raises DiskFull and NotWritable.
    """

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        # Imported here: tensorboard costs most of a second, which --help should not.
        from tensorboard.compat.proto.event_pb2 import SessionLog  # pyright: ignore

        self.folder = folder
        name = f"events.out.tfevents.{time.time():017.6f}.{socket.gethostname()}.{os.getpid()}"
        with writable(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._file = (folder / name).open("xb", buffering=0)
        self._write(0, file_version="brain.Event:2")
        if purge_step is not None:
            self._write(purge_step, session_log=SessionLog(status=SessionLog.START))

    def add_scalar(self, name: str, value: float, step: int) -> None:
        from torch.utils.tensorboard import summary

        self._write(step, summary=summary.scalar(name, value))

    def add_text(self, name: str, text: str, step: int) -> None:
        from torch.utils.tensorboard import summary

        self._write(step, summary=summary.text(name, text))

    def add_figure(self, name: str, figure: Any, step: int) -> None:
        """A figure of matplotlib's, as a picture."""
        from torch.utils.tensorboard import summary
        from torch.utils.tensorboard._utils import figure_to_image

        picture = figure_to_image(figure)
        self._write(step, summary=summary.image(name, picture, dataformats="CHW"))

    def close(self) -> None:
        self._file.close()

    def _write(self, step: int, **content: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore
        from tensorboard.summary.writer.record_writer import RecordWriter

        event = Event(wall_time=time.time(), step=step, **content)
        record = io.BytesIO()
        RecordWriter(record).write(event.SerializeToString())
        rest = memoryview(record.getvalue())
        with writable(self.folder):
            while rest:  # a disk that is full takes a part, then refuses the rest
                rest = rest[self._file.write(rest) :]
