"""Features of a data set: every sample once, in order, the same on one rank and on many.

Shape legend: N samples, D width, L tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import compress
from typing import Any

import torch
from jaxtyping import Int64, Shaped
from rich import get_console
from rich.progress import Progress, track
from torch import Tensor
from torch.nn.functional import pad

from collimate import distributed
from collimate.data import EvalLoader, Source
from collimate.data.loading import Batch
from collimate.devices import device_named
from collimate.encoders import Encoder
from collimate.encoding import Encoding
from collimate.evaluation.modalities import Exhibit, exhibit_in
from collimate.evaluation.options import Precision as Precision
from collimate.training import Method

Model = Method | Encoder


@dataclass(frozen=True)
class Features:
    """What a model makes of the samples of a source; on the CPU, in float32.

    Attributes:
        encodings: modality -> Encoding of all N samples; tokens only where they were asked for.
        index: each sample's place in the source, int64 (N,), ascending; corrupt samples are missing.
        keys: the samples' names.
        extras: what else was asked for: `label`, int64 (N,), `captions`, a list of strings for each sample, ...
        source: where they come from.
        settings: how they were made, for protocols.
    """

    encodings: dict[str, Encoding]
    index: Int64[Tensor, " N"]
    keys: list[str]
    extras: dict[str, Any] = field(default_factory=dict)
    source: Source | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.index)


def extract(
    model: Model,
    source: Source,
    modalities: Sequence[str],
    also: Sequence[str] = (),
    tokens: bool = False,
    batch_size: int = 64,
    num_workers: int = 0,
    device: str = "auto",
    precision: Precision = "float32",
    limit: int | None = None,
    windows: int = 1,
) -> Features:
    """Encode a source. All ranks get the features of all samples.

    Samples that lack a modality which is optional to the method are left out, and counted.

    Args:
        model: a method, whose joint space is meant, or an encoder with its processor, whose own width is meant.
        source: what to go through.
        modalities: what to encode; may be empty, to read only what `also` names.
        also: `label`, `captions` or keys of the samples; see `collimate.data.EvalLoader`.
        tokens: keep the tokens too, for scores that need them.
        batch_size: of each rank.
        num_workers: processes that read and decode; 0 reads in this one.
        device: `auto` is the first GPU where there is one, else the CPU.
        precision: of the encoders; half precision moves accuracies by about 0.1 points.
        limit: at most so many samples, spread over the source.
        windows: of samples that are longer than the encoder's input, the mean over so many windows; with 1, they are
            what the processor makes of them. For one modality, without tokens.

    Raises:
        ValueError: nothing could be read, an encoder without processor was given, or there can be no windows.
    """
    if windows > 1:
        options = (batch_size, num_workers, device, precision)
        return _extract_windows(model, source, modalities, also, tokens, windows, limit, *options)
    processors = processors_of(model, modalities)
    optional = [name for name in processors if name in getattr(model, "optional", ())]
    loader = EvalLoader(source, processors, batch_size, num_workers, also, limit=limit, optional=optional)
    where = place(model, device)
    parts: list[dict[str, Encoding]] = []
    rows: dict[str, list[Any]] = {name: [] for name in ("index", "key", *also)}
    lacking = 0
    for encodings, batch in stream(model, loader, modalities, tokens, where, precision):
        given = torch.stack([batch["valid"], *(batch[f"{name}_given"] for name in optional)]).all(0)
        lacking += int((~given).sum())
        parts.append({name: rows_of(encoding, given) for name, encoding in encodings.items()})
        for name, values in rows.items():
            values.extend(compress(batch[name], given.tolist()))
    index = torch.tensor([int(each) for each in rows["index"]], dtype=torch.int64)
    everywhere = distributed.gather_ordered(index.to(where), index.to(where)).cpu()
    if not len(everywhere):
        wanted = f" and has {' and '.join(optional)}" if optional else ""
        raise ValueError(f"{source.name}: there is no sample that can be read{wanted}.")
    encodings = {name: _gathered(Encoding.cat([part[name] for part in parts]), index, where) for name in modalities}
    extras: dict[str, Any] = {name: in_order(values, index) for name, values in rows.items() if name != "index"}
    keys = extras.pop("key")
    if "label" in extras:
        extras["label"] = torch.tensor([int(label) for label in extras["label"]])
    settings = settings_of(model, modalities, source, len(everywhere), limit, precision)
    if optional:
        settings["without"] = f"{' or '.join(optional)}: {(lacking := sum(distributed.gather_objects(lacking)))}"
        settings["unreadable"] -= lacking
    return Features(encodings, everywhere, keys, extras, source, settings)


def _extract_windows(
    model: Model,
    source: Source,
    modalities: Sequence[str],
    also: Sequence[str],
    tokens: bool,
    windows: int,
    limit: int | None,
    *options: Any,
) -> Features:
    """`extract`, by the mean over several windows of each sample."""
    from collimate.evaluation.windows import Windows, mean_of_windows

    if tokens or len(modalities) != 1:
        raise ValueError(f"Windows are averaged as vectors of one modality, not as tokens or of {list(modalities)}.")
    (modality,) = modalities
    size = len(source) if limit is None else min(limit, len(source))
    places = [place * len(source) // size for place in range(size)]
    parts = Windows(source, modality, processors_of(model, modalities)[modality], windows, places)
    found = extract(model, parts, modalities, also, False, *options)
    whole = found.index[::windows] // windows  # a sample that cannot be read lacks all of its windows
    extras = {name: values[::windows] for name, values in found.extras.items()}
    pooled = mean_of_windows(found.encodings[modality].pooled, windows)
    settings = {
        **found.settings,
        "samples": len(whole),
        "unreadable": size - len(whole),
        "windows": f"{windows} of each longer sample, averaged",
    }
    index = torch.tensor(places)[whole]
    return Features({modality: Encoding(pooled)}, index, found.keys[::windows], extras, source, settings)


def stream(
    model: Model,
    loader: EvalLoader,
    modalities: Sequence[str],
    tokens: bool,
    device: torch.device,
    precision: Precision,
) -> Iterator[tuple[dict[str, Encoding], Batch]]:
    """This rank's share of a source, encoded batch by batch.

    Args:
        model: on the device already, see `place`.
        loader: what to go through; its batches have the modalities.
        tokens: keep the tokens too.

    Yields:
        modality -> Encoding of the real rows of a batch, on the CPU, in float32; and these rows of all that the loader
        put into the batch. There may be none.
    """
    with evaluating(model):
        for batch in progress(loader, f"Encoding {loader.source.name}" if modalities else loader.source.name):
            valid = batch["valid"]
            # Entered anew for each batch: a context that stayed open over a yield would rule the caller too.
            with torch.inference_mode(), autocast(device, precision):
                encodings = {name: _kept(encode_rows(model, name, batch, device), valid, tokens) for name in modalities}
            real = valid.tolist()
            yield (
                encodings,
                {
                    name: values[valid] if isinstance(values, Tensor) else list(compress(values, real))
                    for name, values in batch.items()
                },
            )


def settings_of(
    model: Model, modalities: Sequence[str], source: Source, found: int, limit: int | None, precision: Precision
) -> dict[str, Any]:
    """How features were made, for protocols."""
    return {
        "data": source.name,
        "samples": found,
        "unreadable": (len(source) if limit is None else min(limit, len(source))) - found,
        "preprocessing": {name: described(each) for name, each in processors_of(model, modalities).items()},
        "precision": precision,
    }


def encode_all(
    model: Model,
    modality: str,
    raws: Sequence[Any],
    tokens: bool = False,
    batch_size: int = 256,
    device: str = "auto",
    precision: Precision = "float32",
) -> Encoding:
    """Encode raw values, such as prompts. The ranks share the work, and all get all of it.

    Raises:
        ValueError: there are none.
    """
    if not raws:
        raise ValueError(f"There is no {modality} to encode.")
    where = place(model, device)
    mine = range(len(raws))[distributed.rank() :: distributed.world_size()] or range(1)
    own = encode_here(
        model, modality, [raws[at] for at in mine], tokens, where, precision, batch_size, f"{len(raws)} x {modality}"
    )
    return _gathered(own, torch.tensor(mine), where)


def encode_here(
    model: Model,
    modality: str,
    raws: Sequence[Any],
    tokens: bool,
    device: torch.device,
    precision: Precision,
    batch_size: int = 256,
    name: str = "",
) -> Encoding:
    """Encode raw values on this rank alone, on the CPU in float32.

    Args:
        model: on the device already, see `place`.
        name: of the bar on the terminal; none without.
    """
    processor = processors_of(model, [modality])[modality]
    parts = []
    with torch.inference_mode(), evaluating(model), autocast(device, precision):
        for first in progress(range(0, len(raws), batch_size), name and f"Encoding {name}"):
            batch = processor.batch(raws[first : first + batch_size]).to(device)
            everyone = torch.ones(len(batch), dtype=torch.bool)
            parts.append(_kept(encode(model, modality, batch), everyone, tokens))
    return Encoding.cat(parts)


def encode(model: Model, modality: str, batch: Tensor) -> Encoding:
    """A batch as the processor makes it, by a method or by a lone encoder."""
    return model.encode(modality, batch) if isinstance(model, Method) else model.encode(batch)


def encode_rows(model: Model, modality: str, batch: Batch, device: torch.device) -> Encoding:
    """A modality of a batch, or several that the method encodes together."""
    if modality in (joint := getattr(model, "joint", {})):
        return model.encode_joint(modality, {name: batch[name].to(device) for name in joint[modality]})  # type: ignore[union-attr]
    return encode(model, modality, batch[modality].to(device))


def encoder_of(model: Model, modality: str) -> Encoder:
    """The unprojected encoder of a modality, with its processor.

    Raises:
        ValueError: the method keeps no such encoder.
    """
    if isinstance(model, Encoder):
        return model
    encoders: Any = getattr(model, "encoders", {})
    if modality not in encoders:
        raise ValueError(f"{type(model).__name__} has no encoder of {modality!r} of its own.")
    encoder = encoders[modality]
    encoder.processor = model.processors[modality]
    return encoder


def processors_of(model: Model, modalities: Iterable[str]) -> dict[str, Any]:
    """The raw-to-tensor step of each modality, and of each part of those that are encoded together.

    Raises:
        ValueError: the model has none.
    """
    joint = getattr(model, "joint", {})
    modalities = dict.fromkeys(part for name in modalities for part in joint.get(name, (name,)))
    found = model.processors if isinstance(model, Method) else dict.fromkeys(modalities, model.processor)
    for modality in modalities:
        if found.get(modality) is None:
            instead = " What asks by texts needs a method of texts; `classify` asks a classifier." * (
                modality == "text"
            )
            raise ValueError(
                f"{type(model).__name__} has no processor for {modality!r}; it knows {sorted(found)}.{instead}"
            )
    return {modality: found[modality] for modality in modalities}


def placing_processor(model: Model, modality: str) -> Any:
    """The processor of pictures, which says by `placement` where boxes of a picture come to lie.

    Raises:
        ValueError: the model has none, or it cannot say that.
    """
    processor = processors_of(model, [modality])[modality]
    if not hasattr(processor, "placement"):
        raise ValueError(f"{type(processor).__name__} cannot say where boxes come to lie: it has no `placement`.")
    return processor


def described(processor: Any) -> str:
    """A processor in one line: its class and settings."""
    config = processor.config()
    settings = ", ".join(f"{name}={value}" for name, value in config["init_args"].items())
    return f"{config['class_path'].rpartition('.')[2]}({settings})"


def other_modality(model: Method) -> str:
    """The method's first modality that is not text."""
    return next(name for name in model.modalities if name != "text")


