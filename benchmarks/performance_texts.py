"""What docs/performance.md says between its tables."""

from __future__ import annotations

from typing import Final

__all__ = [
    *(
        "DECODERS",
        "DECODERS_VERDICT",
        "DEPTH",
        "GUARD",
        "HEAD",
        "HELP",
        "IMAGES",
        "INFERENCE",
        "INFERENCE_VERDICT",
        "OTHERS",
        "PEAKS",
        "ROOFLINE",
        "START",
    ),
]

HEAD: Final = """\
# Performance

Written by `benchmarks/performance_page.py` from the files in `benchmarks/results`; edit those, not this page. What
else was measured is in [Speed](speed.md).

All was measured on machines with 2 cores of an AMD EPYC and no GPU, some with VNNI and some without, on which other
work was going on ("load before" is the number of busy processes): CPU time holds under load, wall time only tells an
upper limit. Ratios are medians of the ratios in the same round, not quotients of the medians beside them.

A `+` behind a commit says that files of the working tree differed from it while it was measured. Times say of what they
are: "a batch" is all of its images together, "an image" one of them; "step, s" is a batch, too.
"""

ROOFLINE: Final = """\
## How fast an engine could be
Predicted, not measured: the paper's networks at 8 bits, from the QDQ graph and NVIDIA's data sheets (`python
benchmarks/rooflines.py`). Each cell has the least milliseconds that a batch of 1 / a whole batch of 32 takes in INT8
(divide the second by 32 for an image), and in brackets how much longer FP16 must take at batch 32. MACs and
activations are those of an image; weights are read once a batch. `faq-deploy build --bench` prints the same for any
network, and beside it what was measured ([Engines](engines.md#how-fast)).

On a T4, 19 of ResNet-18's 24 kernels wait for memory at batch 1, and 11 at batch 32: INT8 gains there by its smaller
numbers, elsewhere by its faster products. No engine of ours has been timed on a GPU yet.
"""

PEAKS: Final = """\
### The peaks
Dense (without sparsity), at boost clocks:
"""

DEPTH: Final = """\
## Growth with depth
Chains of residual blocks with 8 channels, from as many convolutions as ResNet-18 has to as many as ResNet-1001 has:
what grows is the cost of nodes (`python benchmarks/scaling.py`). Export includes its checks on 2 images, lint reads the
file.

![CPU seconds of each stage by nodes, beside a line that grows in proportion](plots/scaling-depth.svg)
"""

IMAGES: Final = """\
## Growth with images
`eval` of a small net on JPEG files of 64 pixels, streamed (`python benchmarks/scaling.py --images 2000 8000 32000`).
What does not grow, two to three seconds, shows below some thousands of images.

![CPU seconds and memory of eval by images](plots/scaling-images.svg)
"""

DECODERS: Final = """\
## Decoders
Every verb reads images through Pillow, on the edge box too. Would another decoder be faster, and give the same bytes?
(`python benchmarks/decoders.py`; two photos in three sizes; the forms are those of JPEG files.) PyTurboJPEG needs a
libturbojpeg of the system, which was not there.
"""

DECODERS_VERDICT: Final = """\
Pillow stays. Where the pixels agree, that is because all of these wheels bring libjpeg-turbo: a promise of the wheels,
not of the format, which a box with another build of Pillow would break without a word. What reads CMYK and all else
would still be Pillow, and most of the time goes into the resize, which has to be Pillow's for its bytes. Decoding is
spread over threads, and `eval` decodes the next batches while the present one is inferred.
"""

START: Final = """\
## Start
Seconds until a verb says its first word on a terminal (`python benchmarks/first_progress.py`). Verbs that need PyTorch
say at once that they load it: the import costs 3 to 4 seconds of CPU time here, and their own work begins after that.
"""

HELP: Final = """\
And of `--help` (`python benchmarks/startup.py`):
"""

GUARD: Final = """\
## Regression guard
`make check-speed` measures these ratios again and fails where one is worse by more than 15 %, or by more than twice
what its own rounds differ; what fails is measured once more. It took 110 s of CPU time on this machine, under six
minutes with seven other processes at work, and all held. CI runs it and shows its table, and does not fail by it:
ratios belong to a processor, and processors of one name differ (ours calls itself "AMD EPYC", as generations do that
compute INT8 differently), so that a machine of another kind would now and then refuse a change without a cause.
"""

INFERENCE: Final = """\
## Inference on a CPU
Our files for target `onnxruntime` beside onnxruntime's own static quantization of the same net, random weights, batch
1 (`python benchmarks/inference.py --model NET --one-core --batch 1 --images 6 --rounds 7`; Inception v3 at 299
pixels, the others at 224). CPU time of one thread on a processor with VNNI:
"""

INFERENCE_VERDICT: Final = """\
"any CPU" is the default: its 7-bit codes stay exact on processors without VNNI, where the form that onnxruntime's own
quantizer writes gives wrong sums ([Targets](targets.md)). In ResNet-18 that costs 18 Clip nodes, 2 % of the time, and
nothing with `--cpu vnni`, which writes none; all else runs in the same kernels. In onnxruntime's own form
DenseNet-161 keeps 82 batch norms before convolutions in float, and EfficientNet-Lite0 its paddings, which ours does
not.
"""

OTHERS: Final = """\
## Beside other tools
Each tool in a process of its own, all taking turns step by step: CPU time of one thread. A step is forward, backward
and SGD with momentum, and for ours the new exponents too. Its memory is the tensors that live at once at most, beyond
those between two steps, as torch's allocator counts them. Ranges come from 5 batches; what folds batch norms into the
weights can take less than the float net's forward passes, which are 1. "onnxruntime by fp32" is the exported file's
images a second on this CPU, by those of the float file. All have the same memory layout. The tables are printed by
these commands, which install the tools:

<!-- not run: it installs tools of others and takes half an hour -->
```
python benchmarks/peers/speed.py --environments DIR --net resnet18
python benchmarks/peers/speed.py --environments DIR --net mobilenet_v2 --rounds 4 --together 4
```

With MobileNet v2 all of them at once don't fit 23 GiB: the second command lets four take turns beside a float net, then
the other three beside one of their own. A tool that the kernel ends for want of memory ends the run; what was measured
by then is printed.

With the compiled passes ([Speed](speed.md#compiled-passes)) a step of ours costs on ResNet-18 what the float step does,
on MobileNet v2 less, and on both less than that of any other tool. It needs less memory than the float step, where the
others need at least as much. Rounds differ by up to 20 %, so that the order among our three forms says nothing, and
ModelOpt's step on ResNet-18 is not far. Export of ours, with its checks, is the fastest; what other tools write is not
checked. Brevitas finds ranges as fast as ours on ResNet-18 and faster on MobileNet v2: its quantizers stand at ReLUs
and at the input alone, ours at all inputs of layers and sums.

torch.ao's fake quantizer has no ONNX form in this version of torch. Files of ModelOpt and Brevitas, and ours for target
`tensorrt`, are made for other engines than onnxruntime on a CPU; and this CPU has no VNNI, where 8 bits gain little
([above](#inference-on-a-cpu) is one that has it).

Tried and left out: masks of a byte by torch's own kernels (ten times slower than values; in C they are used), and max
norms of rows in one pass (torch's are slower than two plain passes).
"""
