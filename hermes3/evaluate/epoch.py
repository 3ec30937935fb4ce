"""The whole model of an epoch of a training run."""

from pathlib import Path

from hermes3.model_folder import check_model
from hermes3.train.checkpoints import epochs_of, whole_model


def epoch_model(run: Path, epoch: int, make: bool = True) -> Path:
    """The epoch's checkpoint if it is a whole model, else RUN/epochs/N, joined from its parts if `make`."""
    epochs = epochs_of(run)
    if epoch not in epochs:
        raise ValueError(f"{run}: no epoch {epoch}; there are {', '.join(map(str, sorted(epochs)))}")
    joined = run / "epochs" / str(epoch)
    if make:
        return whole_model(epochs[epoch], joined)
    try:
        check_model(epochs[epoch])
    except ValueError:
        return joined
    return epochs[epoch]
