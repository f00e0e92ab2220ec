"""Cases C06, C45 and C50: classes that validation lacks, pixels on another scale, repeatable calibration."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from faq_deploy.data import calibration_indices
from faq_deploy.stored_net import StoredNet, load_net
from tests.e2e.conftest import Call
from tests.e2e.photos import COLOURS, SIZE, colour_folder, quantize_photos, write_nets
from tests.e2e.refusals import refusal

pytestmark = [pytest.mark.xdist_group("cases"), pytest.mark.filterwarnings("always::UserWarning")]

ANGLES = ("0", "180", "270", "90")


@pytest.fixture
def nets(tmp_path: Path) -> Path:
    return write_nets(tmp_path)


def report_of(run: Path) -> dict[str, object]:
    return dict(json.loads((run / "report.json").read_text("utf-8")))


def exponents(stored: StoredNet) -> dict[str, int]:
    return {name: int(layer.exponent) for name, layer in stored.net.quantizers().items()}


# C06: the validation folder lacks a class


@pytest.mark.parametrize("empty", [False, True])
def test_c06_a_class_without_images_has_a_row_and_shifts_no_other(
    call: Call, nets: Path, tmp_path: Path, empty: bool
) -> None:
    data, run = colour_folder(tmp_path / "data", ANGLES), tmp_path / "run"
    shutil.rmtree(data / "val" / "180")
    if empty:
        (data / "val" / "180").mkdir()
    options = ("--num-classes", 4, "--class-order", "lexical")
    result = quantize_photos(call, f"{nets}:nearest", data, run, *options)
    assert result.exit_code == 0, result.output
    assert "val has no images of 1 class(es): 180." in result.stderr
    assert call("export", run).exit_code == 0
    result = call("eval", run, "--allow-skip")
    assert result.exit_code == 0, result.output
    rows = {row["name"]: row for row in report_of(run)["classes"]}  # type: ignore[attr-defined]
    assert {name: row["images"] for name, row in rows.items()} == {"0": 4, "180": 0, "270": 4, "90": 4}
    for name, row in rows.items():
        wanted = 0 if name == "180" else 4
        assert (row["right"]["PyTorch float"], row["right"]["PyTorch quantized"]) == (wanted, wanted)
    page = (run / "report.html").read_text("utf-8")
    assert re.search(r'<th scope="row">180</th><td class="n">0 images</td>', page)


def test_c06_an_unknown_validation_class_is_named(call: Call, nets: Path, tmp_path: Path) -> None:
    data = colour_folder(tmp_path / "data", ANGLES)
    shutil.copytree(data / "val" / "0", data / "val" / "zebra")
    result = quantize_photos(call, f"{nets}:nearest", data, tmp_path / "run", "--num-classes", 4)
    assert "the class zebra, which is not among the 4 known classes" in refusal(result)
    assert not (tmp_path / "run").exists()


# C45: calibration and validation on other pixels than training

_SCALED = '''
class Raw(Nearest):
    """The same net on pixels from 0 to 255."""

    def forward(self, x):
        return super().forward(x / 127.5 - 1)


class Inside(Nearest):
    """Normalizes inside, with buffers, and takes pixels from 0 to 1."""

    def __init__(self, classes):
        super().__init__(classes)
        self.register_buffer("mean", torch.full((1, 3, 1, 1), 0.5))
        self.register_buffer("std", torch.full((1, 3, 1, 1), 0.5))

    def forward(self, x):
        return super().forward((x - self.mean) / self.std)


class First(nn.Module):
    """A convolution reads the raw pixels."""

    def __init__(self, classes):
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 8, 3), nn.Linear(8, classes)
        with torch.no_grad():
            self.conv.weight.div_(100)

    def forward(self, x):
        return self.linear(torch.relu(self.conv(x)).mean((2, 3)))


def inside(num_classes=3):
    return Inside(num_classes)


def first(num_classes=3):
    return First(num_classes)
'''


@pytest.fixture
def scaled_nets(nets: Path) -> Path:
    nets.write_text(nets.read_text() + _SCALED)
    return nets


def test_c45_raw_pixels_get_every_second_code(call: Call, scaled_nets: Path, tmp_path: Path) -> None:
    data = colour_folder(tmp_path / "data")
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for split in ("train", "val"):
        Image.fromarray(np.stack([ramp] * 3, 2)).save(data / split / "a" / "ramp.png")
    run, raw = tmp_path / "run", ("--pixel-scale", 1, "--mean", 0, "--std", 1)
    result = quantize_photos(call, f"{scaled_nets}:first", data, run, *raw, "--set", "calibration.percentile_8=100")
    assert result.exit_code == 0, result.output
    stored = load_net(run / "quantized.pt")
    name = next(iter(stored.net.quantizers()))
    assert exponents(stored)[name] == 1  # ymax 256 = 2^(1 + 7)
    pixels = torch.arange(256, dtype=torch.float32).reshape(1, 1, 16, 16).expand(1, 3, 16, 16)
    codes = stored.net.codes(pixels)[0][name][0, 0].flatten().numpy()
    wanted = np.minimum(np.round(np.arange(256) / 2), 127)  # half to even
    assert codes.tolist() == wanted.tolist()
    assert call("export", run).exit_code == 0
    assert call("eval", run, "--allow-skip").exit_code == 0
    assert "pixels divided by 1" in str(report_of(run)["preprocessing"])
    said = call("inspect", f"{scaled_nets}:first", "--input-size", 16, "--mean", 0, "--std", 1).stderr
    assert "half of the codes are never used" in said


def test_c45_a_net_that_normalizes_inside_agrees_with_its_twin(call: Call, scaled_nets: Path, tmp_path: Path) -> None:
    data = colour_folder(tmp_path / "data")
    for name, mean, std in (("nearest", 0.5, 0.5), ("inside", 0, 1)):
        run = tmp_path / name
        result = quantize_photos(call, f"{scaled_nets}:{name}", data, run, "--mean", mean, "--std", std)
        assert result.exit_code == 0, result.output
        assert call("export", run).exit_code == 0
        result = call("eval", run, "--allow-skip")
        assert result.exit_code == 0, result.output
        assert "0 of" in result.stdout and "codes differ" in result.stdout
        top1 = {stage["name"]: stage["top1"] for stage in report_of(run)["stages"]}  # type: ignore[attr-defined]
        assert top1["PyTorch float"] == top1["PyTorch quantized"] == 100.0


@pytest.mark.parametrize("scale", ["0", "-1", "nan", "1e40"])
def test_c45_a_scale_that_cannot_be_is_refused(call: Call, nets: Path, tmp_path: Path, scale: str) -> None:
    data = colour_folder(tmp_path / "data")
    result = quantize_photos(call, f"{nets}:nearest", data, tmp_path / "run", "--pixel-scale", scale)
    assert "is not a positive, finite number" in refusal(result)
    assert not (tmp_path / "run").exists()


# C50: calibration depends on the seed and on nothing else


def noisy_folder(root: Path, *, reverse: bool = False) -> Path:
    """Ten classes of 40 noisy images, class by class; written to disk in the given order."""
    rng = np.random.default_rng(0)
    files = {}
    for split, each in (("train", 40), ("val", 2)):
        for label in range(10):
            for index in range(each):
                noise = rng.normal(0, 20, (SIZE, SIZE, 3)) + COLOURS[label]
                files[Path(split, f"c{label}", f"{index:02}.png")] = noise.clip(0, 255).astype(np.uint8)
    for name in sorted(files, reverse=reverse):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(files[name]).save(root / name)
    return root


def test_c50_the_same_seed_gives_the_same_bytes_whatever_workers_and_disk(
    call: Call, nets: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    torch.save(_weights(nets), tmp_path / "w.pth")
    plain = noisy_folder(tmp_path / "data")
    few: tuple[object, ...] = (
        "--set",
        "calibration.batches=5",
        "--set",
        "calibration.batch_size=8",
        "--num-classes",
        10,
    )
    few += ("--weights", tmp_path / "w.pth")
    digests, facts = [], []
    for index, (data, workers, seed) in enumerate(
        [(plain, 0, 0), (plain, 4, 0), (noisy_folder(tmp_path / "other", reverse=True), 0, 0), (plain, 0, 1)]
    ):
        run = tmp_path / f"run{index}"
        result = quantize_photos(call, f"{nets}:net", data, run, "--workers", workers, "--seed", seed, *few)
        assert result.exit_code == 0, result.output
        digests.append((run / "quantized.pt").read_bytes())
        facts.append(json.loads((run / "manifest.json").read_text())["steps"]["calibrate"]["facts"])
    assert digests[0] == digests[1] == digests[2]
    listed = [fact["calibration_images_sha256"] for fact in facts]
    assert listed[0] == listed[1] == listed[2] != listed[3]
    assert len({name.split("/")[0] for name in facts[0]["calibration_images"]}) > 1  # though the folder is sorted
    drawn = calibration_indices(np.repeat(np.arange(10), 40), 40, 0) // 40
    assert np.bincount(drawn).tolist() == [4] * 10
    for run in (tmp_path / "run0", tmp_path / "run3"):
        assert call("export", run).exit_code == 0
        assert call("eval", run, "--allow-skip", "--allow-undecided", "--max-flips", 99).exit_code in (0, 1)
    said = call("compare", tmp_path / "run0", tmp_path / "run3").stdout
    assert re.search(r"\d+ of \d+ tensors have another grid\.", said)


def _weights(nets: Path, classes: int = 10) -> dict[str, torch.Tensor]:
    space: dict[str, object] = {}
    exec(compile(nets.read_text(), str(nets), "exec"), space)
    return space["net"](classes).state_dict()  # type: ignore[operator, no-any-return]


def test_c50_three_images_warn_and_black_ones_have_positive_steps(call: Call, nets: Path, tmp_path: Path) -> None:
    data = colour_folder(tmp_path / "few", each=1)
    result = quantize_photos(call, f"{nets}:net", data, tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert "only 3 training images to calibrate on" in result.stderr
    for file in data.rglob("*.png"):
        Image.new("RGB", (SIZE, SIZE)).save(file)
    result = quantize_photos(call, f"{nets}:net", data, tmp_path / "black", "--mean", 0, "--std", 1)
    assert result.exit_code == 0, result.output
    assert "activations were always 0 in calibration: input" in result.stderr
    stored = load_net(tmp_path / "black" / "quantized.pt")
    assert all(-126 <= exponent <= 127 for exponent in exponents(stored).values())
    assert exponents(stored)[next(iter(stored.net.quantizers()))] == -7  # ymax 1


def test_c50_an_image_that_overflows_is_named_with_its_layer(call: Call, nets: Path, tmp_path: Path) -> None:
    torch.save(_weights(nets, 3) | {"conv.weight": torch.full((8, 3, 3, 3), 1e38)}, tmp_path / "w.pth")
    data = colour_folder(tmp_path / "data")
    for file in data.rglob("*.png"):
        Image.new("RGB", (SIZE, SIZE)).save(file)
    Image.new("RGB", (SIZE, SIZE), (255, 255, 255)).save(data / "train" / "b" / "2.png")
    zero = ("--mean", 0, "--std", 1, "--weights", tmp_path / "w.pth")
    message = refusal(quantize_photos(call, f"{nets}:net", data, tmp_path / "run", *zero))
    assert re.search(r"calibration stopped at layer \w+, image b/2\.png: ", message), message
    assert not (tmp_path / "run").exists()
