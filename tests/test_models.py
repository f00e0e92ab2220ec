"""Models by name, and the built-in nets."""

from __future__ import annotations

import sys
import types
import urllib.error
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

from engines.errors import CannotRunHere, InputError
from engines.files import sha256_of
from engines.preprocess import Preprocessing
from faq_deploy import torchvision_zoo
from faq_deploy.models import LoadedModel, load_model
from faq_deploy.nets import BUILTIN_NETS, digits_resnet, resnet14_cifar, resnet18_cifar, resnet18_cifar_w16
from faq_deploy.torchvision_zoo import torchvision_architecture, torchvision_names
from faq_deploy.weights import WeightsWarning

SMALL = "squeezenet1_1"  # torchvision's fastest to make, with a 1x1 convolution as classifier


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(value, theirs[key]) for key, value in one.state_dict().items())


def saved(tmp_path: Path, module: nn.Module, name: str = "net.pth") -> Path:
    torch.save(module.state_dict(), tmp_path / name)
    return tmp_path / name


def user_file(tmp_path: Path, text: str, name: str = "net.py") -> Path:
    (tmp_path / name).write_text(text)
    return tmp_path / name


def torchvision_net(name: str, classes: int) -> nn.Module:
    net = torchvision.models.get_model(name, weights=None, num_classes=classes)
    assert isinstance(net, nn.Module)
    return net


# --- built-in nets ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "shape", "parameters"),
    [
        (digits_resnet, (1, 8, 8), 47_050),
        (resnet18_cifar, (3, 32, 32), 11_173_962),  # the count that the common CIFAR-10 code prints
        (resnet18_cifar_w16, (3, 32, 32), 701_466),
        (resnet14_cifar, (3, 32, 32), 175_258),
    ],
)
def test_builtin_nets_have_their_published_size(
    make: Callable[..., nn.Module], shape: tuple[int, int, int], parameters: int
) -> None:
    net = make().eval()
    assert sum(value.numel() for value in net.parameters()) == parameters
    assert net(torch.zeros(2, *shape)).shape == (2, 10)


def test_cifar_net_has_the_names_of_the_common_code() -> None:
    names = resnet18_cifar_w16().state_dict().keys()
    assert {
        "conv1.weight",
        "bn1.running_var",
        "layer1.1.conv2.weight",
        "layer4.0.shortcut.1.bias",
        "linear.bias",
    } <= names
    assert len(names) == 122


def test_digits_resnet_has_an_identity_skip_and_a_convolutional_one() -> None:
    net = digits_resnet()
    skips = [len(net.get_submodule(f"{stage}.0.shortcut")) for stage in ("layer1", "layer2", "layer3")]  # type: ignore[arg-type]
    assert skips == [0, 2, 2]


def test_class_count_of_builtin_nets_can_be_chosen() -> None:
    for name, make in BUILTIN_NETS.items():
        channels = 1 if name.startswith("digits") else 3
        assert make(7).eval()(torch.zeros(1, channels, 8, 8)).shape == (1, 7)


# --- load_model ---------------------------------------------------------------------------------------------


def test_a_builtin_model_comes_in_eval_mode_with_its_preprocessing() -> None:
    model = load_model("builtin:digits-resnet", "random")
    assert not model.module.training
    assert model.name == "digits-resnet"
    assert model.preprocessing == Preprocessing(color="L", crop=8, mean=(0.3061,), std=(0.3769,))
    assert model.input_size == (1, 8, 8)
    assert model.source == "builtin:digits-resnet, random weights (seed 0)"
    assert (model.classes, model.weights_sha256) == (None, None)
    assert load_model("builtin:resnet18-cifar-w16", "random").input_size == (3, 32, 32)


def test_random_weights_are_seeded_and_leave_the_generator_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one = load_model("builtin:digits-resnet", "random", seed=1).module
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert same_weights(one, load_model("builtin:digits-resnet", None, allow_random=True, seed=1).module)
    assert not same_weights(one, load_model("builtin:digits-resnet", "random", seed=2).module)


def test_no_weights_is_an_error_with_the_flag() -> None:
    for spec in ("builtin:digits-resnet", f"torchvision:{SMALL}"):
        with pytest.raises(InputError, match="has no weights") as error:
            load_model(spec, None)
        assert "--weights random" in error.value.remedy


def test_weights_of_a_file_are_loaded_and_hashed(tmp_path: Path) -> None:
    torch.manual_seed(3)
    net = digits_resnet()
    path = saved(tmp_path, net)
    model = load_model("builtin:digits-resnet", str(path))
    assert same_weights(model.module, net)
    assert model.weights_sha256 == sha256_of(path)
    assert model.source == f"builtin:digits-resnet, weights {path}"