def modality_of(encoder: Encoder) -> str:
    """What a lone encoder encodes, as its processor says; pictures where it says nothing."""
    return getattr(encoder.processor, "modality", None) or "image"


def exhibit_of(features: Features, place: int, modality: str) -> Exhibit | None:
    """What reports show of a sample, or None where it has nothing to show."""
    if features.source is None:
        return None
    return exhibit_in(features.source.read(int(features.index[place])), modality)


def is_cosine(model: Model) -> bool:
    """Whether the model ranks by the cosine of pooled vectors, so that tokens are not needed."""
    return not isinstance(model, Method) or type(model).similarity is Method.similarity


def place(model: Model, device: str) -> torch.device:
    """Bring the model to a device; `auto` is the first GPU where there is one."""
    device = device_named(device)
    model.to(device)
    return torch.device(device)


@contextmanager
def evaluating(model: Model) -> Iterator[None]:
    """Evaluation mode for a while."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """Half precision where asked for."""
    return nullcontext() if precision == "float32" else torch.autocast(device.type, getattr(torch, precision))


def rows_of(encoding: Encoding, rows: slice | Tensor) -> Encoding:
    """Some samples of an Encoding."""
    tokens, mask = encoding.tokens, encoding.mask
    return Encoding(
        encoding.pooled[rows],
        None if tokens is None else tokens[rows],
        None if mask is None else mask[rows],
        encoding.grid,
        encoding.prefix,
    )


def _kept(encoding: Encoding, valid: Tensor, tokens: bool) -> Encoding:
    """The real rows, on the CPU."""
    kept = encoding if tokens else Encoding(encoding.pooled)
    kept = kept.to("cpu", torch.float32)
    return rows_of(kept, valid)


def _gathered(mine: Encoding, index: Tensor, device: torch.device) -> Encoding:
    """The samples of all ranks in order. Tokens of unequal length are padded to the longest of all ranks."""
    position = index.to(device)

    def joined(rows: Shaped[Tensor, "n ..."]) -> Tensor:
        return distributed.gather_ordered(rows.to(device), position).cpu()

    if mine.tokens is None:
        return Encoding(joined(mine.pooled))
    plans = distributed.gather_objects((mine.tokens.shape[1], mine.mask is not None))
    longest = max(length for length, _ in plans)
    missing = longest - mine.tokens.shape[1]
    masked = any(has for _, has in plans) or len({length for length, _ in plans}) > 1
    mask = joined(pad(mine.token_mask, (0, missing)).to(torch.uint8)).bool() if masked else None
    return Encoding(joined(mine.pooled), joined(pad(mine.tokens, (0, 0, 0, missing))), mask, mine.grid, mine.prefix)


def in_order(values: list[Any], index: Tensor) -> list[Any]:
    """Any values of all ranks, in the order of the samples."""
    found: dict[int, Any] = {}
    for positions, part in distributed.gather_objects((index.tolist(), values)):
        found.update(zip(positions, part, strict=True))
    return [found[position] for position in sorted(found)]


def progress(work: Any, text: str) -> Iterable[Any]:
    """Go through something with a bar on the terminal of the first rank; without a text, there is none."""
    return track(work, text, console=get_console(), transient=True, disable=not text or _quiet() or len(work) < 2)


@contextmanager
def progress_of(total: int, text: str) -> Iterator[Callable[[int], None]]:
    """A bar on the terminal of the first rank; what is yielded is called with how much more is done."""
    with Progress(console=get_console(), transient=True, disable=_quiet()) as bar:
        task = bar.add_task(text, total=total)
        yield lambda more: bar.advance(task, more)


def _quiet() -> bool:
    return distributed.rank() > 0 or not get_console().is_terminal
