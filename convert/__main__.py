"""Weights in and out.

python -m convert openclip --model convnext_large_d_320 --pretrained laion2b_s29b_b131k_ft_soup --output DIR
python -m convert fcclip --checkpoint fcclip_cocopan.pth --model convnext_large_d_320 --output DIR
python -m convert torch --checkpoint DIR --output fcclip.safetensors
python -m convert run --run runs/coco --step best --output DIR
"""

import argparse
import dataclasses
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple, NoReturn

from etils import epath
from flax import nnx
from tqdm import tqdm

from fcclip_jax import checkpoint
from fcclip_jax.models import descriptions
from fcclip_jax.models.building import abstract_model, named_variables
from fcclip_jax.models.descriptions import ClipDescription, ModelDescription
from fcclip_jax.text.vocabulary import Vocabulary
from fcclip_jax.training.parameters import is_statistic, is_trainable
from fcclip_jax.training.run_folder import read_model

from . import fcclip, files, open_clip, rules, tags

WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 2 with one sentence for what the user can put right."""
    try:
        arguments = _parser().parse_args(argv)
        arguments.run(arguments)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (OSError, ValueError) as error:
        told = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.strerror else error
        print(f"error: {told}", file=sys.stderr)
        return 2
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog=_prog(), description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(title="commands", required=True, metavar="{openclip,fcclip,torch,run}")

    command = commands.add_parser("openclip", help="a CLIP of OpenCLIP's")
    command.add_argument(
        "--pretrained", required=True, metavar="TAG_OR_FILE", help="OpenCLIP's tag, or a .pth or .safetensors file"
    )
    _add_model(command)
    command.set_defaults(run=_from_openclip)

    command = commands.add_parser("fcclip", help="an official FC-CLIP checkpoint")
    command.add_argument("--checkpoint", required=True, type=pathlib.Path, metavar="FILE", help=".pth or .safetensors")
    command.add_argument(
        "--clip",
        metavar="TAG_OR_PATH",
        help="CLIP's weights, if the checkpoint has none: OpenCLIP's tag, a file, or what the openclip command made",
    )
    command.add_argument(
        "--vocabulary",
        default="coco_panoptic",
        metavar="NAME_OR_JSON",
        help="what the checkpoint was trained in: a shipped vocabulary, or a file of that form (default: %(default)s)",
    )
    _add_model(command)
    command.set_defaults(run=_from_fcclip)

    command = commands.add_parser("torch", help="back to the official keys")
    command.add_argument("--checkpoint", required=True, metavar="DIR")
    command.add_argument("--output", required=True, type=pathlib.Path, metavar="FILE", help=".safetensors or .pth")
    command.add_argument("--overwrite", action="store_true", help="replace what is there")
    command.set_defaults(run=_to_torch)

    command = commands.add_parser("run", help="a training run at one of its checkpoints")
    command.add_argument("--run", required=True, metavar="WORKDIR", dest="workdir", help="the folder that it trains in")
    command.add_argument(
        "--step", default="latest", type=_step, metavar="STEP", help="a number, latest or best (default: %(default)s)"
    )
    command.add_argument("--output", required=True, metavar="DIR", help="the checkpoint to make; may be on gs://")
    command.add_argument("--overwrite", action="store_true", help="replace what is there")
    command.set_defaults(run=_from_run)
    return parser


def _step(text: str) -> int | str:
    if text in ("latest", "best"):
        return text
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor latest or best") from None


def _add_model(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--model", required=True, metavar="NAME_OR_JSON", help="OpenCLIP's name of the CLIP, or a description's file"
    )
    command.add_argument(
        "--quick-gelu",
        action=argparse.BooleanOptionalAction,
        help="whether CLIP was trained with QuickGELU, where its name does not tell",
    )
    command.add_argument("--output", required=True, metavar="DIR", help="the checkpoint to make; may be on gs://")
    command.add_argument("--overwrite", action="store_true", help="replace what is there")


class _Table(NamedTuple):
    rules: list[rules.Rule]
    ignored: list[rules.Ignored]


def _table(description: ModelDescription | ClipDescription) -> _Table:
    if isinstance(description, ModelDescription):
        return _Table(fcclip.rules(description.clip.image.family), fcclip.IGNORED)
    return _Table(open_clip.rules(description.image.family), open_clip.IGNORED)


def _from_openclip(arguments: argparse.Namespace) -> None:
    checkpoint.check_free(arguments.output, overwrite=arguments.overwrite)
    _description(arguments.model, arguments.quick_gelu, False)  # a wrong name, before gigabytes are read
    weights, quick_gelu = _read_clip(arguments.pretrained, arguments.model)
    if any(key.startswith((fcclip.CLIP_PREFIX, fcclip.HEAD_PREFIX)) for key in weights.tensors):
        raise ValueError(f"{arguments.pretrained} is a whole FC-CLIP; convert it with `{_prog()} fcclip`")
    description = _description(arguments.model, arguments.quick_gelu, quick_gelu or False)
    if isinstance(description, ModelDescription):
        description = description.clip
    _convert(arguments, description, weights, None, None)


def _from_fcclip(arguments: argparse.Namespace) -> None:
    checkpoint.check_free(arguments.output, overwrite=arguments.overwrite)
    vocabulary = _vocabulary(arguments.vocabulary)
    _description(arguments.model, arguments.quick_gelu, False)  # a wrong name, before gigabytes are read
    weights = _read(arguments.checkpoint)
    if not any(key.startswith(fcclip.HEAD_PREFIX) for key in weights.tensors):
        raise ValueError(f"{arguments.checkpoint} holds no FC-CLIP; convert a CLIP alone with `{_prog()} openclip`")
    complete = any(key.startswith(fcclip.CLIP_PREFIX) for key in weights.tensors)
    if complete and arguments.clip:
        raise ValueError(f"{arguments.checkpoint} holds CLIP's weights already; leave out --clip {arguments.clip}")
    if not complete and not arguments.clip:
        raise ValueError(
            f"{arguments.checkpoint} holds no CLIP weights; say with --clip where they are (the official models have"
            " OpenCLIP's laion2b_s29b_b131k_ft_soup for convnext_large_d_320, openai for RN50 and its kin)"
        )
    clip_source, quick_gelu = None, None
    if arguments.clip:
        clip, quick_gelu = _read_clip(arguments.clip, arguments.model)
        clip_source = clip.source
        weights.tensors.update({fcclip.CLIP_PREFIX + key: tensor for key, tensor in clip.tensors.items()})
        clip.tensors.clear()
    if quick_gelu is None:
        # The official ResNet models have OpenAI's weights, whatever the plain name says.
        quick_gelu = arguments.model.startswith("RN")
    description = _description(arguments.model, arguments.quick_gelu, quick_gelu)
    if isinstance(description, ClipDescription):
        head = fcclip.head_description({key: tensor.shape for key, tensor in weights.tensors.items()})
        description = dataclasses.replace(descriptions.fcclip_description(description), head=head)
    _convert(arguments, description, weights, clip_source, vocabulary)


def _to_torch(arguments: argparse.Namespace) -> None:
    files.check_free(arguments.output, overwrite=arguments.overwrite)
    print(f"reading {arguments.checkpoint}", flush=True)
    contents = checkpoint.read(arguments.checkpoint)
    tensors = rules.to_torch(contents.parameters, _table(contents.description).rules, contents.ignored)
    print(f"writing {len(tensors)} tensors, {_gib(sum(a.nbytes for a in tensors.values()))}", flush=True)
    files.write(arguments.output, tensors)
    print(f"wrote {arguments.output}")


def _from_run(arguments: argparse.Namespace) -> None:
    checkpoint.check_free(arguments.output, overwrite=arguments.overwrite)
    checkpoint.save(arguments.output, read_model(arguments.workdir, arguments.step), overwrite=arguments.overwrite)
    print(f"wrote {arguments.output}")


def _convert(
    arguments: argparse.Namespace,
    description: ModelDescription | ClipDescription,
    weights: files.Weights,
    clip_source: checkpoint.Origin | None,
    vocabulary: Vocabulary | None,
) -> None:
    variables = named_variables(abstract_model(description))
    table = _table(description)
    with tqdm(total=len(weights.tensors), desc="converting", unit=" tensors", disable=None) as progress:
        parameters, ignored = rules.to_ours(
            {key: tensor.load for key, tensor in weights.tensors.items()},
            *table,
            {name: variable.shape for name, variable in variables.items()},
            on_key=lambda key: progress.update(),
        )
    # Lets go of the mapped file: its pages count as this process's memory while the checkpoint is written.
    weights.tensors.clear()
    print(f"writing {len(parameters)} parameters, {_gib(sum(a.nbytes for a in parameters.values()))}", flush=True)
    contents = checkpoint.Checkpoint(
        description=description,
        parameters=parameters,
        training_vocabulary=vocabulary,
        text_sha256=checkpoint.text_fingerprint(description, parameters),
        source=weights.source,
        clip_source=clip_source,
        ignored=ignored,
    )
    checkpoint.save(arguments.output, contents, overwrite=arguments.overwrite)
    _report(arguments.output, contents, variables, table)


def _report(output: str, contents: checkpoint.Checkpoint, variables: Mapping[str, nnx.Variable], table: _Table) -> None:
    trainable, frozen = count_parameters(variables)
    print(f"wrote {output}")
    print(f"  {trainable:,} trainable and {frozen:,} frozen parameters")
    description = contents.description
    clip = description.clip if isinstance(description, ModelDescription) else description
    print(f"  CLIP with {'quick' if clip.text.quick_gelu else 'exact'} GELU")
    if contents.training_vocabulary:
        vocabulary = contents.training_vocabulary
        print(f"  trained in {vocabulary.name}, {len(vocabulary.classes)} classes")
    for entry in table.ignored:
        keys = [key for key in contents.ignored if entry.matches(key)]
        if keys:
            print(f"  ignored {keys[0] if len(keys) == 1 else f'{len(keys)} x {entry.source}'}: {entry.reason}")


def count_parameters(variables: Mapping[str, nnx.Variable]) -> tuple[int, int]:
    """Returns how many train and how many are frozen. Batch normalisation's statistics are neither."""
    sizes = {name: variable.size for name, variable in variables.items() if not is_statistic(name)}
    trainable = sum(size for name, size in sizes.items() if is_trainable(name, train_trunk=False))
    return trainable, sum(sizes.values()) - trainable


