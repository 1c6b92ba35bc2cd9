"""`twinserve train`: labelled items, pairs or triplets to a run folder with the best twin found."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twinserve.cli.exit_codes import OK
from twinserve.cli.output import print_json
from twinserve.cli.progress import Working
from twinserve.errors import ConfigError

if TYPE_CHECKING:
    from twinserve.train.config import TrainConfig

# Settings that a resumed training may change: twinserve.train.state, which brings torch.
FREE = ("data", "max_seconds", "save_seconds", "tensorboard")

DESCRIPTION = (
    "Train a twin. The data is a folder or zip of pictures whose innermost folder is the class, or "
    "a CSV of their paths and labels (twin=conv4, conv5, resnet18, resnet34 or resnet50); a CSV of "
    "texts and labels (twin=words: averaged word vectors; twin=text_encoder: a model of "
    "transformers or sentence-transformers, fine-tuned, as image_encoder is for pictures); or "
    "float32 vectors "
    "with labels as npz, npy or Parquet (twin=mlp). CSVs of judged pairs and of triplets are "
    "trained on as they are. docs/data.md shows all forms; `twinserve data check` says what would "
    "spoil a training, which stops at the same before its first step. Whole classes (of pairs what "
    "hangs together) are set aside to calibrate and to report. Ctrl-C ends a training after the "
    "step at hand and leaves the best twin so far; --resume goes on from there, to the losses that "
    "it would have had. torchrun starts several processes, which share each batch."
)
EXAMPLES = """
  twinserve train --data photos/ --out runs/faces
  twinserve train --data omniglot.zip --out runs/omniglot --config omniglot
  twinserve train --data faces/ --out runs/fold1 --config faces --set folds=5 fold=1
  twinserve train --data photos/ --out runs/faces --set dimension=128 --set max_seconds=1200
  twinserve train --data photos/ --out runs/faces --set twin=resnet18 weights=resnet18.pth \\
      color_order=RGB image_size=224 mean_std=imagenet
  twinserve train --data questions.csv --out runs/questions --set twin=words label_column=intent
  twinserve train --data questions.csv --out runs/questions --set twin=text_encoder \\
      weights=all-MiniLM-L6-v2/ warmup_steps=20 max_steps=200
  twinserve train --data vectors.npz --out runs/vectors --set twin=mlp
  twinserve train --data pairs.csv --out runs/pairs --set twin=words loss=contrastive
  twinserve train --data scored.csv --out runs/scored --set twin=words score_range=0..5 \\
      loss=cosine_mse different_cosine=0
  twinserve train --resume runs/faces --set max_seconds=3600
  torchrun --nproc-per-node 2 -m twinserve.cli train --data photos/ --out runs/faces
"""
EXIT_CODES = "0 done; 2 wrong usage, or an error"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("--data", metavar="PATH", help="pictures, a CSV, or vectors")
    parser.add_argument("--out", metavar="RUN_DIR", help="folder for what comes out")
    parser.add_argument(
        "--resume",
        metavar="RUN_DIR",
        help="go on with a training that was stopped, by the settings that it was begun with; "
        f"others than {', '.join(FREE)} are refused",
    )
    parser.add_argument(
        "--import-twin",
        metavar="MODULE:CALLABLE",
        help="with --resume: the code of the run's own twin",
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="TOML file, or a preset: faces, omniglot, omniglot_resnet18",
    )
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="settings above the file's; an unknown one is answered with all that there are",
    )
    parser.add_argument("--json", action="store_true", help="print the results as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Train, and say how good the twin is on classes it never saw."""
    from twinserve.train.loop import train

    config = _config(arguments)
    if not Path(config.data).exists():
        raise ConfigError(
            f"--data {config.data} does not exist; give a folder, a zip, a CSV, or vectors"
        )
    finished = train(
        config,
        resume=arguments.resume is not None,
        reporting=Working("measuring the twin on what it never saw"),
    )
    if arguments.json:
        print_json({"run": config.out, "results": finished.results})
    else:
        ended = finished.results
        if ended["stopped"] not in ("max_steps", "patience"):
            print(
                f"stopped after step {ended['steps']} of {config.max_steps} ({ended['stopped']}); "
                f"to go on: twinserve train --resume {config.out}"
                + (" --set max_seconds=3600" if ended["stopped"] == "max_seconds" else "")
            )
        standing = in_short(ended["report"])
        if standing:
            print(standing)
        print(f"the run lies in {config.out}: checkpoint.pt, log.csv, report.json")
        print(f"open {config.out}/report.html in a browser: how good it is, and where it fails")
        asked = f" --import-twin {config.twin}" if config.is_own else ""
        print(f"next: twinserve export {config.out} --out twin.onnx{asked}")
    return OK


def in_short(report: dict[str, Any]) -> str:
    """Say in a line how good a twin is on the report classes; "" of judged pairs and triplets."""
    if "classes" not in report:
        return ""
    line = f"on {report['classes']} classes that it never saw"
    line += f": equal error rate {report['equal_error_rate']:.1%}"
    one_shot = report.get("one_shot")
    if one_shot:
        line += f", the right one of {one_shot['ways']} nearest in {one_shot['accuracy']:.1%}"
    return line


def _config(arguments: argparse.Namespace) -> TrainConfig:
    """Return the config that the flags ask for."""
    from twinserve.train.config import load_config
    from twinserve.train.state import config_to_resume

    data = [] if arguments.data is None else [f"data={arguments.data}"]
    if arguments.resume is None:
        if arguments.data is None or arguments.out is None:
            raise ConfigError("--data and --out are needed, or --resume with a run's folder")
        return load_config(arguments.config, [*arguments.set, *data, f"out={arguments.out}"])
    if arguments.out is not None:
        raise ConfigError("--resume goes on in the folder that it names; leave --out out")
    if arguments.import_twin:
        from twinserve.train import own

        own.ask(arguments.import_twin)
    if arguments.config is None:
        return config_to_resume(arguments.resume, [*arguments.set, *data])
    return load_config(arguments.config, [*arguments.set, *data, f"out={arguments.resume}"])
