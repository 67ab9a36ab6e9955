"""`fcclip weights push`: uploads a converted checkpoint to the Hugging Face hub."""

import argparse
import pathlib

from fcclip_jax import command_line

DESCRIPTION = """\
Uploads a checkpoint to a repository of the Hugging Face hub, with a model card, in one commit. The repository
is created if there is none. An earlier checkpoint and README.md in it are replaced; its history keeps them.
Segmenter.load("hf://OWNER/NAME") loads the checkpoint back. Log in first: hf auth login, or set HF_TOKEN."""


def add_push(subparsers: argparse._SubParsersAction) -> None:
    push = subparsers.add_parser(
        "push",
        help="upload a converted checkpoint to the Hugging Face hub",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    push.set_defaults(action=run_push)
    push.add_argument("checkpoint", metavar="DIR", help="the checkpoint's folder, or the name of weights")
    push.add_argument("repository", metavar="REPO", help="OWNER/NAME on the hub")
    push.add_argument("--licence", required=True, metavar="ID", help="the weights' licence, such as apache-2.0")
    push.add_argument(
        "--report",
        type=pathlib.Path,
        action="append",
        default=[],
        metavar="FILE",
        help="the report.json of an evaluation, whose scores the card shows; repeat it for several",
    )
    push.add_argument("--private", action="store_true", help="make a new repository private")
    push.add_argument("--revision", metavar="BRANCH", help="the branch to upload to; by default main")
    push.add_argument("--message", metavar="TEXT", help="the commit's message")
    push.add_argument("--dry-run", action="store_true", help="verify the checkpoint and print the card; upload nothing")


def run_push(arguments: argparse.Namespace) -> int:
    from fcclip_jax.weights import model_card, publish

    figures = [model_card.read_report(file) for file in arguments.report]
    upload = publish.prepare(arguments.checkpoint, arguments.repository, licence=arguments.licence, figures=figures)
    if arguments.dry_run:
        print(upload.card, end="")
    else:
        address = publish.push(
            upload, private=arguments.private, revision=arguments.revision, message=arguments.message
        )
        at = "" if arguments.revision is None else f"@{arguments.revision}"
        print(f'{address}\nload it with Segmenter.load("hf://{arguments.repository}{at}")')
    return command_line.DONE
