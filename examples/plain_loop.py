"""A plain PyTorch loop. Run it with `python -m examples.plain_loop`."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F

import faq_deploy
from examples.digits import float_net, loaders


def main(path: Path = Path("digits.onnx")) -> faq_deploy.CheckResult:
    train, val = loaders()
    net = float_net()  # any trained CNN
    model = faq_deploy.prepare(net, next(iter(val))[0], target="tensorrt", recipe="faq-8bit")
    faq_deploy.calibrate(model, train)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.002, momentum=0.9, weight_decay=1e-4)
    model.train()
    for _ in range(2):
        for images, labels in train:
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
    model.eval()
    faq_deploy.export(model, path)
    return faq_deploy.check(model, path, val)


if __name__ == "__main__":
    found = main()
    print(
        f"{found.differing_codes} of {found.codes} codes and {found.differing_logits} of {found.logits} logits differ"
    )
