"""The paper's claims, one file each. To add one: write the file, and put its name in this list."""

from __future__ import annotations

from . import (
    adaptation,
    alpha_learning_rate,
    amplification,
    forgetting,
    full_quality,
    init_scaling,
    intrinsic_dimension,
    intrinsic_rank,
    invariance,
    latency,
    low_data,
    rank,
    rank_scaling,
    rivals,
    subspaces,
    sweeps,
    task_switching,
    training_cost,
    which_matrices,
    zero_init,
)
from .claim import Claim, Configuration, Experiment

_FILES = (
    zero_init, alpha_learning_rate, invariance, rank_scaling, init_scaling, rank, which_matrices, full_quality, rivals,
    latency, training_cost, task_switching, low_data, forgetting, intrinsic_dimension, intrinsic_rank, subspaces,
    amplification,
)  # fmt: skip
CLAIMS: tuple[Claim, ...] = tuple(file.CLAIM for file in _FILES)
SHARED = {
    adaptation.NAME: adaptation.EXPERIMENT,
    sweeps.NAME: sweeps.EXPERIMENT,
}  # name -> experiment whose runs several claims read


def find(names: list[str]) -> list[Claim]:
    """The claims of these ids, in the list's order; all where none is named. `ValueError` for an unknown one."""
    known = {claim.id: claim for claim in CLAIMS}
    for name in names:
        if name not in known:
            raise ValueError(f"There is no claim {name!r}; there are: {', '.join(known)}.")
    return [claim for claim in CLAIMS if not names or claim.id in names]


def experiment_of(claim: Claim, configuration: Configuration) -> str:
    """The name of the experiment that a claim's configuration goes to."""
    return configuration.get("experiment", claim.id)


def experiment(name: str) -> Experiment:
    """The experiment of that name: a shared one, or the claim's own."""
    return SHARED[name] if name in SHARED else find([name])[0].experiment
