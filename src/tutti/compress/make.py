"""One recipe carried out: from the trained model to a directory that can be asked."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

from torch import nn
from transformers import PreTrainedModel

from tutti.compress.asked import AskedSubject
from tutti.compress.prune import drop_heads, drop_layers, narrow_feed_forward, zero_smallest
from tutti.compress.quantize import quantize
from tutti.compress.recipes import Recipe
from tutti.compress.recover import recover
from tutti.compress.subject import Subject
from tutti.models.onnx import export_onnx, onnx_runtime
from tutti.models.quantized import save_quantized
from tutti.package import write_package


@dataclass(frozen=True)
class Candidate:
    """A recipe, carried out: `directory` holds the model, `quality` is that of what was read from there again."""

    recipe: Recipe
    directory: Path
    quality: dict[str, float]


@dataclass
class Maker:
    """Carries out recipes in `folder`. `recovery_steps`: of a model that lost parts; `console`: show how it learns."""

    subject: Subject
    folder: Path
    recovery_steps: int | None = None
    console: bool = False

    def make(self, recipe: Recipe) -> Candidate:
        """The model by `recipe`.

        Raises:
            TuttiError: this model cannot be treated so, or a library is missing.
        """
        if recipe.onnx:
            onnx_runtime()  # before anything learns again for nothing
        directory = self._write(recipe, self.folder / recipe.name.replace("+", "-").replace(":", ""))
        return Candidate(recipe, directory, self.subject.quality(self.subject.open(directory)))

    def _write(self, recipe: Recipe, directory: Path) -> Path:
        subject = self.subject
        fp32 = self._pruned(recipe) if recipe.smaller else subject.model
        if recipe.zeros:
            fp32 = copy.deepcopy(fp32)
            changed = fp32
            zero_smallest(fp32, recipe.zeros, recipe.criterion, lambda: subject.running(changed))

        def save(path: Path) -> None:
            if recipe.onnx:
                assert isinstance(subject, AskedSubject), "refused by its check"
                inputs = subject.inputs()
                export_onnx(
                    copy.deepcopy(fp32),
                    inputs,
                    path,
                    int8=recipe.scheme is not None,
                    tables=4 if recipe.scheme is not None and recipe.scheme.tables == 4 else 8,
                )
                return
            model: nn.Module = copy.deepcopy(fp32)
            if recipe.scheme is not None:
                quantize(model, recipe.scheme, lambda: subject.running(model))
            save_quantized(model, path)
            if subject.model.can_generate():
                subject.model.generation_config.save_pretrained(path.parent)

        package = subject.package("onnx" if recipe.onnx else "torch", recipe.name, subject.made_from())
        return write_package(directory, package, fp32.config, subject.tokenizer_directory, save)

    def _pruned(self, recipe: Recipe) -> PreTrainedModel:
        """With layers, heads and channels taken out, after it has learned again."""
        subject, model = self.subject, self.subject.model
        if recipe.layers is not None:
            whole = model
            model = drop_layers(whole, recipe.layers, lambda: subject.running(whole))
        if recipe.heads is not None:
            attentive = model
            model = drop_heads(attentive, recipe.heads, lambda: subject.running(attentive))
        if recipe.channels is not None:
            wide = model
            model = narrow_feed_forward(wide, recipe.channels, lambda: subject.running(wide))
        words = [f"layers-{recipe.layers}"] if recipe.layers is not None else []
        words += [f"heads-{recipe.heads:g}"] if recipe.heads is not None else []
        words += [f"channels-{recipe.channels:g}"] if recipe.channels is not None else []
        return recover(subject, model, "-".join(words), self.recovery_steps, self.console)