def _read(path: pathlib.Path, *, name: str | None = None) -> files.Weights:
    weights = files.read(path, name=name)
    print(f"read {path}: {len(weights.tensors)} tensors, {_gib(weights.size)}", flush=True)
    return weights


def _read_clip(where: str, model: str) -> tuple[files.Weights, bool | None]:
    """CLIP's weights by OpenCLIP's keys, and whether they were trained with quick GELU, where that is known."""
    if epath.Path(where).is_dir():
        contents = checkpoint.read(where)
        if not isinstance(contents.description, ClipDescription):
            raise ValueError(f"{where} holds a whole FC-CLIP; give one made by `{_prog()} openclip`")
        arrays = rules.to_torch(contents.parameters, _table(contents.description).rules, contents.ignored)
        tensors = {key: files.Tensor(array.shape, lambda array=array: array) for key, array in arrays.items()}
        return files.Weights(contents.source, tensors, 0), contents.description.text.quick_gelu
    path = pathlib.Path(where)
    if path.exists() or path.suffix in WEIGHT_SUFFIXES:
        return _read(path), None
    print(f"looking for OpenCLIP's weights {where} of {model}", flush=True)
    pretrained = tags.download(model, where)
    return _read(pretrained.path, name=where), pretrained.quick_gelu


def _description(model: str, override: bool | None, quick_gelu: bool) -> ModelDescription | ClipDescription:
    """Of a name or a file; a file says itself whether its CLIP has quick GELU."""
    if not model.endswith(".json"):
        name = model.removesuffix("-quickgelu")
        chosen = override if override is not None else quick_gelu or name != model
        return descriptions.clip_description(name, quick_gelu=chosen)
    try:
        record = json.loads(pathlib.Path(model).read_text())
        whole = isinstance(record, dict) and "clip" in record
        parse = descriptions.model_from_json if whole else descriptions.clip_from_json
        description = parse(record)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{model}: {error}") from None
    if override is None:
        return description
    if isinstance(description, ModelDescription):
        return dataclasses.replace(description, clip=_with_gelu(description.clip, override))
    return _with_gelu(description, override)


def _with_gelu(clip: ClipDescription, quick: bool) -> ClipDescription:
    return dataclasses.replace(clip, text=dataclasses.replace(clip.text, quick_gelu=quick))


def _vocabulary(name: str) -> Vocabulary:
    if not name.endswith(".json"):
        return Vocabulary.load(name)
    try:
        return Vocabulary.from_json(pathlib.Path(name).read_text())
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**27 else f"{size / 2**20:.1f} MiB"


def _prog() -> str:
    return f"python -m {__package__}"


if __name__ == "__main__":
    sys.exit(main())
