"""report.json and report.html: what they say, and that they are safe and whole."""

from __future__ import annotations

import json
import math
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from engines.errors import InputError
from engines.images import ArrayImages
from engines.plan_model import EnginePlan, FloatIsland, Share
from engines.preprocess import Preprocessing
from faq_deploy.class_table import MOST_CLASSES
from faq_deploy.comparison import comparison_of
from faq_deploy.flip_gallery import MOST_FLIPS, thumbnail
from faq_deploy.headline import headline
from faq_deploy.plots import MOST_RANGES
from faq_deploy.report import write_html, write_json
from faq_deploy.report_model import Engine, Epoch, Gate, Layer, Report, Stage, Verdict
from faq_deploy.report_parts import Baseline, ClassRow, Flip
from faq_deploy.statistics import Pairs

FLOAT = Stage(name="PyTorch float", kind="float", images=200, top1=98.5, max_logit_difference=0.25)
QUANTIZED = Stage(name="PyTorch quantized", kind="quantized", images=200, top1=98.0, flips=0)
REFERENCE = Stage(
    name="reference",
    kind="reference",
    images=200,
    top1=98.0,
    flips=0,
    differing_codes=0,
    codes_compared=1_000_000,
    max_logit_difference=0.0,
)
ENGINE = REFERENCE.model_copy(update={"name": "engine onnxruntime", "kind": "engine"})
GREY = Preprocessing(resize=None, crop=None, color="L", mean=(0.5,), std=(0.5,))
SKIPPED = Stage(name="tensorrt-rtx-sm86", kind="engine", skipped="no NVIDIA GPU here")
RELU = Layer(
    name="relu1",
    kind="activation",
    bits=7,
    signed=False,
    exponent_min=-4,
    exponent_max=-4,
    y=5.0,
    ymax=8.0,
    waste=0.375,
)


def report(**changes: object) -> Report:
    """A passed run on two stages, with `changes`."""
    facts: dict[str, object] = {
        "faq_deploy": "0.1.0",
        "created": "2026-11-25T14:30:00+01:00",
        "run": "runs/r18",
        "model": "torchvision:resnet18",
        "data": "a folder of 200 images",
        "images": 200,
        "verdict": Verdict(passed=True, exit_code=0),
        "stages": [FLOAT, QUANTIZED, ENGINE],
    }
    return Report.model_validate(facts | changes)


def page(tmp_path: Path, content: Report) -> str:
    """The HTML of a report."""
    write_html(content, tmp_path / "report.html")
    return (tmp_path / "report.html").read_text()


