"""`twinserve model`: which twins a server runs, what each says of itself, and changing them."""

from __future__ import annotations

import argparse
import json

from twinserve.cli import connection
from twinserve.cli.exit_codes import OK
from twinserve.cli.output import plain, print_fields, print_json, print_table
from twinserve.cli.progress import Working
from twinserve.client import LOAD_SECONDS, Client, Model, Shadow
from twinserve.errors import ConfigError

DESCRIPTION = "List, show, load and unload the models of a server, name them, and try candidates."
EXAMPLES = """
  twinserve model list
  twinserve model show faces@3 --json
  twinserve model load faces/v4.onnx --alias live
  twinserve model unload faces@3
  twinserve model alias live faces@3
  twinserve model shadow faces@4 --of live --share 0.1
  twinserve model shadow faces@4 --stop
"""

EXIT_CODES = "0 done; 2 wrong usage, or refused: the sentence on standard error says why"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the actions and their arguments."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="all loaded models, by name and version")
    showing = actions.add_parser("show", help="one model, with all that its manifest says")
    showing.add_argument(
        "name",
        nargs="?",
        default="",
        help="name, name@version or alias; default: the only one, or --model's",
    )
    load = actions.add_parser(
        "load", help="load a twin from the server's --model-dir, and move aliases to it"
    )
    load.add_argument("file", metavar="FILE", help="path below the server's --model-dir")
    load.add_argument("--name", default="", help="to serve it under; default: the twin's own")
    load.add_argument(
        "--alias", action="append", default=[], metavar="ALIAS", help="to point at it; repeatable"
    )
    unload = actions.add_parser("unload", help="serve a version no more, once its calls are done")
    unload.add_argument("name", metavar="NAME[@VERSION]")
    alias = actions.add_parser("alias", help="point an alias at a loaded version, or delete it")
    alias.add_argument("alias", metavar="ALIAS")
    alias.add_argument("name", nargs="?", metavar="NAME[@VERSION]", help="default version: newest")
    alias.add_argument("--delete", action="store_true", help="take the alias away")
    for action in (load, unload, alias):
        action.add_argument(
            "--force", action="store_true", help="even where galleries are left behind"
        )
    shadow = actions.add_parser(
        "shadow", help="try a candidate on another model's live calls; alone: the report so far"
    )
    shadow.add_argument("candidate", metavar="CANDIDATE", help="name, name@version or alias")
    shadow.add_argument("--of", metavar="MODEL", help="begin: mirror the calls of this model")
    shadow.add_argument(
        "--share", type=float, default=0.1, help="of its calls, above 0, at most 1 (%(default)s)"
    )
    shadow.add_argument("--stop", action="store_true", help="end the run")
    for action in (listing, showing, load, unload, alias, shadow):
        connection.add_arguments(action)
    load.set_defaults(timeout=LOAD_SECONDS)


def run(arguments: argparse.Namespace) -> int:
    """Do the action."""
    with connection.connect(arguments) as client:
        match arguments.action:
            case "list":
                _list(client, arguments.json)
            case "show":
                _show(client, arguments.name, arguments.json)
            case "load":
                with Working(f"loading {arguments.file}"):
                    loaded = client.load_model(
                        arguments.file,
                        arguments.name,
                        aliases=arguments.alias,
                        force=arguments.force,
                        timeout=arguments.timeout,
                    )
                _changed(loaded, arguments.json)
            case "unload":
                name, _, version = arguments.name.partition("@")
                with Working(f"waiting for the calls of {arguments.name}"):
                    client.unload_model(name, version, force=arguments.force)
                if arguments.json:
                    print_json({"unloaded": arguments.name})
                else:
                    print(f"{arguments.name} is served no more")
            case "alias":
                _alias(client, arguments)
            case "shadow":
                _shadow(client, arguments)
    return OK


def _alias(client: Client, arguments: argparse.Namespace) -> None:
    if arguments.delete == (arguments.name is not None):
        raise ConfigError("name either the model that the alias is to point at, or --delete")
    if arguments.delete:
        client.delete_alias(arguments.alias, force=arguments.force)
        if arguments.json:
            print_json({"deleted": arguments.alias})
        else:
            print(f"{arguments.alias} is no alias any more")
        return
    name, _, version = arguments.name.partition("@")
    moved = client.set_alias(arguments.alias, name, version, force=arguments.force)
    _changed(moved, arguments.json)


