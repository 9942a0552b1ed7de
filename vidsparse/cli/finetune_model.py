"""The model that `vidsparse finetune` trains: a checkpoint, as the pipeline that the training is for."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vidsparse.generation.models import Model


def trained_model(name: str, from_image: bool) -> Model:
    """The model of a name, before its weights are loaded.

    Args:
        name: see `find_model`.
        from_image: as the pipeline that makes videos from an image, which may not be the one that the checkpoint names.

    Raises:
        ValueError: see `find_model`; or no pipeline makes videos of this checkpoint from an image.
        OSError: its settings cannot be read.
        NotImplementedError: its pipeline cannot be trained.
        ImportError: the training needs a package that is missing.
    """
    from vidsparse.finetune.families import task_for
    from vidsparse.generation.models import find_model

    model = find_model(name)
    if from_image:
        try:
            model = model.serving(("image",))
        except ValueError:
            raise ValueError(
                f"--from-image: no pipeline makes videos of {name} from an image, and its own is "
                f"{model.pipeline_class.__name__}; give --model a checkpoint for image to video, or leave it out"
            ) from None
    task_for(model.pipeline_class).check_packages()
    return model
