"""The commands, each a function of its parsed arguments."""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence

from flax import nnx

from fcclip_jax import checkpoint, progress
from fcclip_jax.models import descriptions
from fcclip_jax.models.building import abstract_model, named_variables
from fcclip_jax.models.descriptions import ClipDescription, ModelDescription
from fcclip_jax.text.vocabulary import Vocabulary
from fcclip_jax.training.parameters import is_statistic, is_trainable
from fcclip_jax.training.run_folder import choose_step, read_model
from fcclip_jax.weights import find

from . import PROG, fcclip, open_clip, rules, weight_files
from .inputs import Table, in_units, read_clip, read_description, read_vocabulary, read_weights, say_step, table_of


def from_openclip(arguments: argparse.Namespace) -> None:
    """Converts a CLIP of OpenCLIP's to a checkpoint of CLIP alone."""
    checkpoint.check_free(arguments.output, overwrite=arguments.overwrite)
    read_description(arguments.model, arguments.quick_gelu, False)  # refuses a wrong name before gigabytes are read
    clip = read_clip(arguments.pretrained, arguments.model)
    weights = _with_source(clip.weights, arguments.source)
    if any(key.startswith((fcclip.CLIP_PREFIX, fcclip.HEAD_PREFIX)) for key in weights.tensors):
        raise ValueError(f"{arguments.pretrained} contains a whole FC-CLIP; convert it with `{PROG} fcclip`")
    description = read_description(arguments.model, arguments.quick_gelu, clip.quick_gelu or False)
    if isinstance(description, ModelDescription):
        description = description.clip
    write_checkpoint(arguments, description, weights, None, None, clip.known_words)


def from_fcclip(arguments: argparse.Namespace) -> None:
    """Converts an official FC-CLIP checkpoint."""
    checkpoint.check_free(arguments.output, overwrite=arguments.overwrite)
    vocabulary = read_vocabulary(arguments.vocabulary)
    read_description(arguments.model, arguments.quick_gelu, False)  # refuses a wrong name before gigabytes are read
    weights = read_weights(arguments.checkpoint, name=arguments.source)
    if not any(key.startswith(fcclip.HEAD_PREFIX) for key in weights.tensors):
        raise ValueError(f"{arguments.checkpoint} contains no FC-CLIP; convert a CLIP alone with `{PROG} openclip`")
    for prefix, model in fcclip.FOREIGN.items():
        if any(key.startswith(prefix) for key in weights.tensors):
            raise ValueError(
                f"{arguments.checkpoint} contains {model}, which computes more than FC-CLIP; it cannot be used"
            )
    complete = any(key.startswith(fcclip.CLIP_PREFIX) for key in weights.tensors)
    ovrcoat = any(key.startswith(fcclip.TWIN_PREFIX) for key in weights.tensors)
    if ovrcoat and not any(key.startswith(f"{fcclip.CLIP_PREFIX}visual.") for key in weights.tensors):
        raise ValueError(
            f"{arguments.checkpoint} contains an OVRCOAT without its image trunk, which was trained, so that no other CLIP"
            " replaces it; get the whole file"
        )
    if arguments.as_official and not ovrcoat:
        raise ValueError(f"{arguments.checkpoint} contains no OVRCOAT, for which --as-official is; remove it")
    if complete and arguments.clip:
        raise ValueError(f"{arguments.checkpoint} contains CLIP's weights already; remove --clip {arguments.clip}")
    if not complete and not arguments.clip:
        raise ValueError(
            f"{arguments.checkpoint} contains no CLIP weights; add --clip with their tag or file (the official models"
            " have OpenCLIP's laion2b_s29b_b131k_ft_soup for convnext_large_d_320, openai for RN50 and other ResNets)"
        )
    clip_source, quick_gelu, known_words = None, None, None
    if arguments.clip:
        clip, quick_gelu, known_words = read_clip(arguments.clip, arguments.model)
        clip_source = clip.source
        weights.tensors.update({fcclip.CLIP_PREFIX + key: tensor for key, tensor in clip.tensors.items()})
        clip.tensors.clear()
    if quick_gelu is None:
        # The official ResNet models have OpenAI's weights, also where the name has no -quickgelu.
        quick_gelu = arguments.model.startswith("RN")
    description = read_description(arguments.model, arguments.quick_gelu, quick_gelu)
    if isinstance(description, ClipDescription):
        head = fcclip.head_description({key: tensor.shape for key, tensor in weights.tensors.items()})
        description = dataclasses.replace(descriptions.fcclip_description(description), head=head)
        if ovrcoat:
            defaults = fcclip.OVRCOAT_OFFICIAL if arguments.as_official else fcclip.OVRCOAT
            description = dataclasses.replace(description, defaults=defaults)
    write_checkpoint(arguments, description, weights, clip_source, vocabulary, known_words)


def to_torch(arguments: argparse.Namespace) -> None:
    """Converts a checkpoint back to a file with the official keys."""
    weight_files.check_free(arguments.output, overwrite=arguments.overwrite)
    contents = _read_checkpoint(arguments.checkpoint)
    description = contents.description
    clip = description.clip if isinstance(description, ModelDescription) else description
    say_step(f"renaming {len(contents.parameters)} parameters")
    parameters = open_clip.with_official_sizes(contents.parameters, clip)
    tensors = rules.to_torch(parameters, table_of(description).rules, contents.ignored)
    say_step(f"writing {len(tensors)} tensors, {in_units(sum(a.nbytes for a in tensors.values()))}")
    weight_files.write(arguments.output, tensors)
    print(f"wrote {arguments.output}")