def _shadow(client: Client, arguments: argparse.Namespace) -> None:
    if arguments.of and arguments.stop:
        raise ConfigError("give --of MODEL to begin a shadow run, or --stop to end it, not both")
    report: Shadow | None
    if arguments.of:
        report = client.start_shadow(arguments.candidate, arguments.of, arguments.share)
    elif arguments.stop:
        report = client.stop_shadow(arguments.candidate)
    else:
        report = client.model(arguments.candidate).shadow
        if report is None:
            raise ConfigError(
                f"{arguments.candidate} is not the candidate of a shadow run; begin one with "
                "--of MODEL"
            )
    if arguments.json:
        print_json(report)
        return
    print_fields(
        [
            ("candidate", report.candidate),
            ("model", report.model),
            ("share", f"{report.share:g}"),
            ("calls", f"{report.calls} ({report.skipped} skipped)"),
            ("items", f"{report.items} ({report.failed} failed)"),
            ("first error", report.first_error or None),
            ("cosine drift", _drift(report)),
            ("decided otherwise", _decisions(report)),
            *(_waits(report) if report.calls else ()),
        ]
    )


def _drift(report: Shadow) -> str | None:
    if not report.comparable:
        return "none: the two embed into different spaces"
    if report.mean_drift is None:
        return None
    return f"mean {report.mean_drift:.2e}, worst {report.worst_drift:.2e}"


def _decisions(report: Shadow) -> str:
    if report.false_accept_rate is None:
        return "not known: one of the two is not calibrated"
    return (
        f"{report.pairs_decided_otherwise} of {report.pairs} pairs at FAR "
        f"{report.false_accept_rate:g}, of which the model matched {report.pairs_matched}"
    )


def _waits(report: Shadow) -> list[tuple[str, object]]:
    return [
        ("model", _times(report.model_p50_seconds, report.model_p99_seconds)),
        ("candidate", _times(report.candidate_p50_seconds, report.candidate_p99_seconds)),
    ]


def _times(half: float, most: float) -> str:
    return f"p50 {half * 1e3:.1f} ms, p99 {most * 1e3:.1f} ms"


def _changed(model: Model, as_json: bool) -> None:
    if as_json:
        print_json(_summary(model))
        return
    aliases = f", aliases {', '.join(model.aliases)}" if model.aliases else ""
    print(f"{model.name}@{model.version} is served in {model.precision}{aliases}")


def _list(client: Client, as_json: bool) -> None:
    models = list(client.models())
    if as_json:
        print_json([_summary(model) for model in models])
        return
    print_table(
        (
            "name",
            "version",
            "aliases",
            "modality",
            "dimension",
            "metric",
            "precision",
            "provider",
            "space",
        ),
        [
            (
                model.name,
                model.version,
                ", ".join(model.aliases),
                model.modality,
                model.dimension,
                model.metric,
                model.precision,
                model.provider,
                model.space_id,
            )
            for model in models
        ],
    )


def _show(client: Client, name: str, as_json: bool) -> None:
    model = client.model(name)
    if as_json:
        print_json(_document(plain(model)))
        return
    # Rendering a manifest is the exporter's; it needs no torch.
    from twinserve.export.inspect import describe

    print_fields(
        [
            ("served as", f"{model.name}@{model.version}"),
            ("aliases", ", ".join(model.aliases) or None),
            ("provider", model.provider),
            ("file", model.file or None),
            ("SHA-256", model.file_digest or None),
        ]
    )
    print()
    print(describe(model.manifest()))


def _summary(model: Model) -> dict[str, object]:
    """Return what tells models apart; the manifest, of many pages, is `model show`'s."""
    summary: dict[str, object] = plain(model)
    del summary["manifest_json"], summary["operating_points"]
    return summary


def _document(model: dict[str, object]) -> dict[str, object]:
    """Return the model with its manifest as an object instead of a text."""
    text = str(model.pop("manifest_json"))
    return {**model, "manifest": json.loads(text) if text else None}
