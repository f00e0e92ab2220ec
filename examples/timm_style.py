"""timm's way to train: mixup, its optimizer, a cosine schedule and an average of the weights (EMA).

The average is made of numbers that no step of training saw, so that its exponents are fitted once: `refresh()`.
Run it with `python -m examples.timm_style`.
"""

from __future__ import annotations

from pathlib import Path

from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3

import faq_deploy
from examples.digits import float_net, loaders

EPOCHS = 2


def main(path: Path = Path("averaged.onnx")) -> faq_deploy.CheckResult:
    """Train, average, export and check the average."""
    train, val = loaders()
    model = faq_deploy.prepare(float_net(), next(iter(val))[0])
    faq_deploy.calibrate(model, train)
    average = ModelEmaV3(model, decay=0.9)  # a deep copy: after calibration, so that it has the exponents
    optimizer = create_optimizer_v2(model, opt="sgd", lr=0.002, momentum=0.9, weight_decay=1e-4)
    scheduler = CosineLRScheduler(optimizer, t_initial=EPOCHS)
    mixup, loss_of = Mixup(mixup_alpha=0.2, num_classes=10), SoftTargetCrossEntropy()
    for epoch in range(EPOCHS):
        scheduler.step(epoch)
        model.train()
        for images, labels in train:
            mixed, targets = mixup(images.clone(), labels)
            optimizer.zero_grad()
            loss_of(model(mixed), targets).backward()
            optimizer.step()
            average.update(model)
    kept = average.module
    kept.refresh()
    faq_deploy.export(kept, path)
    return faq_deploy.check(kept, path, val)


if __name__ == "__main__":
    print(main())
