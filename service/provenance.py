"""What a PNG says of itself: the text chunks by which it can be made again."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

from models.sampling import Sampling
from service import __version__
from service.request import Resolved, SampleRequest

Picture = Literal["grid", "image", "trajectory"]
"""What a PNG shows: all images of a job, one of them, or how all came about."""


def provenance(
    request: Resolved, labels: Sequence[int], checkpoint_sha256: str, picture: Picture = "grid"
) -> dict[str, str]:
    """The text chunks of a PNG: all that it takes to make the picture again, which `remake` reads."""
    without_effect = {"trajectory", *(name for name, _ in request.idle())}
    choices = request.model_dump(include=Sampling.model_fields.keys() - without_effect, exclude_none=True)
    return {
        "Software": f"PFGM++ Serve {__version__}",
        "picture": picture,
        "dataset": request.dataset,
        "D": str(request.D),
        **{name: value if isinstance(value, str) else json.dumps(value) for name, value in choices.items()},
        "precision": request.precision,
        "seeds": json.dumps(request.seeds),
        "labels": json.dumps(labels),
        **({"columns": str(request.columns)} if picture == "grid" else {}),
        "scale": str(request.scale),
        "checkpoint_sha256": checkpoint_sha256,
        **({"guide_checkpoint_sha256": request.guide_checkpoint_sha256} if request.guide_checkpoint_sha256 else {}),
    }


def of_one(text: Mapping[str, str], seed: int, label: int | None) -> dict[str, str]:
    """The text chunks of one image, from those of its job: its own seed and class."""
    own = {"picture": "image", "seeds": f"[{seed}]", "labels": "[]" if label is None else f"[{label}]"}
    return {name: value for name, value in {**text, **own}.items() if name != "columns"}


class Remake(NamedTuple):
    """What makes a picture again."""

    fields: dict[str, Any]
    """The body of `POST /v1/samples`."""
    picture: Picture
    checkpoints: dict[str, str]
    """The SHA-256 of the model's checkpoint, and of the guide's, by the names of their chunks."""


def remake(text: Mapping[str, str]) -> Remake:
    """What makes a picture again, from its text chunks. Raises ValueError saying what is wrong with them."""
    if missing := [name for name in ("dataset", "D", "seeds", "checkpoint_sha256") if name not in text]:
        raise ValueError(f"its text chunks lack {', '.join(missing)}")
    fields = {name: _value(name, text[name]) for name in SampleRequest.model_fields if name in text}
    if not isinstance(fields["seeds"], list):
        raise ValueError(f"its text chunk seeds is no list: {text['seeds'][:100]!r}")
    if not fields.get("labels"):  # of a model without classes
        fields.pop("labels", None)
    shown = text.get("picture", "grid")
    picture: Picture | None = next((each for each in get_args(Picture) if each == shown), None)
    if picture is None:
        raise ValueError(f"its text chunk picture is none of {', '.join(get_args(Picture))}: {shown[:100]!r}")
    fields |= {"count": len(fields["seeds"]), "trajectory": picture == "trajectory"}
    return Remake(fields, picture, {name: text[name] for name in text if name.endswith("checkpoint_sha256")})


def _value(name: str, text: str) -> Any:
    """The value of a field, from the text chunk that `provenance` wrote: JSON, but for what is text itself."""
    if name in {"dataset", "guide"}:
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