def halve(arguments: argparse.Namespace) -> None:
    """Writes a checkpoint again, with parameters of float16."""
    checkpoint.check_free(arguments.output, overwrite=arguments.overwrite)
    contents = _read_checkpoint(arguments.checkpoint)
    size = sum(array.nbytes for array in contents.parameters.values()) // 2
    say_step(f"rounding, checking and writing {len(contents.parameters)} parameters, {in_units(size)}")
    checkpoint.save(arguments.output, contents, overwrite=arguments.overwrite, dtype="float16")
    _say_where(arguments.output)


def from_run(arguments: argparse.Namespace) -> None:
    """Makes a checkpoint of a training run, at one of its steps."""
    checkpoint.check_free(arguments.output, overwrite=arguments.overwrite)
    step = choose_step(arguments.workdir, arguments.step)
    which = "" if arguments.step == step else f", the {arguments.step}"
    say_step(f"reading step {step}{which}, of the run {arguments.workdir}")
    contents = read_model(arguments.workdir, step)
    say_step(f"checking and writing {len(contents.parameters)} parameters")
    checkpoint.save(arguments.output, contents, overwrite=arguments.overwrite)
    _say_where(arguments.output)


def write_checkpoint(
    arguments: argparse.Namespace,
    description: ModelDescription | ClipDescription,
    weights: weight_files.Weights,
    clip_source: checkpoint.Origin | None,
    vocabulary: Vocabulary | None,
    known_words: tuple[str, ...] | None,
) -> None:
    """Converts weights by the model's table, writes the checkpoint, and prints a summary."""
    variables = named_variables(abstract_model(description))
    table = table_of(description)
    given = list(weights.tensors)
    say_step(f"renaming {len(given)} tensors")
    with progress.track(desc="renaming", total=len(weights.tensors), unit="tensor") as bar:
        parameters, ignored = rules.to_ours(
            {key: tensor.load for key, tensor in weights.tensors.items()},
            *table,
            {name: variable.shape for name, variable in variables.items()},
            on_key=lambda key: bar.update(),
        )
    # Closes the mapped file: its pages count as this process's memory while the checkpoint is written.
    weights.tensors.clear()
    say_step("checking: the text tower's fingerprint")
    contents = checkpoint.Checkpoint(
        description=description,
        parameters=parameters,
        training_vocabulary=vocabulary,
        text_sha256=checkpoint.text_fingerprint(description, parameters),
        source=weights.source,
        clip_source=clip_source,
        ignored=ignored,
        known_words=known_words,
    )
    size = sum(array.nbytes for array in parameters.values())
    say_step(f"writing {len(parameters)} parameters, {in_units(size)}, with their checksums")
    checkpoint.save(arguments.output, contents, overwrite=arguments.overwrite)
    _report(contents, variables, given, table)
    _say_where(arguments.output)


def _read_checkpoint(where: str) -> checkpoint.Checkpoint:
    folder = find(where)
    say_step(f"reading and checking {folder}")
    return checkpoint.read(folder)


def _say_where(output: str) -> None:
    print(f"the checkpoint is in {checkpoint.resolve(output)}", flush=True)


def _with_source(weights: weight_files.Weights, text: str | None) -> weight_files.Weights:
    return weights if text is None else weights._replace(source=weights.source._replace(name=text))


def _report(
    contents: checkpoint.Checkpoint,
    variables: Mapping[str, nnx.Variable],
    keys: Sequence[str],
    table: Table,
) -> None:
    trainable, frozen = count_parameters(variables)
    print("converted:")
    print(f"  {trainable:,} trainable and {frozen:,} frozen parameters")
    description = contents.description
    clip = description.clip if isinstance(description, ModelDescription) else description
    print(f"  CLIP with {'quick' if clip.text.quick_gelu else 'exact'} GELU")
    if contents.training_vocabulary:
        vocabulary = contents.training_vocabulary
        print(f"  trained with the vocabulary {vocabulary.name}, {len(vocabulary.classes)} classes")
    if contents.known_words:
        print(f"  knows only the {len(contents.known_words)} words that CLIP was trained with")
    ignored: dict[str, list[str]] = {}
    for key in keys:
        for entry in table.ignored:
            if entry.matches(key):
                ignored.setdefault(entry.reason, []).append(key)
    for reason, among in ignored.items():
        print(f"  ignored {among[0] if len(among) == 1 else f'{len(among)} tensors such as {among[0]}'}: {reason}")


def count_parameters(variables: Mapping[str, nnx.Variable]) -> tuple[int, int]:
    """Counts trainable and frozen parameters; the statistics of batch norms are neither."""
    sizes = {name: variable.size for name, variable in variables.items() if not is_statistic(name)}
    trainable = sum(size for name, size in sizes.items() if is_trainable(name, train_trunk=False))
    return trainable, sum(sizes.values()) - trainable
