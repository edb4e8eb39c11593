"""An engine that is nobody's here: it knows parallel groups by what they do and imports nothing of ours."""

import torch


class RowParallelLinear:
    """Each rank holds a share of the inputs; one all-reduce adds the shares up."""

    def __init__(self, weight, tp):
        share = tp.shard(weight.shape[1])
        self.weight = weight[:, share.start : share.stop]
        self.share = share
        self.tp = tp

    def __call__(self, x):
        return self.tp.all_reduce(x[..., self.share.start : self.share.stop] @ self.weight.T)


def pipeline(x, stage, pp):
    """Run `stage` on every rank of the pipeline, the last one's result on all."""
    if not pp.is_first:
        x = pp.recv(torch.empty_like(x))
    x = stage(x)
    if not pp.is_last:
        pp.send(x)
    return pp.broadcast(x.clone(), src_rank=pp.last_rank)
