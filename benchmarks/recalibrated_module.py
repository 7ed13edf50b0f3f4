"""Recalibrates the network of `residual.py` in PyTorch, as a process of its own, or as one of several.

python benchmarks/recalibrated_module.py images.npy statistics.npz --resume journal
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import residual
import torch
from selfconsistency import stored_in_module

import bnfold
from bnfold.pytorch.ranks import joined


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("images", type=Path, help="what it is calibrated with")
    parser.add_argument("statistics", type=Path, help="where they go")
    parser.add_argument("--resume", type=Path)
    options = parser.parse_args()
    model = residual.trained()
    with joined() as ranks:
        images = torch.from_numpy(np.load(options.images)[ranks.rank :: ranks.size])
        bnfold.recalibrate_module(model, images.split(16), resume=options.resume, ranks=ranks)
        if ranks.rank == 0:
            stored = stored_in_module(model)
            arrays: dict[str, Any] = {name: np.stack([s.mean, s.var]) for name, s in stored.items()}
            np.savez(options.statistics, **arrays)


if __name__ == "__main__":
    main()
