"""Losses of tokenizer training. All of them are computed in float32."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from tokkit.training.engine.world import World

ReconstructionLoss = Literal["l1", "l2"]
GanLoss = Literal["hinge", "non-saturating"]

# The adaptive weight of the adversarial loss is kept below this: where the gradient against the discriminator vanishes, the
# ratio knows no end.
MOST_ADAPTIVE = 1e4


def reconstruction_loss(kind: ReconstructionLoss, original: Tensor, reconstruction: Tensor) -> Tensor:
    """Mean absolute (``l1``) or mean squared (``l2``) error over all elements, in float32.

    ``l2`` is what PSNR measures; ``l1`` is the usual choice beside perceptual and adversarial losses.
    """
    measure = functional.l1_loss if kind == "l1" else functional.mse_loss
    return measure(reconstruction.float(), original.float())


def total_loss(reconstruction: Tensor, auxiliary: dict[str, Tensor]) -> Tensor:
    """The reconstruction loss plus other losses, which carry their weights already."""
    return torch.stack([reconstruction, *auxiliary.values()]).sum()


def discriminator_loss(kind: GanLoss, real: Tensor, fake: Tensor) -> Tensor:
    """How badly logits tell real from reconstructed.

    ``hinge`` (arXiv:1705.02894) asks for a margin of 1 on either side and is 1 for a discriminator that knows nothing;
    ``non-saturating`` (arXiv:1406.2661) is cross entropy, log 2 for such a one.
    """
    real, fake = real.float(), fake.float()
    if kind == "hinge":
        return 0.5 * (functional.relu(1 - real).mean() + functional.relu(1 + fake).mean())
    return 0.5 * (functional.softplus(-real).mean() + functional.softplus(fake).mean())


def adversarial_loss(kind: GanLoss, fake: Tensor) -> Tensor:
    """How badly reconstructions pass for real."""
    return -fake.float().mean() if kind == "hinge" else functional.softplus(-fake.float()).mean()


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor, world: World) -> Tensor:
    """The factor at which both losses pull equally hard at the last layer (arXiv:2012.09841, section 3.2), equal everywhere."""
    norms = torch.stack(
        [torch.autograd.grad(loss, last_layer, retain_graph=True)[0].float().norm() for loss in (reconstruction, adversarial)]
    )
    world.average_([norms])
    return (norms[0] / norms[1].clamp_min(1e-8)).clamp_max(MOST_ADAPTIVE).detach()


class LeCam(nn.Module):
    """Keeps a discriminator from moving too far ahead (arXiv:2104.03310): logits are held near their running means.

    Args:
        decay: of the running means of real and fake logits.
    """

    means: Tensor
    begun: Tensor

    def __init__(self, decay: float = 0.999) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("means", torch.zeros(2))
        self.register_buffer("begun", torch.zeros((), dtype=torch.bool))

    def forward(self, real: Tensor, fake: Tensor, world: World) -> Tensor:
        """The penalty, by the means before this batch; the means then take in the batch, over all processes."""
        real, fake = real.float(), fake.float()
        now = torch.stack([real.detach().mean(), fake.detach().mean()])
        world.average_([now])
        with torch.no_grad():
            before = torch.where(self.begun, self.means, now)
            self.means.copy_(before.lerp(now, 1 - self.decay))
            self.begun.fill_(True)
        return functional.relu(real - before[1]).square().mean() + functional.relu(before[0] - fake).square().mean()
