"""The verb `train`: a float network for data that has no pretrained one."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from engines.files import atomic_path
from engines.image_batches import BadImages
from engines.run_folder import RunFolder
from faq_deploy import __version__
from faq_deploy.finetune import FinetuneResult, finetune
from faq_deploy.model_fit import example_of, require_fit, require_trainable
from faq_deploy.output_folder import check_output, clear_output, remove_leftovers
from faq_deploy.progress import TrainingReporter
from faq_deploy.quantize import Batches
from faq_deploy.recipe import dump_toml
from faq_deploy.torch_eval import top1_percent
from faq_deploy.torch_file import write_torch_file
from faq_deploy.verbs import QuantizeOptions, Say, open_training, pick_device
from faq_deploy.versions import torch_versions

__all__ = ["train_verb"]


def train_verb(options: QuantizeOptions, reporter: TrainingReporter, say: Say) -> tuple[FinetuneResult, Path]:
    """Train a float network and write `OUTPUT/float.pth`, a plain state dict; see `faq-deploy train --help`.

    Raises:
        InputError: bad input of any kind, one sentence.
    """
    folder = RunFolder(options.output) if options.resume else check_output(options.output, force=options.force)
    device, bad = pick_device(options.device), BadImages()
    weights = options.weights or "random"
    loaded, splits, recipe, facts = open_training(dataclasses.replace(options, weights=weights))
    augment = splits.augment if recipe.training.augment == "auto" else recipe.training.augment
    example = example_of(splits.train, on_bad=options.data.on_bad, bad=bad)
    require_fit(loaded.module, example, str(options.model), len(splits.train.classes))
    size = recipe.training.batch_size
    require_trainable(loaded.module, example, str(options.model), min(2, size, len(splits.train)))
    net = loaded.module.to(device)
    if not options.resume:
        remove_leftovers(folder)
        clear_output(folder, also=["float.pth"])
    count = len(splits.train)
    say(f"training {loaded.name} on {count} image{'s' if count != 1 else ''}")
    result = finetune(
        net,
        train=Batches(splits.train, recipe, augment, options.workers, options.data.on_bad, bad),
        val=lambda: top1_percent(net, splits.val, device=device, on_bad=options.data.on_bad, bad=bad),
        training=recipe.training,
        weight_decay=recipe.training.weight_decay,
        run=folder,
        recipe_toml=dump_toml(recipe),
        device=device,
        reporter=reporter,
        resume=options.resume,
    )
    path = folder / "float.pth"
    with atomic_path(path) as temporary:
        write_torch_file(temporary, result.best_state)
    folder.record(
        "train",
        version=__version__,
        outputs=["float.pth", "metrics.jsonl"] if (folder / "metrics.jsonl").is_file() else ["float.pth"],
        versions=torch_versions(),
        facts={"model": loaded.name, "data": facts.model_dump(), "top1": result.best_top1, "epoch": result.best_epoch},
    )
    return result, path
