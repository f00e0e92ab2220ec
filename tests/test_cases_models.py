"""Models that broke other tools: each is rewritten as eager PyTorch runs it, or refused in one sentence."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engines.errors import InputError
from faq_deploy.capture import capture
from faq_deploy.rewrite import rewrite
from tests.case_checks import agreeing, float_difference
from tests.nets import with_statistics
from tests.quantized import images, make_recipe


class Upsampling(nn.Module):
    """A transposed convolution with groups and a batch norm with factors of both signs."""

    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, inputs, 3, padding=1)
        self.up = nn.ConvTranspose2d(inputs, outputs, 3, stride=2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.fc = nn.Linear(outputs, 10)
        assert self.bn.running_mean is not None and self.bn.running_var is not None
        nn.init.uniform_(self.bn.weight, -2, 2)
        nn.init.normal_(self.bn.running_mean)
        nn.init.uniform_(self.bn.running_var, 0.1, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.fc(F.relu(self.bn(self.up(F.relu(self.conv(x))))).mean((2, 3)))
        return logits


@pytest.mark.parametrize(("inputs", "outputs", "groups"), [(8, 12, 1), (8, 12, 2), (6, 6, 6)])
def test_batch_norm_goes_into_the_right_axis_of_a_grouped_transposed_convolution(
    inputs: int, outputs: int, groups: int, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    model = Upsampling(inputs, outputs, groups).eval()
    net = rewrite(model, images(), make_recipe())
    assert not any(node.kind == "batch_norm" for node in net.graph)
    with torch.inference_mode():
        wanted, found = model.double()(images().double()), net.double()(images().double())
    assert float((wanted - found).abs().max()) < 1e-12
    made = agreeing(model.float(), tmp_path)
    assert made.stored.net.weighted()["up"].weight_exponent.shape == (1,)


@pytest.mark.parametrize("removed", [False, True], ids=["never tracked", "statistics removed"])
def test_batch_norm_without_statistics_is_refused_with_its_name_and_a_remedy(removed: bool) -> None:
    norm = nn.BatchNorm2d(8, track_running_stats=removed)
    norm.running_mean = norm.running_var = None
    layers = OrderedDict(conv=nn.Conv2d(3, 8, 3), bn=norm, relu=nn.ReLU(), pool=nn.AdaptiveAvgPool2d(1))
    model = nn.Sequential(layers | OrderedDict(flat=nn.Flatten(), fc=nn.Linear(8, 10)))
    with pytest.raises(InputError) as caught:
        rewrite(model, images(), make_recipe())
    assert caught.value.what == (
        "the batch norm (bn) uses the statistics of the current batch at inference, "
        "so no engine can reproduce it image by image."
    )
    assert "track_running_stats" in caught.value.remedy


class Activated(nn.Module):
    """A block whose activation writes into the skip tensor; `aside` is the reading that does not."""

    def __init__(self, act: Callable[[Tensor], Tensor], aside: bool = False) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.act, self.aside = act, aside
        self.stem, self.fc = nn.Conv2d(3, 8, 1), nn.Linear(8, 5)
        self.blocks = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = self.stem(x)
        for conv in self.blocks:
            y = conv(self.act(x.clone() if self.aside else x))
            y += x
            x = y
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


@pytest.mark.parametrize(
    "act",
    [nn.ReLU(inplace=True), lambda x: x.relu_(), F.relu_, lambda x: x.clamp_(0), lambda x: x.mul_(2)],
    ids=["module", "method", "function", "clamp", "scaling"],
)
def test_an_in_place_op_changes_the_skip_as_in_eager_mode(act: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    model, aside = Activated(act).eval(), Activated(act, aside=True).eval()
    assert float_difference(model) == 0.0
    with torch.inference_mode():
        assert float((model(images()) - aside(images())).abs().max()) > 0.1
    agreeing(model, tmp_path)


class Assigning(nn.Module):
    """Writes into a slice of its input."""

    def forward(self, x: Tensor) -> Tensor:
        """The input, two of its channels zero."""
        x[:, :2] = 0
        return x


def test_assignment_to_a_slice_is_refused_with_its_line() -> None:
    said = r"assignment to a part of a tensor by fill is not supported \(node \w+, act, test_cases_models\.py:\d+\)"
    with pytest.raises(InputError, match=said) as caught:
        capture(Activated(Assigning()), images())
    line = int(caught.value.what.rpartition(":")[2].partition(")")[0])
    assert Path(__file__).read_text().splitlines()[line - 1].strip() == "x[:, :2] = 0"


class Plain(nn.Module):
    """Two convolutions and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.fc(F.relu(self.b(F.relu(self.a(x)))).mean((2, 3)))
        return logits