@pytest.mark.parametrize(
    ("spec", "make"),
    [
        ("builtin:digits-resnet", digits_resnet),
        (f"torchvision:{SMALL}", lambda count: torchvision_net(SMALL, count)),
        ("torchvision:mnasnet0_5", lambda count: torchvision_net("mnasnet0_5", count)),  # loads by recorded version
        ("torchvision:shufflenet_v2_x0_5", lambda count: torchvision_net("shufflenet_v2_x0_5", count)),
    ],
)
def test_the_heads_class_count_follows_the_checkpoint(
    tmp_path: Path, spec: str, make: Callable[..., nn.Module]
) -> None:
    torch.manual_seed(0)
    net = make(7)
    path = saved(tmp_path, net)
    assert same_weights(load_model(spec, str(path)).module, net)
    assert same_weights(load_model(spec, str(path), num_classes=7).module, net)
    with pytest.raises(InputError, match=r"has 7 classes, but the model was made for 12\."):
        load_model(spec, str(path), num_classes=12)


def test_averaged_weights_are_taken_on_request(tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain, averaged = digits_resnet(), digits_resnet()
    torch.save({"state_dict": plain.state_dict(), "state_dict_ema": averaged.state_dict()}, tmp_path / "net.pth")
    for prefer_ema, wanted in ((False, plain), (True, averaged)):
        with pytest.warns(WeightsWarning):
            model = load_model("builtin:digits-resnet", str(tmp_path / "net.pth"), prefer_ema=prefer_ema)
        assert same_weights(model.module, wanted)


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not fit the model"):
        load_model("builtin:digits-resnet", str(saved(tmp_path, torchvision_net(SMALL, 10))))


@pytest.mark.parametrize(
    ("spec", "remedy"),
    [
        ("digits_resnet", "builtin:digits-resnet"),
        ("resnet18", "torchvision:resnet18"),
        ("builtin:resnet", "digits-resnet, resnet14-cifar, resnet18-cifar, resnet18-cifar-w16"),
        ("torchvision:resnet81", "resnet18"),
        ("net.py", "net.py:factory"),
        ("hub:resnet18", "builtin:digits-resnet"),
        ("absent.py:make", "path/file.py:factory"),
    ],
)
def test_unknown_models_come_with_the_nearest_known(spec: str, remedy: str) -> None:
    with pytest.raises(InputError) as error:
        load_model(spec, "random")
    assert remedy in error.value.remedy


def test_missing_weights_and_class_counts_below_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="do not exist"):
        load_model("builtin:digits-resnet", str(tmp_path / "absent.pth"))
    with pytest.raises(InputError, match="less than 1"):
        load_model("builtin:digits-resnet", "random", num_classes=0)


# --- torchvision --------------------------------------------------------------------------------------------


def test_other_weights_get_the_preprocessing_of_the_first_published_ones() -> None:
    assert torchvision_architecture("resnet50", "random").preprocessing == Preprocessing(resize=256, crop=224)
    inception = torchvision_architecture("inception_v3", "random").preprocessing
    assert inception == Preprocessing(resize=342, crop=299)


def test_every_classification_model_of_torchvision_has_a_preprocessing() -> None:
    for name in torchvision_names():
        preprocessing = torchvision_architecture(name, "random").preprocessing
        assert preprocessing is not None
        assert preprocessing.input_shape is not None
        assert preprocessing.channels == 3


def test_unknown_published_weights_are_refused_with_the_names() -> None:
    with pytest.raises(InputError, match="neither a file nor published weights of resnet50") as error:
        load_model("torchvision:resnet50", "IMAGENET1K_V9")
    assert error.value.remedy == "pass a file, or one of IMAGENET1K_V1, IMAGENET1K_V2, random."


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that stands for torchvision's published weights: same name, and the hash that is asked for."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    torch.manual_seed(0)
    path = saved(tmp_path, torchvision_net(SMALL, 1000), "published.pth")
    monkeypatch.setattr(torchvision_zoo, "_hash_start", lambda entry: sha256_of(path)[:8])
    return path


def cache_file(tmp_path: Path) -> Path:
    return tmp_path / "home" / "hub" / "checkpoints" / "squeezenet1_1-b8a52dc0.pth"


