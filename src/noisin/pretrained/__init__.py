"""Trained models that come with the package. Each is a run directory in this folder, with a card, `README.md`."""

from __future__ import annotations

from pathlib import Path
from typing import Dict

PRETRAINED: Dict[str, Path] = {path.parent.name: path.parent for path in Path(__file__).parent.glob("*/config.json")}
