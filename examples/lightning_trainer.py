"""Lightning's Trainer. It needs `pip install lightning`; run it with `python -m examples.lightning_trainer`."""

from __future__ import annotations

from pathlib import Path

import lightning
import torch
import torch.nn.functional as F
from torch import Tensor

import faq_deploy
from examples.digits import float_net, loaders


class Quantized(lightning.LightningModule):  # type: ignore[misc] # Lightning is optional
    """A calibrated model as Lightning wants it."""

    def __init__(self, model: faq_deploy.PreparedModel) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """The loss of a batch."""
        images, labels = batch
        return F.cross_entropy(self.model(images), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD, as in the paper."""
        return torch.optim.SGD(self.parameters(), lr=0.002, momentum=0.9)


def main(path: Path = Path("lightning.onnx")) -> faq_deploy.CheckResult:
    """Train for an epoch, save and load a checkpoint, export and check."""
    train, val = loaders()
    model = faq_deploy.prepare(float_net(), next(iter(val))[0])
    faq_deploy.calibrate(model, train)
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model.train()  # Lightning leaves modules in the mode that they are in
    trainer.fit(Quantized(model), train)
    trainer.save_checkpoint(path.with_suffix(".ckpt"))
    fresh = Quantized(faq_deploy.prepare(float_net(), next(iter(val))[0]))
    fresh.load_state_dict(torch.load(path.with_suffix(".ckpt"), weights_only=True)["state_dict"])
    faq_deploy.export(fresh.model, path)
    return faq_deploy.check(fresh.model, path, val)


if __name__ == "__main__":
    print(main())