@pytest.mark.parametrize("weights", ["IMAGENET1K_V1", "DEFAULT", "SqueezeNet1_1_Weights.IMAGENET1K_V1"])
def test_published_weights_are_downloaded_once_with_classes(
    weights: str, tmp_path: Path, published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def download(url: str, destination: str, hash_prefix: str) -> None:
        asked.append(f"{url} {hash_prefix}")
        Path(destination).write_bytes(published.read_bytes())

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    for _ in range(2):
        model = load_model(f"torchvision:{SMALL}", weights)
        assert model.classes is not None
        assert (len(model.classes), model.classes[0]) == (1000, "tench")
        assert model.weights_sha256 == sha256_of(published)
        assert model.preprocessing == Preprocessing(resize=256, crop=224)
    url = "https://download.pytorch.org/models/squeezenet1_1-b8a52dc0.pth"
    assert asked == [f"{url} {sha256_of(published)[:8]}"]
    assert cache_file(tmp_path).is_file()


def test_a_local_copy_of_published_weights_is_recognized(tmp_path: Path, published: Path) -> None:
    model = load_model(f"torchvision:{SMALL}", str(published))
    assert model.classes is not None
    assert model.classes[-1] == "toilet tissue"
    own = saved(tmp_path, torchvision_net(SMALL, 1000), "own.pth")
    assert load_model(f"torchvision:{SMALL}", str(own)).classes is None


def test_a_failed_download_is_one_sentence_with_the_address(
    tmp_path: Path, published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(url: str, destination: str, hash_prefix: str) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    with pytest.raises(
        InputError, match=r"IMAGENET1K_V1 of squeezenet1_1 could not be downloaded: .*no network"
    ) as error:
        load_model(f"torchvision:{SMALL}", "IMAGENET1K_V1")
    assert "https://download.pytorch.org/models/squeezenet1_1-b8a52dc0.pth" in error.value.remedy
    assert not cache_file(tmp_path).exists()


def test_a_damaged_download_in_the_cache_is_refused(tmp_path: Path, published: Path) -> None:
    cache_file(tmp_path).parent.mkdir(parents=True)
    cache_file(tmp_path).write_bytes(published.read_bytes()[:-1])
    with pytest.raises(InputError, match="its sha256 is not that of its name"):
        load_model(f"torchvision:{SMALL}", "IMAGENET1K_V1")


def test_hashes_come_from_the_names_of_published_files() -> None:
    entries = list(torchvision.models.get_model_weights("resnet50"))
    assert [torchvision_zoo._hash_start(entry) for entry in entries] == ["0676ba61", "11ad3fa6"]


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_published_googlenets_normalize_their_input_and_others_do_not(name: str) -> None:
    entry = next(iter(torchvision.models.get_model_weights(name)))
    assert torchvision_zoo._options(name, entry, trained=True) == {"transform_input": True, "init_weights": False}
    assert torchvision_zoo._options(name, None, trained=False) == {"transform_input": False, "init_weights": True}


def test_published_vision_transformers_are_made_for_their_image_size() -> None:
    entry = torchvision.models.get_model_weights("vit_b_16")["IMAGENET1K_SWAG_E2E_V1"]
    assert torchvision_zoo._options("vit_b_16", entry, trained=True) == {"image_size": 384}


# --- a user's file ------------------------------------------------------------------------------------------

FACTORIES = """
import torch
from torch import nn
from helper import WIDTH

class Net(nn.Sequential):
    def __init__(self, num_classes=3):
        super().__init__(nn.Conv2d(1, WIDTH, 1), nn.Flatten(), nn.Linear(WIDTH, num_classes))

def make():
    return nn.Sequential(nn.Linear(2, 5))

def any_number(**options):
    return Net(**options)

def with_own_weights():
    net = make()
    nn.init.constant_(net[0].weight, 0.5)
    return net

def nan():
    net = make()
    net[0].bias.data[1] = float("nan")
    return net

def raising():
    nothing = {}
    return nothing["weights"]

def leaving():
    raise SystemExit("no licence")

def text():
    return "a net"

NUMBER = 3
READY = make()
"""


@pytest.fixture
def factories(tmp_path: Path) -> Path:
    user_file(tmp_path, "WIDTH = 4\n", "helper.py")
    return user_file(tmp_path, FACTORIES)


def test_a_factory_with_its_own_weights_needs_no_file(factories: Path) -> None:
    model = load_model(f"{factories}:with_own_weights", None)
    assert isinstance(model, LoadedModel)
    assert model.module.state_dict()["0.weight"].unique().tolist() == [0.5]
    assert (model.name, model.preprocessing, model.input_size) == ("with_own_weights", None, None)
    assert model.source == f"{factories}:with_own_weights, with its own weights"
    assert not model.module.training


def test_a_factorys_random_weights_are_seeded(factories: Path) -> None:
    assert same_weights(load_model(f"{factories}:make", None).module, load_model(f"{factories}:make", "random").module)


def test_a_class_is_a_factory_and_its_class_count_follows_the_checkpoint(factories: Path, tmp_path: Path) -> None:
    seven = load_model(f"{factories}:Net", None, num_classes=7).module
    assert seven.state_dict()["2.weight"].shape == (7, 4)
    path = saved(tmp_path, seven)
    for factory in ("Net", "any_number"):
        assert same_weights(load_model(f"{factories}:{factory}", str(path)).module, seven)


def test_a_factory_without_num_classes_is_taken_as_it_is(factories: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no parameter num_classes"):
        load_model(f"{factories}:make", None, num_classes=7)
    path = saved(tmp_path, nn.Sequential(nn.Linear(2, 6)))
    with pytest.raises(InputError, match=r"has 6 classes, but the model was made for 5\."):
        load_model(f"{factories}:make", str(path))


def test_the_search_path_is_left_as_it_was(factories: Path) -> None:
    before = list(sys.path)
    load_model(f"{factories}:make", None)
    with pytest.raises(InputError):
        load_model(f"{factories}:raising", None)
    assert sys.path == before


@pytest.mark.parametrize(
    ("factory", "said"),
    [
        ("raising", "net.py:28: raising() raised KeyError: 'weights'."),
        ("leaving", "net.py:31: leaving() raised SystemExit: no licence."),
        ("text", "net.py:text returned str, not a torch.nn.Module."),
        ("NUMBER", "net.py: NUMBER is a int, not a function that makes the model."),
        ("READY", "net.py: READY is a Sequential, not a function that makes the model."),
        ("mak", "net.py has no 'mak'."),
        ("nan", "net.py:nan: 0.bias holds NaN or Inf (1 of 5 values)."),
    ],
)
def test_bad_factories_are_named_with_line_and_reason(factories: Path, factory: str, said: str) -> None:
    with pytest.raises(InputError) as error:
        load_model(f"{factories}:{factory}", None)
    assert error.value.what == f"{factories.parent}/{said}"


def test_a_misspelt_factory_comes_with_the_nearest(factories: Path) -> None:
    with pytest.raises(InputError) as error:
        load_model(f"{factories}:mak", None)
    assert error.value.remedy == "it has make."


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import torch\n\n1 / 0\n", "net.py:3: the file raised ZeroDivisionError: division by zero."),
        ("import nothing_of_this_name\n", "net.py:1: the file raised ModuleNotFoundError: No module named"),
        ("def make(:\n    pass\n", "net.py:1: the file raised SyntaxError:"),
    ],
)
def test_a_file_that_does_not_run_is_named_with_line_and_reason(
    tmp_path: Path, text: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    user_file(tmp_path, text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as error:
        load_model("net.py:make", None)
    assert error.value.what.startswith(said)


# --- timm ---------------------------------------------------------------------------------------------------


class _TimmConfig:
    num_classes = 5

    def to_dict(self) -> dict[str, object]:
        return {"input_size": (3, 160, 160), "crop_pct": 0.95, "interpolation": "bicubic", "mean": (0.5, 0.5, 0.5)}


class _TimmNet(nn.Module):
    def __init__(self, num_classes: int = 5) -> None:
        super().__init__()
        self.head = nn.Linear(3, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands for timm, with one model; pretrained ones can't be fetched."""

    def create_model(name: str, *, pretrained: bool, num_classes: int = 5) -> nn.Module:
        if pretrained:
            raise OSError("no network")
        return _TimmNet(num_classes)

    module = types.ModuleType("timm")
    vars(module).update(
        is_model=lambda name: name == "tiny",
        list_models=lambda: ["tiny", "other"],
        get_pretrained_cfg=lambda name: _TimmConfig(),
        create_model=create_model,
    )
    monkeypatch.setitem(sys.modules, "timm", module)


@pytest.mark.usefixtures("timm")
def test_timm_models_get_the_preprocessing_that_timm_evaluates_with(tmp_path: Path) -> None:
    model = load_model("timm:tiny", "random")
    assert model.preprocessing == Preprocessing(resize=168, crop=160, interpolation="bicubic", mean=(0.5, 0.5, 0.5))
    nine = _TimmNet(9)
    assert same_weights(load_model("timm:tiny", str(saved(tmp_path, nine))).module, nine)


@pytest.mark.usefixtures("timm")
def test_timm_failures_are_sentences() -> None:
    for name, weights, classes, said in (
        ("tinny", "random", None, "no model 'tinny'"),
        ("tiny", "pretrained", None, "could not make tiny: no network."),
        ("tiny", "pretrained", 9, "have 5 classes, not 9"),
    ):
        with pytest.raises(InputError, match=said):
            load_model(f"timm:{name}", weights, num_classes=classes)


def test_without_timm_the_pip_line_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(CannotRunHere) as error:
        load_model("timm:resnet18", "random")
    assert error.value.remedy == "pip install 'faq-deploy[timm]'"


def test_loading_says_nothing_when_all_is_well(tmp_path: Path) -> None:
    path = saved(tmp_path, digits_resnet())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        builtin = load_model("builtin:digits-resnet", str(path))
        zoo = load_model("torchvision:googlenet", "random", num_classes=2)
    assert (builtin.name, zoo.name) == ("digits-resnet", "googlenet")