def _spectral(model: Plain) -> None:
    torch.nn.utils.spectral_norm(model.b)


def _weight_norm(model: Plain) -> None:
    torch.nn.utils.weight_norm(model.b)
    model(images())  # leaves a weight that the next line makes stale
    with torch.no_grad():
        model.get_parameter("b.weight_g").mul_(1.7)


def _doubled(model: Plain) -> None:
    model.register_forward_hook(lambda module, inputs, output: output * 2)


def _shifted(model: Plain) -> None:
    model.b.register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1,))


def _parametrized(model: Plain) -> None:
    torch.nn.utils.parametrizations.weight_norm(model.b)
    with torch.no_grad():
        model.b.parametrizations.weight.original0.mul_(1.7)  # type: ignore[union-attr, operator]


@pytest.mark.filterwarnings("ignore:.*_norm.*deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("change", "allowed"),
    [(_spectral, 1e-6), (_weight_norm, 1e-6), (_doubled, 0.0), (_shifted, 1e-6), (_parametrized, 1e-6)],
)
def test_hooks_and_normed_weights_compute_what_they_do_in_eager_mode(
    change: Callable[[Plain], None], allowed: float, tmp_path: Path
) -> None:
    model, plain = Plain(), Plain()
    change(model)
    with torch.no_grad():
        assert float((model.eval()(images()) - plain(images())).abs().max()) > 1e-2
    assert float_difference(model) <= allowed
    agreeing(model, tmp_path)


@pytest.mark.filterwarnings("ignore:.*_norm.*deprecated:FutureWarning")
def test_a_model_in_half_precision_with_a_computed_weight_is_quantized_in_single(tmp_path: Path) -> None:
    model = Plain()
    _weight_norm(model)
    model = model.half().eval()
    model(images().half())  # leaves a computed weight, which can't be copied
    made = agreeing(model, tmp_path)
    assert {p.dtype for p in made.stored.net.parameters()} == {torch.float32}
    with torch.no_grad():
        wanted = model.float()(images())
        assert float((wanted - made.stored.net(images())).abs().max()) < 0.05


class Normalized(nn.Module):
    """Batch norms after a convolution and alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(6)
        self.conv, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 5)
        self.one = nn.BatchNorm2d(8, eps=1e-3, momentum=0.01)
        self.two = nn.BatchNorm2d(8, eps=1e-3, momentum=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        y = F.relu(self.one(self.conv(x)))
        logits: Tensor = self.fc((y + self.two(F.max_pool2d(y, 3, 1, 1))).mean((2, 3)))
        return logits


def test_sync_batch_norm_gives_the_codes_of_its_plain_twin(tmp_path: Path) -> None:
    twin, sync = with_statistics(Normalized()), with_statistics(Normalized())
    for norm in (twin.one, twin.two, sync.one, sync.two):
        norm.momentum = 0.01
    sync = nn.SyncBatchNorm.convert_sync_batchnorm(sync).eval()  # type: ignore[no-untyped-call]
    assert isinstance(sync.one, nn.SyncBatchNorm)
    files = []
    for name, model in (("twin", twin), ("sync", sync)):
        (tmp_path / name).mkdir()
        made = agreeing(model, tmp_path / name)
        assert "BatchNormalization" not in made.operators()
        live = made.stored.net.weighted()["conv"].norm
        assert live is not None
        assert (live.eps, live.momentum) == (1e-3, 0.01)
        files.append(made.path.read_bytes())
    assert files[0] == files[1]
