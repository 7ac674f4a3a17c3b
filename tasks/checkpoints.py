"""Reads and writes checkpoints, which are whole or absent, also when the writer is killed."""

import io
import logging
import shutil
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO

from tasks import storage

log = logging.getLogger(__name__)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes Lightning's checkpoints under another name, syncs and renames them; reads as it does.

    Lightning's own writer leaves half a file when it is killed.
    """

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | Path,
        storage_options: Any | None = None,  # noqa: ARG002 (Lightning's)
    ) -> None:
        """Replace the checkpoint at `path`."""
        content = io.BytesIO()
        torch.save(checkpoint, content)
        storage.replace_bytes(Path(path), content.getvalue())


def find_latest_checkpoint(directory: Path) -> str | None:
    """Return the path of the newest intact checkpoint, None if there is none.

    Then the directory is removed, so that the training that begins anew does not count files of
    the former one among its best epochs.
    """
    epochs = sorted(directory.glob("epoch=*.ckpt"), key=_parse_epoch, reverse=True)
    for path in (directory / "last.ckpt", *epochs):
        if not path.exists():
            continue
        if _is_intact(path):
            return str(path)
        log.warning(
            "checkpoint %s is damaged: training goes on from an earlier one, if there is one", path
        )
    shutil.rmtree(directory, ignore_errors=True)
    return None


def _parse_epoch(path: Path) -> int:
    return int(path.stem.removeprefix("epoch="))


def _is_intact(path: Path) -> bool:
    """Return whether every part of a checkpoint, which is a zip archive, has its checksum."""
    try:
        with ZipFile(path) as archive:
            return archive.testzip() is None
    except BadZipFile:
        return False
