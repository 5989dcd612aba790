"""Make the two bases that come with the package: `python -m minilora.tools.ship_bases`, two minutes on one core.

Another computer rounds its sums in a different order, so it makes different bases, equally good.
"""

from __future__ import annotations

import platform
from pathlib import Path

import numpy as np

from ..claims.bases import WORLDS, base_configuration, pretrain
from ..interop.checkpoint import save_checkpoint
from ..machine import tune_machine

FOLDER = Path(__file__).parent.parent / "bases"


def ship(folder: Path = FOLDER) -> None:
    """Pretrain both bases with seed 0 and write them into a folder, each with all that made it."""
    for world in WORLDS:
        recipe = {**base_configuration(world, 0), "python": platform.python_version(), "numpy": np.__version__}
        save_checkpoint(folder / f"{world}.npz", pretrain(world, 0), notes={"configuration": recipe})
        print(folder / f"{world}.npz")


if __name__ == "__main__":
    tune_machine()
    ship()