class Elements(HTMLParser):
    """Collects what an HTML page contains, and that what opens is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in ("meta", "link", "br", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_verdict_comes_before_everything_else(tmp_path: Path) -> None:
    text = Elements(page(tmp_path, report())).text
    said = ["✔ Passed.", "The same integers everywhere: 0 of 1,000,000 codes differ.", "Stages", "98.50"]
    places = [text.index(words) for words in said]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("exit_code", "words"), [(1, "a gate failed"), (2, "the input"), (3, "not every engine was built and run")]
)
def test_failed_run_says_so_in_words_and_with_its_exit_code(tmp_path: Path, exit_code: int, words: str) -> None:
    text = Elements(page(tmp_path, report(verdict={"passed": False, "exit_code": exit_code}))).text
    assert f"✘ Not passed: {words}" in text
    assert f"(exit code {exit_code})" in text
    assert "✔" not in text


def test_skipped_stage_keeps_its_row_and_reason(tmp_path: Path) -> None:
    text = Elements(page(tmp_path, report(stages=[FLOAT, QUANTIZED, REFERENCE, SKIPPED]))).text
    assert "Skipped: no NVIDIA GPU here" in text
    assert "0 of 1,000,000 codes differ; 1 of 2 stages could not be compared." in text


def test_run_whose_stages_were_all_skipped_renders(tmp_path: Path) -> None:
    text = Elements(page(tmp_path, report(stages=[SKIPPED]))).text
    assert "No integer codes were compared." in text


def test_calibrated_only_run_says_that_nothing_was_trained(tmp_path: Path) -> None:
    assert "None: the net was calibrated only." in Elements(page(tmp_path, report(training=[]))).text


def test_diverged_training_renders_and_survives_json(tmp_path: Path) -> None:
    epochs = [Epoch(epoch=1, loss=0.5, lr=0.1, top1=90.0), Epoch(epoch=2, loss=math.nan, lr=0.1, top1=None)]
    diverged = report(training=epochs)
    write_json(diverged, tmp_path / "report.json")
    again = Report.model_validate_json((tmp_path / "report.json").read_bytes())
    assert [math.isnan(epoch.loss) for epoch in again.training] == [False, True]
    assert "loss nan, top-1 – %" in Elements(page(tmp_path, diverged)).text


EVIL = '<script>alert("x")</script>'


def test_names_from_outside_are_escaped_everywhere(tmp_path: Path) -> None:
    layer = RELU.model_copy(update={"name": EVIL})
    everywhere = report(
        run=EVIL,
        model=EVIL,
        data=f"classes {EVIL}",
        recipe={EVIL: EVIL, "list": [EVIL]},
        verdict={"passed": True, "exit_code": 0, "sentences": [EVIL]},
        stages=[FLOAT.model_copy(update={"name": EVIL}), SKIPPED.model_copy(update={"skipped": EVIL})],
        gates=[{"name": EVIL, "limit": 0.1, "value": 0.0, "passed": True, "detail": EVIL}],
        engines=[{"name": EVIL, "sm": EVIL, "status": "ran", "note": EVIL}],
        layers=[layer, layer.model_copy(update={"name": "$x_{"})],
        warnings=[EVIL],
        versions={EVIL: EVIL},
    )
    html = page(tmp_path, everywhere)
    found = Elements(html)
    assert "script" not in found.tags
    # title, heading, model, data; 1 sentence; 2 stage, 2 gate, 1 layer, 3 engine and 3 recipe cells; 2 in the pictures;
    # 1 warning; 2 in the footer
    assert found.text.count(EVIL) == 21
    assert "$x_{" in found.text


def test_page_loads_nothing(tmp_path: Path) -> None:
    html = page(tmp_path, report(layers=[RELU], training=[Epoch(epoch=1, loss=0.5, lr=0.1, top1=97.0)]))
    found = Elements(html)
    assert found.tags.count("svg") == 3
    assert re.findall(r"https?://|@import|url\((?!#)", html) == []
    assert {"script", "link", "img", "iframe", "object"}.isdisjoint(found.tags)
    assert [
        value for name, value in found.attributes if name in ("src", "href", "xlink:href") and value[0] != "#"
    ] == []


def test_page_is_well_formed_and_its_ids_are_unique(tmp_path: Path) -> None:
    html = page(tmp_path, report(layers=[RELU], training=[Epoch(epoch=1, loss=0.5, lr=0.1, top1=97.0)]))
    found = Elements(html)
    ids = [value for name, value in found.attributes if name == "id"]
    used = [value[1:] for name, value in found.attributes if name == "xlink:href"]
    used += re.findall(r"url\(#([^)]*)\)", html)
    assert found.open == []
    assert len(ids) == len(set(ids))
    assert set(used) <= set(ids)
    assert used != []


def test_what_was_evaluated_stands_at_the_top_and_versions_once_at_the_end(tmp_path: Path) -> None:
    content = report(
        weights="r18.pth (sha256 0123456789ab...)",
        preprocessing="resize 256 (bilinear)",
        recipe={"name": "faq-4bit", "bits": 4, "target": "onnxruntime"},
        versions={"faq-deploy": "0.1.0", "torch": "2.6.0"},
    )
    text = Elements(page(tmp_path, content)).text
    top, rest = text.split("Stages", 1)
    assert "r18.pth (sha256 0123456789ab...)" in top
    assert "4 bits for target onnxruntime, recipe faq-4bit" in top
    assert "resize 256 (bilinear)" in top
    assert rest.count("0.1.0") == 1 and "torch 2.6.0" in rest


def test_no_table_hides_its_caption_in_what_scrolls(tmp_path: Path) -> None:
    html = page(tmp_path, report(layers=[RELU], engines=[Engine(name="onnxruntime", status="ran")]))
    assert "<caption" not in html
    described = re.findall(r'aria-describedby="([^"]+)"', html)
    assert len(described) == 3
    assert all(f'<p class="note" id="{name}">' in html for name in described)


def test_what_an_engine_runs_is_told_in_words(tmp_path: Path) -> None:
    island = FloatIsland(nodes=("one.add",), modules=("one",), reason="Its skip is float.", edit="Quantize it.")
    predicted = EnginePlan(
        source="predicted",
        convolutions=Share(int8=9, all=10),
        adds=Share(int8=1, all=2),
        functions=1,
        pools=2,
        reformats=3,
        islands=(island,),
    )
    inside = "4 layers inside blocks that the engine does not itemize"
    engines = [
        Engine(name="sm86", status="ran", plan=predicted),
        Engine(name="real", status="ran", plan=EnginePlan(source="inspected", unseen=4)),
        Engine(name="onnxruntime", status="ran"),
    ]
    section = page(tmp_path, report(engines=engines)).split("What the engines run", 1)[1].split("</section>")[0]
    rows = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row) for row in section.split("<tbody>")[1].split("</tr>")[:-1]]
    assert rows == [
        ["sm86", "predicted", "9 of 10", "0 of 0", "1 of 2", "0 of 0", "3", "3", f"one: {island.reason} {island.edit}"],
        [
            "real",
            "inspected",
            "0 of 0",
            "0 of 0",
            "0 of 0",
            "0 of 0",
            "0",
            "0",
            f"nothing that the engine names<br>{inside}",
        ],
    ]
    assert "What the engines run" not in page(tmp_path, report(engines=engines[2:]))


def test_same_report_gives_the_same_bytes(tmp_path: Path) -> None:
    content = report(layers=[RELU], training=[Epoch(epoch=1, loss=0.5, lr=0.1, top1=97.0)])
    assert page(tmp_path, content) == page(tmp_path, content)


def test_page_of_a_large_net_stays_small_and_keeps_its_widest_gaps(tmp_path: Path) -> None:
    layers = [RELU.model_copy(update={"name": f"relu{i}", "y": 7.9, "waste": 0.01}) for i in range(2 * MOST_RANGES)]
    layers[150] = RELU.model_copy(update={"name": "wasteful"})
    html = page(tmp_path, report(layers=layers))
    assert len(html) < 1_000_000
    assert f"{MOST_RANGES} others are in the table below" in html
    assert html.count(">wasteful<") == 2  # in the picture and in the table


def test_json_can_be_rendered_later(tmp_path: Path) -> None:
    content = report(layers=[RELU], recipe={"bits": 8, "training.lr": 1e-4, "training.milestones": [30, 60]})
    write_json(content, tmp_path / "report.json")
    loaded = json.loads((tmp_path / "report.json").read_text())
    assert Report.model_validate(loaded) == content
    write_html(loaded, tmp_path / "later.html")
    assert (tmp_path / "later.html").read_text() == page(tmp_path, content)


def test_wrong_report_is_refused_by_field_and_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"images: Input should be greater than or equal to 0"):
        write_html(report().model_dump() | {"images": -1}, tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_stage_has_numbers_or_a_reason_never_both() -> None:
    with pytest.raises(ValidationError, match="must have either top1 or a reason"):
        Stage(name="both", kind="engine", top1=98.0, skipped="no GPU")
    with pytest.raises(ValidationError, match="must have either top1 or a reason"):
        Stage(name="neither", kind="engine")


def test_verdict_and_exit_code_cannot_disagree() -> None:
    with pytest.raises(ValidationError, match="passed is True but the exit code is 3"):
        Verdict(passed=True, exit_code=3)


def test_gate_without_a_measurement_cannot_pass() -> None:
    with pytest.raises(ValidationError, match="nothing was measured"):
        Gate(name="flips", limit=0, value=None, passed=True)
    assert not Gate(name="flips", limit=0, value=None, passed=False).passed


def test_headline_names_the_stage_whose_codes_differ() -> None:
    wrong = REFERENCE.model_copy(update={"name": "onnxruntime", "differing_codes": 7})
    assert headline(report(stages=[QUANTIZED, REFERENCE, wrong])) == (
        "Not the same integers: 7 of 2,000,000 codes differ, in onnxruntime."
    )


def test_headline_tells_of_other_logits_from_an_engine_without_codes() -> None:
    drifting = Stage(name="engine", kind="engine", top1=98.0, max_logit_difference=0.5)
    assert headline(report(stages=[FLOAT, QUANTIZED, REFERENCE, drifting])) == (
        "The same integers inside, other logits: 0 of 1,000,000 codes differ, logits do in engine."
    )


def test_headline_does_not_say_everywhere_of_engines_that_nobody_asked_for(tmp_path: Path) -> None:
    engines = [Engine(name=name, status="not asked for", note="It can't run here.") for name in ("a", "b")]
    content = report(engines=[Engine(name="onnxruntime", status="ran"), *engines])
    assert headline(content) == (
        "The same integers in all that ran here: 0 of 1,000,000 codes differ; 2 built engines were not asked for."
    )
    assert Elements(page(tmp_path, content)).text.count("not asked for") == 4  # headline, two rows and the caption
    assert headline(report(stages=[FLOAT, QUANTIZED, REFERENCE])) == (
        "The same integers in all that ran here: 0 of 1,000,000 codes differ; no engine was built."
    )


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.sampled_from([None, 0.0, 0.5])), max_size=5))
def test_headline_claims_everywhere_only_if_every_stage_was_compared_and_equal(
    found: list[tuple[int, bool, float | None]],
) -> None:
    stages = [
        Stage(
            name=str(i),
            kind="engine",
            top1=50.0,
            differing_codes=differing if has_codes else None,
            codes_compared=10 if has_codes else None,
            max_logit_difference=logits,
        )
        for i, (differing, has_codes, logits) in enumerate(found)
    ]
    equal = all(
        (has_codes or logits is not None) and not (has_codes and differing) and not logits
        for differing, has_codes, logits in found
    )
    any_codes = any(has_codes for _, has_codes, _ in found)
    said = headline(report(stages=[FLOAT, QUANTIZED, *stages]))
    assert said.startswith("The same integers everywhere") == (equal and any_codes)


def rich() -> Report:
    """A report with something in every section."""
    pixel = thumbnail(ArrayImages(np.zeros((1, 4, 4, 1), np.uint8), np.zeros(1, np.int64), ("a",), GREY), 0)
    stages = [FLOAT, QUANTIZED, REFERENCE.model_copy(update={"images": 20}), ENGINE, SKIPPED]
    timed = {"latency_ms": 1.5, "latency_p90_ms": 2.0, "largest_batch": 32, "top1_interval": (95.0, 99.0)}
    names = [stage.name for stage in (FLOAT, QUANTIZED, ENGINE)]
    return report(
        stages=[stage if stage.skipped else stage.model_copy(update=timed) for stage in stages],
        gates=[
            Gate(name="top-1", limit=95, value=98, passed=True, at_least=True),
            Gate(name="accuracy drop: engine", limit=0.1, value=0.0, passed=False, undecided=True),
            Gate(name="flips: engine", limit=0, value=3, passed=False),
        ],
        layers=[RELU.model_copy(update={"histogram": [9, 4, 0, 1], "zero": 0.64, "clipped": 0.07})],
        engines=[
            Engine(name="onnxruntime", runtime="onnxruntime", status="ran", bytes=10, seconds=1.0, int8_share=0.75)
        ],
        classes=[
            ClassRow(name="cat", images=100, right=dict(zip(names, (99, 97, 97), strict=True))),
            ClassRow(name="cow", images=0, right=dict.fromkeys(names, 0)),
        ],
        flips=[
            Flip(
                image="cat/1.jpg",
                label="cat",
                answers=dict(zip(names, ("cat", "cow", "cow"), strict=True)),
                thumbnail=pixel,
            )
        ],
        training=[Epoch(epoch=1, loss=0.5, lr=0.1, top1=97.0)],
        baseline=Baseline(
            run="last",
            created=report().created,
            faq_deploy="0.0.9",
            top1=97.5,
            images=200,
            same_images=True,
            same_network=False,
            comparison=comparison_of("last", "now", Pairs(200, 2, 3, 6)),
        ),
        recipe={"bits": 8},
        warnings=["one"],
    )


def section(html: str, title: str) -> str:
    """What stands under a heading, as text."""
    inside = html.split(f"<h2>{title}</h2>", 1)[1].split("</section>")[0]
    return " ".join(unescape(re.sub("<[^>]*>", " ", inside)).replace("\xa0", " ").split())


def test_a_class_without_images_says_so_and_has_no_accuracy(tmp_path: Path) -> None:
    said = section(page(tmp_path, rich()), "Classes")
    assert "cat 100 99.00 97.00 2.00" in said
    assert "cow 0 images – – –" in said
    assert "1 other stage is right as often as PyTorch quantized in every class." in said


def test_many_classes_are_cut_to_those_that_changed_most(tmp_path: Path) -> None:
    rows = [
        ClassRow(name=f"c{i}", images=10, right={FLOAT.name: 9, QUANTIZED.name: 1 if i == 700 else 9})
        for i in range(1000)
    ]
    html = page(tmp_path, report(classes=rows))
    assert '<th scope="row">c700</th>' in html
    assert f"Shown are the {MOST_CLASSES} classes that changed most; {1000 - MOST_CLASSES} others" in html
    assert len(html) < 100_000


def test_a_flip_shows_its_picture_and_who_answered_what(tmp_path: Path) -> None:
    html = page(tmp_path, rich())
    assert 'alt="cat/1.jpg, of class cat"' in html
    (source,) = [value for name, value in Elements(html).attributes if name == "src"]
    assert source.startswith("data:image/jpeg;base64,")
    said = section(html, "Images that flipped")
    assert "✔ cat: PyTorch float" in said
    assert "✘ cow: PyTorch quantized, engine onnxruntime" in said


def test_limits_have_their_direction_and_outcomes_are_words(tmp_path: Path) -> None:
    said = section(page(tmp_path, rich()), "Gates")
    assert "top-1 98 ≥ 95 ✔ passed" in said
    assert "accuracy drop: engine 0 ≤ 0.1 ✘ failed, undecided" in said
    assert "flips: engine 3 ≤ 0 ✘ failed" in said


def test_codes_latency_and_baseline_are_told(tmp_path: Path) -> None:
    html = page(tmp_path, rich())
    assert 'aria-label="percent of the codes, from the lowest to the highest: 64, 29, 0, 7"' in html
    assert "64 % 7.00 %" in section(html, "Layers")
    assert "Batches of up to 32 images" in section(html, "Latency")
    assert ">1.5 ms<" in html
    assert "ran 20 images only" in section(html, "Accuracy")
    said = section(html, "Against last")
    assert "97.50 % top-1 on 200 images on 2026-11-25" in said
    assert "2 lost, 3 gained, 6 answered otherwise; the exact McNemar test gives p = 1." in said
    assert "75.0 %" in section(html, "Engines")


def test_a_thumbnail_can_be_nothing_but_base64() -> None:
    with pytest.raises(ValidationError):
        Flip(image="a", label="b", answers={}, thumbnail='"><script>')
    assert Flip(image="a", label="b", answers={}).thumbnail == ""


def test_page_with_every_section_is_well_formed_and_its_ids_are_unique(tmp_path: Path) -> None:
    found = Elements(page(tmp_path, rich()))
    ids = [value for name, value in found.attributes if name == "id"]
    assert found.open == [] and len(ids) == len(set(ids))
    assert "script" not in found.tags


def test_a_report_of_resnet152_and_imagenet_stays_under_three_megabytes(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3), np.uint8)
    rgb = Preprocessing(resize=None, crop=None)
    picture = thumbnail(ArrayImages(noise, np.zeros(1, np.int64), ("a",), rgb), 0)
    names = [f"stage {i}" for i in range(6)]
    layers = [
        RELU.model_copy(
            update={"name": f"layer{i}.conv", "histogram": list(range(99990, 100006)), "zero": 0.5, "clipped": 0.1}
        )
        for i in range(510)
    ]
    content = rich().model_copy(
        update={
            "layers": layers,
            "classes": [ClassRow(name=f"n{i:08}", images=50, right=dict.fromkeys(names, 35)) for i in range(1000)],
            "flips": [
                Flip(image=f"{i}.JPEG", label="n1", answers=dict.fromkeys(names, "n2"), thumbnail=picture)
                for i in range(MOST_FLIPS)
            ],
            "stages": [
                ENGINE.model_copy(update={"name": name, "latency_ms": 1.0, "top1_interval": (97.0, 99.0)})
                for name in names
            ],
        }
    )
    html = page(tmp_path, content)
    assert 500_000 < len(html.encode()) < 3_000_000
