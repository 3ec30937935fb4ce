"""The order of packed data: shuffled and packed anew in each epoch, from the seed and the epoch's number alone."""

from axolotl.utils.samplers import MultipackBatchSampler
from transformers import TrainerCallback, set_seed


def seed_packing(cfg) -> None:
    """Seed what Axolotl draws before the trainer seeds the process: the packing that it counts the steps from.

    Without it two runs of one recipe take e.g. 3,448 and 3,452 steps, and so another learning rate at each.
    """
    if cfg.seed is not None:
        set_seed(cfg.seed)


class RepackEveryEpoch(TrainerCallback):
    """Tell the epoch's number to the shuffler and to the packer around it.

    transformers does, unless a run on several ranks resumes within an epoch: what then skips batches hides the packer,
    and the run repeats samples and omits others.
    """

    def on_train_begin(self, args, state, control, **kwargs):
        # A resumed run starts inside this epoch. Counted here, because an epoch whose packing came out a batch short
        # ends at e.g. 0.999.
        self.epoch = int(state.epoch or 0)

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs):
        packer = train_dataloader.batch_sampler
        while not isinstance(packer, MultipackBatchSampler):  # accelerate's BatchSamplerShard, a rank's share, wraps it
            packer = packer.batch_sampler
        packer.sampler.set_epoch(self.epoch)
        packer.set_epoch(self.epoch)  # drops the cached packs
        self.epoch += 1
