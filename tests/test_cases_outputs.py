"""What models return beside logits: losses, dicts, indices; and pooled negative values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engines.errors import InputError
from engines.reference import ReferenceRunner
from faq_deploy.capture import capture
from faq_deploy.rewrite import rewrite
from tests.case_checks import agreeing, all_levels
from tests.constructs import Options
from tests.quantized import images, make_recipe


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("output", "chosen"), [(None, "logits"), ("logits", "logits"), ("feat", "feat")])
def test_the_eval_path_with_defaults_is_taken_and_its_outputs_have_names(
    channels: int, output: str | None, chosen: str
) -> None:
    model, data = Options().train(), images()[:, :channels].contiguous()
    captured = capture(model, data, output=output)
    assert (captured.outputs, captured.chosen) == (("feat", "logits"), (chosen,))
    assert {node.kind for node in captured.graph if node.name in captured.graph.outputs} == {
        "linear" if chosen == "logits" else "flatten"
    }
    assert model.training  # left as it was


def test_a_dict_in_eval_and_a_tuple_in_training_agree_at_export(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = agreeing(Options().eval(), tmp_path)
    assert [value.name for value in made.onnx.graph.output] == ["logits"]
    assert float_difference_of_logits(Options().eval()) == 0.0
    with pytest.raises(InputError, match=r"no output 'loss'") as caught:
        capture(Options(), images(), output="loss")
    assert caught.value.remedy == "choose one of feat, logits."


def float_difference_of_logits(model: Options) -> float:
    """The largest difference of the output `logits`, quantizers off."""
    net = rewrite(model, images(), make_recipe())
    with torch.inference_mode():
        result = model(images())
        assert isinstance(result, dict)
        return float((net(images()) - result["logits"]).abs().max())


class Negative(nn.Module):
    """Max pooling, with indices that nobody reads, over a signed layer with outputs in [-1, -0.25]."""

    def __init__(self, indices: bool) -> None:
        super().__init__()
        self.indices = indices
        self.conv, self.bn = nn.Conv2d(3, 3, 1, groups=3, bias=False), nn.BatchNorm2d(3, eps=0.0)
        self.last = nn.Conv2d(3, 3, 1, groups=3, bias=False)
        nn.init.ones_(self.conv.weight)
        nn.init.ones_(self.last.weight)
        nn.init.constant_(self.bn.weight, 0.375)
        nn.init.constant_(self.bn.bias, -0.625)

    def forward(self, x: Tensor) -> Tensor:
        """Every position of images at half the size, as if they were logits."""
        z = self.bn(self.conv(x))
        if self.indices:
            z, _ = F.max_pool2d(z, 3, 2, 1, return_indices=True)
        else:
            z = F.max_pool2d(z, 3, 2, 1)
        result: Tensor = self.last(z).flatten(1)
        return result


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
@pytest.mark.parametrize("indices", [False, True], ids=["values", "values and indices"])
def test_max_pooling_of_negative_codes_stays_negative_in_the_corners(
    indices: bool, target: str, tmp_path: Path
) -> None:
    model = Negative(indices).eval()
    data = images(4).clamp(-1, 1)
    made = agreeing(model, tmp_path, target, data)
    with torch.inference_mode():
        wanted = made.stored.net(data)
        floats = model(data)
    assert isinstance(wanted, Tensor)
    assert float(floats.max()) <= -0.25
    assert float(wanted.max()) <= -0.25
    assert wanted.shape == (4, 3 * 8 * 8)
    assert float((wanted - floats).abs().max()) <= 2.0**-6
    for logits in (ReferenceRunner(made.path)(data.numpy()), *all_levels(made.path, data.numpy())):
        assert np.array_equal(logits, wanted.numpy())


class Unpooled(Options):
    """Reads the indices of its max pool."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Logits."""
        y, indices = F.max_pool2d(self.conv(x), 2, return_indices=True)
        logits: Tensor = self.fc(F.max_unpool2d(y, indices, [2, 2]).mean((2, 3)))
        return logits


def test_indices_that_are_read_are_refused_by_the_name_of_their_reader() -> None:
    with pytest.raises(InputError, match=r"max_unpool2d, which reads integers, is not supported \(node max_unpool2d, "):
        capture(Unpooled(), images())
