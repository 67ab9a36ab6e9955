"""`fcclip weights`: lists published weights, fetches them, and uploads others."""

import argparse
import pathlib

from fcclip_jax import command_line
from fcclip_jax.commands.weights_push import add_push

HELP = "list published weights, get some of them, or upload others"
DESCRIPTION = """\
Without arguments, lists the published weights that are known by name: their backbone, the PQ on ADE20K that
their authors report, size, licence and source, and whether they are here already. `get` downloads, verifies
and converts weights, once; `push` uploads a converted checkpoint. Wherever a checkpoint is expected, such as in fcclip segment --weights NAME, a name
does the same when needed."""
EPILOG = """\
examples:
  fcclip weights
  fcclip weights get fcclip_convnext_large
  fcclip weights get fcclip_convnext_large --file ~/Downloads/fcclip_cocopan.pth
  fcclip weights push my_checkpoint me/my-model --licence apache-2.0

environment variables:
  FCCLIP_JAX_CACHE           the cache folder, which contains the converted weights
  FCCLIP_JAX_DRIVE           a mirror of Google Drive: downloads come from its /uc?id=ID
  HF_HOME, HF_ENDPOINT       the cache and the mirror of the Hugging Face hub
  HF_HUB_OFFLINE=1           downloads nothing
  HTTPS_PROXY                the proxy of all downloads

exit codes: 0 done; 2 stopped, with the reason; 130 interrupted (a download from Google Drive resumes).
"""
MEMORY_ADVICE = "close other programs, or convert on a machine with more memory"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(action=run_list)
    actions = parser.add_subparsers(title="actions", metavar="{get,push}")
    get = actions.add_parser("get", help="download, verify and convert weights")
    get.set_defaults(action=run_get)
    get.add_argument("name", metavar="NAME", help="a name from the list")
    get.add_argument(
        "--file", type=pathlib.Path, metavar="FILE", help="the weights' file, if you downloaded it by hand"
    )
    get.add_argument(
        "--keep-download",
        action="store_true",
        help="keep the file that was downloaded from Google Drive; the Hugging Face hub's client keeps its files in any case",
    )
    get.add_argument("--overwrite", action="store_true", help="convert again, in place of the weights that are here")
    add_push(actions)


def run(arguments: argparse.Namespace) -> int:
    return arguments.action(arguments)


def run_list(arguments: argparse.Namespace) -> int:
    for line in listing():
        print(line)
    return command_line.DONE


def run_get(arguments: argparse.Namespace) -> int:
    from fcclip_jax import weights
    from fcclip_jax.weights import table

    folder = weights.get(
        arguments.name,
        file=arguments.file,
        keep_download=arguments.keep_download,
        overwrite=arguments.overwrite,
    )
    entry = table.entry(arguments.name)
    print(f"{entry.name}: {entry.title}\n  {folder}\n  licence: {entry.licence}")
    for note in (*entry.notes, table.method_note()):
        print(f"  {note}")
    return command_line.DONE


def listing() -> list[str]:
    """Returns the lines of the table."""
    from fcclip_jax.weights import fetch, store, table

    rows = [("name", "backbone", "ADE20K PQ", "size", "licence", "source", "here")]
    for entry in table.entries().values():
        quality = entry.reported.get("ade20k", {}).get("pq")
        here = entry.source is None or store.folder(entry.name).exists()
        rows.append(
            (
                entry.name,
                entry.model,
                "-" if quality is None else f"{quality:.1f}",
                "-" if entry.size is None else fetch.in_units(entry.size),
                entry.licence,
                _source(entry),
                "yes" if here else "no",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [*lines, "", "PQ is what the authors report, in percent. " + table.method_note()]


def _source(entry) -> str:
    from fcclip_jax.weights.table import Drive, Hub

    if isinstance(entry.source, Hub):
        return f"Hugging Face {entry.source.repository}"
    return "Google Drive" if isinstance(entry.source, Drive) else "this package"
